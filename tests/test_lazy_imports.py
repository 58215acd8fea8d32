"""Modules that `import saefast` imports, and those imported on first use."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import saefast


def test_subpackages_are_imported_on_first_use(tmp_path: Path) -> None:
    script = (
        "import sys, saefast\n"
        "before = [name for name in saefast._ROOMS if f'saefast.{name}' in sys.modules]\n"
        "rooms = [getattr(saefast, name).__name__ for name in saefast._ROOMS]\n"
        "saefast.integrations.sae_bench\n"
        "print(before, *rooms)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["[]", *(f"saefast.{name}" for name in saefast._ROOMS)]


def test_other_names_raise() -> None:
    with pytest.raises(AttributeError, match="'saefast' has no attribute 'studdies'"):
        _ = saefast.studdies
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = saefast.integrations.nothing


def test_a_checkout_before_the_package_is_named(tmp_path: Path) -> None:
    """Python started in a checkout after `pip install .` finds the folder without _native."""
    source = Path(saefast.__file__).parent
    ignored = shutil.ignore_patterns("_native*", "__pycache__")
    shutil.copytree(source, tmp_path / "saefast", ignore=ignored)
    result = subprocess.run(
        [sys.executable, "-c", "import saefast"], cwd=tmp_path, capture_output=True, text=True
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'saefast'} holds no compiled module")
    assert last.endswith("start Python in another folder or with -P")
