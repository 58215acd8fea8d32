"""The validity study in miniature, and the correlations that it reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import saefast
from saefast.studies import validity
from saefast.studies.validity import MEASURES, TRUTHS, ValidityRow, run_validity
from saefast.studies.validity_sizes import SIZES
from saefast.synthetic import nested_world
from saefast.train.config import TrainConfig


def test_longer_trainings_recover_more_and_score_higher(tmp_path: Path) -> None:
    result = run_validity(tmp_path, size="small", progress=False)
    size = SIZES["small"]
    grid = [row for row in result.rows if row.series == "grid"]
    points = [row for row in result.rows if row.series == "checkpoint"]
    assert len(grid) == len(size.widths) * len(size.tokens)
    assert [row.tokens for row in points] == list(size.checkpoints)
    short, long = (
        {name: np.mean([getattr(r, name) for r in grid if r.tokens == t]) for name in FIELDS}
        for t in size.tokens
    )
    for name in ("f1", "mcc", "explained_variance", "probing", "stability"):
        assert long[name] > short[name]
    ranks = {(rank.measure, rank.truth): rank for rank in result.ranks.rows}
    assert set(ranks) == {(m, t) for m in MEASURES for t in (*TRUTHS, "tokens")}
    assert ranks["explained_variance", "tokens"].correlation == 1
    assert ranks["explained_variance", "f1"].saes == 4
    assert pq.read_table(tmp_path / "validity.parquet").num_rows == len(result.rows)
    assert pq.read_table(tmp_path / "validity_ranks.parquet").num_rows == len(result.ranks.rows)
    assert result.as_text().count("\n") == len(result.rows) + len(result.ranks.rows) + 2
    assert [file.name for file in result.written] == ["validity.parquet", "validity_ranks.parquet"]


FIELDS = ("f1", "mcc", *MEASURES)


def test_the_true_dictionary_is_best_by_every_measure() -> None:
    size = SIZES["small"]
    # Wider than the number of features, so that each feature has a latent.
    wide = nested_world(size.features, 64, trees=size.trees, depth=1, rates=(4e-3, 0.2), seed=0)
    sae = saefast.SAE(64, size.features, variant="jumprelu", k=4)
    inverse = torch.linalg.pinv(wide.features.double()).T.float()
    with torch.no_grad():
        sae.W_dec.copy_(wide.features)
        sae.W_enc.copy_(inverse)
        assert wide.bias is not None
        sae.b_dec.copy_(wide.bias)
        sae.jump_threshold.fill_(0.5)
    planted = validity.PlantedRows(wide, size, 0)
    config = TrainConfig(latents=size.features, k=4, variant="jumprelu")
    row = planted.row("grid", config, sae.requires_grad_(False), sae)
    for name in ("f1", "mcc", "explained_variance", "probing", "stability"):
        assert getattr(row, name) == pytest.approx(1, abs=0.02), name
    assert row.no_absorption == pytest.approx(1, abs=0.05)
    assert row.main_f1 == pytest.approx(1, abs=0.05)


def row(number: int, series: str, **values: float) -> ValidityRow:
    common = dict.fromkeys(FIELDS, float(number))
    return ValidityRow(series=series, variant="topk", k=1, tokens=number, **{**common, **values})


def test_ranks_cover_saes_with_a_value() -> None:
    rows = [row(i, series) for i in range(6) for series in ("grid", "checkpoint")]
    rows[0] = row(0, "grid", main_f1=float("nan"), probing=9.0)
    ranks = {(rank.measure, rank.truth): rank for rank in validity._ranks(rows, 0)}
    assert ranks["main_f1", "f1"].saes == 5
    assert ranks["main_f1", "f1"].correlation == pytest.approx(1)
    probing = ranks["probing", "mcc"]
    assert probing.saes == 6
    assert probing.correlation == pytest.approx(1 / 7)
    assert probing.low < probing.correlation < probing.high
    assert np.isnan(ranks["probing", "tokens"].low)
    assert ranks["probing", "tokens"].correlation == 1


def test_a_shorter_training_equals_the_start_of_a_longer_one() -> None:
    size = SIZES["small"]
    config = asdict(validity._checkpoint(size, 2.0, 1024, 0))
    longer = asdict(validity._checkpoint(size, 2.0, 4096, 0))
    differ = {name for name in config if config[name] != longer[name]}
    assert differ == {"tokens", "name"}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: run_validity(size="huge"), ValueError, "small, quick, full"),
        (lambda: run_validity(size=3), TypeError, "size"),
        (lambda: run_validity(seed="a"), TypeError, "seed"),
    ],
)
def test_impossible_studies_raise(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()
