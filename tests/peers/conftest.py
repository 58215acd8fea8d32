"""The compared libraries, imported once and without their warnings."""

import contextlib
import importlib
import io
import os
import warnings

import pytest

# One SAE library reports to wandb, another uses Triton on CPU tensors wherever it is installed.
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

# Ignore warnings of dependencies during import; later warnings are errors again.
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    for _name in ("sae_lens", "sparsify", "dictionary_learning", "dictionary_learning.utils"):
        importlib.import_module(_name)


@pytest.fixture
def however_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use sparse codes even if SAELens's own step is faster."""
    from saefast.integrations.sae_lens import thresholds

    monkeypatch.setattr(thresholds, "_DENSEST", 1.0)
