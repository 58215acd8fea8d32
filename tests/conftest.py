"""Settings and fixtures that every test shares."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Idle threads sleep: by default those of OpenMP spin for a while, and take the processors from the
# other tests and processes. It is read when torch is imported; subprocesses inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from helpers.hub_server import Hub

# `python -m pytest` puts the checkout first, whose saefast/ has no compiled kernels: test the
# installed package instead. `bench` is found in the checkout, after everything installed.
_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _CHECKOUT]
sys.path.append(str(_CHECKOUT))

# Triton's interpreter is switched on before Python starts, so its tests need a separate run.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
# SAELens and others are not installed for most runs, and importing them changes torch; the CUDA C++
# kernels are in a separate wheel.
for _folder in ("peers", "cuda"):
    if not any(f"tests/{_folder}" in argument for argument in sys.argv):
        collect_ignore.append(_folder)

from saefast.ops.cpu import LEVEL_ENVIRONMENT, native  # noqa: E402

settings.register_profile(
    "saefast",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("few", settings.get_profile("saefast"), max_examples=10)
settings.load_profile("saefast")


@pytest.fixture(
    params=[native.level()] if os.environ.get(LEVEL_ENVIRONMENT) else native.usable_levels()
)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this processor supports, or the one that the environment names."""
    before = native.level()
    native.use_level(request.param)
    yield request.param
    native.use_level(before)


@pytest.fixture(autouse=True)
def level_is_restored() -> Iterator[None]:
    """Assert that a test leaves the instruction set to others as it was."""
    before = native.level()
    yield
    assert native.level() == before


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of all stages but the report; tests that change it take a copy."""
    from helpers.tiny_run import tiny_run

    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny <&> run")


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Restore the number of threads after a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, torch_threads: None) -> None:
    """Use one thread for tiny models and no fsync, which does not matter after a kill."""
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator["Hub"]:
    """Serve a hub without repositories to huggingface_hub, which has no token and no cache."""
    from helpers.hub_server import serving
    from huggingface_hub import constants

    with serving() as hub:
        # huggingface_hub reads the environment when it is imported, which other tests have done.
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
