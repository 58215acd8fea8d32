"""Models and data sets by their names on the hub, with and without a connection."""

import socket
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from helpers.hub_server import Hub
from helpers.tiny_lm import saved
from huggingface_hub import constants

from saefast.cli import main
from saefast.lm import hugging_face, load_model

pytestmark = pytest.mark.usefixtures("light")
NAME = "lab/model"
NOWHERE = "https://hub.invalid"


@pytest.fixture
def stored(hub: Hub, tmp_path: Path) -> Hub:
    """Serve a tiny model."""
    hub.add(NAME, saved(tmp_path / "model"))
    return hub


@pytest.fixture
def without_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let no name resolve and no socket connect; return the list of the hosts that are tried."""
    tried: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> None:
        tried.append(str(host))
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    template = NOWHERE + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: refuse(address))
    # The retries of huggingface_hub, if there are any, wait.
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    return tried


def test_a_model_of_the_hub_is_downloaded(stored: Hub, tmp_path: Path) -> None:
    found = load_model(NAME, progress=False)
    assert found.name == NAME
    expected = load_model(tmp_path / "model").model
    assert torch.equal(found.model.lm_head.weight, expected.lm_head.weight)
    assert any(asked.endswith("/model.safetensors") for asked in stored.asked)


def test_without_a_network_the_error_comes_at_once(
    without_network: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["harvest", NAME, "--site", "L0:resid", "--out", str(tmp_path / "store")]
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"saefast: {NAME} is neither a path here nor in the cache")
    assert "Name or service not known): check the connection, HF_ENDPOINT" in printed
    assert printed.count("\n") == 1
    assert without_network == ["hub.invalid"]


def test_without_a_network_a_cached_model_is_loaded_at_once(
    stored: Hub, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_model(NAME, progress=False)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the user's own settings need no warning
            load_model(NAME, progress=False)
    tried = request.getfixturevalue("without_network")
    with pytest.warns(UserWarning, match=rf"{NOWHERE} cannot be reached .*: {NAME} is read from"):
        after = load_model(NAME, progress=False)
    assert tried == ["hub.invalid"]
    assert after.description == before.description


def test_an_answer_of_the_hub_is_left_to_transformers(stored: Hub) -> None:
    with pytest.raises(OSError, match=r"could not be loaded: lab/other is not a local folder"):
        load_model("lab/other")
    with pytest.raises(OSError, match=r"^name must be .*got 'a/b/c', which could not be loaded"):
        load_model("a/b/c")


def test_a_streamed_data_set_without_a_network_is_an_error_at_once(
    without_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = types.SimpleNamespace(load_dataset=lambda *_, **__: pytest.fail("datasets is asked"))
    monkeypatch.setitem(sys.modules, "datasets", load)
    with pytest.raises(
        ConnectionError, match=r"^dataset 'lab/texts' is not in the cache, and .*service not"
    ):
        hugging_face("lab/texts", streaming=True)
    assert without_network == ["hub.invalid"]
