"""The README's numbers are those of the committed rows, and its example runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text()


@pytest.mark.parametrize("name", ["speed", "quality"])
def test_the_tables_are_made_of_committed_rows(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bench.table", name],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() in README


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example
    exec(compile(example.group(1), "README.md", "exec"), {})
    assert (tmp_path / "my-sae" / "cfg.json").exists()
