"""The benchmark of stability, at a small size."""

import json
import subprocess
import sys

from helpers.checkout import CHECKOUT


def test_the_benchmark_runs_and_its_rivals_agree(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench", "stability", "--shape", "16,500,1,3"]
    command += ["--rounds", "2", "--json", str(file)]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads(file.read_text())["rows"]
    assert all(row["agrees"] and row["ms"] > 0 for row in rows)
    modes = {(row["rival"], row["mode"]) for row in rows}
    for rival in ("saefast", "numpy"):
        assert {(rival, "matches given"), (rival, "from weights")} <= modes
