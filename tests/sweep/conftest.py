"""The cells of a sweep as single runs, for comparisons."""

import os
from pathlib import Path

import pytest
import torch
from helpers.small_sweep import one_after_another, small_sweep


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the twelve cells, one after another."""
    folder = tmp_path_factory.mktemp("alone")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        one_after_another(small_sweep(folder), folder)
    torch.set_num_threads(before)
    return folder
