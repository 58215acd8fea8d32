"""Evaluations of a model on another device than the SAEs give the scores of one on the CPU."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.second_device import DEVICE, second_device

from saefast import checks, lm
from saefast.cli import main
from saefast.disk.tables import read_json, read_table, write_json
from saefast.pipeline import judges
from saefast.run_folder import EVALUATION, SCORES, SETTINGS


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second device stand for a GPU; attention does the same on both devices."""
    before: Callable[..., Any] = lm.load_model

    def loaded(name: str, *, device: Any = "cpu", **options: Any) -> lm.LanguageModel:
        found = before(name, **options)
        found.model.set_attn_implementation("eager")
        if str(device) != "cpu":
            found.model.to(DEVICE)
        return found

    monkeypatch.setattr(lm, "load_model", loaded)
    monkeypatch.setattr(judges, "load_model", loaded)
    monkeypatch.setattr(checks, "device_here", lambda _, value: value)


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("names", [["worth", "probe"], ["explain"], ["steer"]])
def test_scores_do_not_depend_on_the_device(place: Path, tmp_path: Path, names: list[str]) -> None:
    here, there = (shutil.copytree(place / "run", tmp_path / name) for name in ("here", "there"))
    for run in (here, there):
        settings = read_json(run / SETTINGS)
        settings["evaluate"]["steer"] |= {"features": 3, "openers": 2, "new_tokens": 8}
        write_json(run / SETTINGS, settings)
    options = ["--tasks", str(place / "labelled.csv")]
    if names == ["explain"]:
        options += ["--judge", f"local:{place / 'model'}"]
    assert main(["evaluate", str(here), *names, *options]) == 0
    with second_device():
        assert main(["evaluate", str(there), *names, *options, "--device", "cuda"]) == 0
    for file in (SCORES, EVALUATION) if "worth" in names else (SCORES,):
        assert (here / file).read_bytes() == (there / file).read_bytes()
    assert {row["evaluation"] for row in read_table(there / SCORES).to_pylist()} == {names[-1]}
