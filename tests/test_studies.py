"""Studies in miniature: what they are there to show shows."""

from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from saefast.studies import run_lowrank
from saefast.studies.lowrank import LowRankDesign
from saefast.studies.table import as_text

MANY = LowRankDesign(
    d=48,
    stable=24,
    stable_rate=0.06,
    rank=16,
    rare=256,
    rare_rate=0.004,
    latents=96,
    k=4,
    seeds=2,
    steps=250,
    batch_size=256,
    lr=5e-3,
)
FEW = replace(MANY, rare=32, rare_rate=0.032)


def test_many_rare_features_come_back_as_their_plane_only(tmp_path: Path) -> None:
    result = run_lowrank(tmp_path, designs=(MANY, FEW), rows=8192, least_rate=1e-3, progress=False)
    many, few = result.rows
    # Those outside of the plane are found in both, those inside only where they are few.
    for row in result.rows:
        assert row.stable_recovered == 1
        assert row.stable_back > 0.8
    assert few.plane_recovered > 0.8
    assert few.plane_back_close > 0.5
    assert many.plane_recovered < 0.25
    assert many.plane_back_close < 0.1
    # The plane is back all the same, far beyond what the covariance alone would do.
    assert many.overlap is not None
    assert many.overlap_truth is not None
    assert many.overlap_covariance is not None
    assert many.overlap_null == pytest.approx(1 / 3)
    assert many.overlap_null < many.overlap_covariance < many.overlap - 0.15
    assert many.overlap_truth > 0.75
    assert few.overlap is None  # fewer unstable features than the plane has dimensions
    assert many.keep_stable > 0.5 > 0.2 > many.keep_unstable
    assert pq.read_table(tmp_path / "lowrank.parquet").to_pylist() == [
        asdict(r) for r in result.rows
    ]
    assert result.table().count("\n") == 2


def test_the_low_rank_study_has_the_same_bits_on_any_number_of_threads(
    torch_threads: None,
) -> None:
    design = replace(MANY, rank=4, steps=40, seeds=2)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(run_lowrank(designs=(design,), rows=4096, progress=False).rows)
    assert found[0] == found[1]
    assert found[0][0].overlap is not None


def test_tables_are_aligned_and_say_what_is_missing() -> None:
    rows = [
        {"name": "a", "value": 0.12345, "other": None},
        {"name": "long", "value": 2, "other": 1},
    ]
    assert as_text(rows).splitlines() == [
        "name  value  other",
        "   a  0.123      -",
        "long      2      1",
    ]
    assert as_text([]) == "no rows"
