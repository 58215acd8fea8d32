"""The benchmark of checksums, at a small size."""

import json
import subprocess
import sys

from helpers.checkout import CHECKOUT


def test_the_benchmark_times_reads_with_and_without_comparison(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench", "checksums", "--shape", "16,64,4,500"]
    command += ["--rounds", "2", "--json", str(file)]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    modes = [row["mode"] for row in json.loads(file.read_text())["rows"][1:]]
    reads = ("SAE in safetensors", "SAE in .pt", "batches of a store")
    assert modes == [f"{read}, {how}" for read in reads for how in ("compared", "not compared")]
