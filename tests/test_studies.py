"""Studies in miniature have their published results."""

import gzip
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import saefast
from saefast import Dictionary, train_saes
from saefast.nulls.cosines import BestOfRandom
from saefast.sae import VARIANTS
from saefast.studies import run_digits, run_lowrank, run_recovery
from saefast.studies.digits import MNIST, DigitsSetting, WeightPenalty, _compared
from saefast.studies.idx import read_idx_images
from saefast.studies.lowrank import LowRankDesign
from saefast.studies.recovery import BASELINES, SIZES, RecoverySize, _configs
from saefast.studies.result import StudyResult
from saefast.synthetic import sphere_world

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


def test_many_rare_features_recur_only_as_their_subspace(tmp_path: Path) -> None:
    result = run_lowrank(
        tmp_path, designs=(MANY, FEW), rows=8192, least_rates=(1e-3,), progress=False
    )
    many, few = result.rows
    # Features outside of the subspace are found in both, those inside only if they are few.
    for row in result.rows:
        assert row.stable_recovered == 1
        assert row.stable_back > 0.8
    assert few.subspace_recovered > 0.8
    assert few.subspace_back_close > 0.5
    assert many.subspace_recovered < 0.25
    assert many.subspace_back_close < 0.1
    # The subspace recurs nevertheless, far beyond the null of the covariance.
    assert many.overlap is not None
    assert many.overlap_truth is not None
    assert many.overlap_covariance is not None
    assert many.overlap_null == pytest.approx(1 / 3)
    assert many.overlap_null < many.overlap_covariance < many.overlap - 0.15
    assert many.overlap_truth > 0.75
    assert few.overlap is None  # fewer unstable features than dimensions of the subspace
    assert many.keep_stable > 0.5 > 0.2 > many.keep_unstable
    assert pq.read_table(tmp_path / "lowrank.parquet").to_pylist() == [
        asdict(r) for r in result.rows
    ]
    assert result.as_text().count("\n") == 2


def test_the_low_rank_study_has_the_same_bits_on_any_number_of_threads(
    torch_threads: None,
) -> None:
    design = replace(MANY, rank=4, steps=40, seeds=2)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(
            run_lowrank(designs=(design,), rows=4096, least_rates=(0, 1e-2), progress=False).rows
        )
    assert found[0] == found[1]
    every, often = found[0]
    assert (every.least_rate, often.least_rate) == (0, 1e-2)
    assert every.explained == often.explained
    assert every.alive > often.alive
    assert every.overlap is not None


@dataclass(frozen=True)
class NamedValue:
    """A row of a study."""

    name: str
    value: float
    other: int | None


def test_tables_are_aligned_and_mark_missing_values() -> None:
    rows = (NamedValue("a", 0.12345, None), NamedValue("long", 2, 1))
    assert StudyResult(rows=rows).as_text().splitlines() == [
        "name  value  other",
        "   a  0.123      -",
        "long      2      1",
    ]
    assert StudyResult(rows=()).as_text() == "no rows"


TINY = RecoverySize(
    features=48, d=24, l0=2.0, tokens=(5_000, 50_000), batch_size=256, lr=1e-2, dead_after=10_000
)


def test_recovery_distinguishes_found_features_from_explained_variance(tmp_path: Path) -> None:
    result = run_recovery(
        tmp_path, size=TINY, firing=("constant",), variants=("topk",), rows=4096, progress=False
    )
    found = {(row.variant, row.rules, row.tokens): row for row in result.rows}
    assert len(found) == 2 * (1 + 3)
    trained, frozen = found["topk", "trained", 50_000], found["batchtopk", "frozen decoder", 50_000]
    assert trained.recovered > 0.8 > 0.2 > frozen.recovered
    assert found["topk", "trained", 5_000].best_cosine < trained.best_cosine
    # Frozen features stay at chance; tethered ones stay within their cap.
    assert frozen.best_cosine == pytest.approx(frozen.best_cosine_null, abs=0.04)
    assert found["batchtopk", "frozen encoder", 50_000].best_cosine > frozen.best_cosine
    assert trained.explained > found["batchtopk", "soft-frozen decoder", 50_000].explained
    assert frozen.explained > 0.2
    assert pq.read_table(tmp_path / "recovery.parquet").num_rows == 8


def test_frozen_sides_keep_their_initial_weights() -> None:
    world = sphere_world(48, 24, l0=2.0)
    configs = list(_configs(TINY, 2048, ("batchtopk",), "batchtopk", seed=0))
    saes = dict(zip(BASELINES, train_saes(world, configs, progress=False), strict=True))
    first = saefast.SAE(24, 48, k=2, seed=0).W_dec.detach()
    kept = (saes["frozen decoder"].W_dec, saes["frozen encoder"].W_enc)
    for side in kept:
        assert torch.nn.functional.cosine_similarity(side, first).min() > 1 - 1e-6
    caps = torch.nn.functional.cosine_similarity(saes["soft-frozen decoder"].W_dec, first)
    assert caps.min() > 0.8 - 1e-5
    assert torch.nn.functional.cosine_similarity(saes["trained"].W_dec, first).min() < 1 - 1e-3


@pytest.mark.parametrize("name", SIZES)
def test_sizes_can_be_trained(name: str) -> None:
    size = SIZES[name]
    world = sphere_world(size.features, size.d, l0=size.l0, firing="log_uniform")
    assert world.firing_rate.max() < 1
    assert len(list(_configs(size, size.tokens[0], VARIANTS, "topk", 0))) == len(VARIANTS) + 3


def test_the_grid_on_digits_counts_pairs_and_alive_latents(tmp_path: Path) -> None:
    penalties = (WeightPenalty("none", "fro", 0.0), WeightPenalty("l2", "fro_squared", 0.05))
    setting = DigitsSetting(penalties, sparsity=0.4, epochs=5)
    result = run_digits(tmp_path, setting=setting, seeds=2, progress=False)
    assert len(result.rows) == 8
    for row in result.rows:
        assert 0 < row.alive <= 128
        assert row.always + row.sometimes + row.never == pytest.approx(1)
        assert row.shared == pytest.approx(row.always)  # of two seeds
        assert row.mmcs_null == pytest.approx(BestOfRandom(128, 64, absolute=True).mean(), abs=0.03)
    free = {row.penalty: row for row in result.rows if not row.unit_norm and row.tied}
    assert free["l2"].explained < free["none"].explained
    assert pq.read_table(tmp_path / "digits.parquet").num_rows == 8


def planted_pair(same: int, signs: bool = False) -> tuple[Dictionary, Dictionary]:
    """Make two dictionaries of 8 orthogonal features in random order, some of them shared."""
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    ours, theirs = basis[:8].clone(), basis[:8].clone()
    theirs[same:] = basis[8 : 16 - same]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    theirs = (-theirs if signs else theirs)[order]
    return Dictionary(ours, ours), Dictionary(theirs, theirs)


@pytest.mark.parametrize("signs", [False, True])
def test_shared_features_equal_the_planted_ones(signs: bool) -> None:
    a, b = planted_pair(5, signs)
    found = _compared(a, b)
    assert found.shared.tolist() == [True] * 5 + [False] * 3
    assert found.paired == pytest.approx(5 / 8)
    assert found.mmcs == pytest.approx(5 / 8, abs=1e-6)


def test_a_feature_with_another_encoder_is_not_shared() -> None:
    a, b = planted_pair(8)
    turned = replace(b, W_enc=b.W_enc.roll(1, 0))
    assert not _compared(a, turned).shared.any()
    assert _compared(a, turned).paired == 1
    dead = replace(a, firing_rate=torch.tensor([0.0, 0.0, 1, 1, 1, 1, 1, 1]))
    found = _compared(dead, b)
    assert found.shared.tolist() == [False] * 2 + [True] * 6
    assert found.mmcs == pytest.approx(1)


def idx_bytes(images: np.ndarray) -> bytes:
    return bytes((0, 0, 8, 3)) + np.array(images.shape, ">u4").tobytes() + images.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read(tmp_path: Path, images: np.ndarray, packed: bool) -> None:
    file = tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed)
    content = idx_bytes(images)
    file.write_bytes(gzip.compress(content) if packed else content)
    for path in (file, tmp_path, str(file)):
        rows = read_idx_images(path)
        assert rows.dtype == torch.float32
        assert torch.equal(rows * 255, torch.from_numpy(images.reshape(5, 12)).float())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: b"", "begins with"),
        (lambda c: b"\x89PNG" + c[4:], "begins with"),
        (lambda c: c[:3] + b"\x01" + c[4:], "begins with"),  # labels
        (lambda c: c[:-1], "holds 59"),
        (lambda c: c + b"\0", "holds more"),
        (lambda c: c[:4] + b"\xff" * 12 + c[16:], "header says 4294967295"),
        (lambda c: c[:4] + bytes(12), "header says 0"),
        (lambda c: gzip.compress(c)[:-9], "truncated or damaged"),
        (lambda c: gzip.compress(c)[:12] + bytes(30), "truncated or damaged"),
        (lambda c: gzip.compress(c + bytes(9)), "holds more"),
    ],
)
def test_errors_name_broken_idx_files(
    tmp_path: Path, images: np.ndarray, spoil: Callable[[bytes], bytes], words: str
) -> None:
    file = tmp_path / "images"
    file.write_bytes(spoil(idx_bytes(images)))
    with pytest.raises(ValueError, match=words) as error:
        read_idx_images(file)
    assert str(file) in str(error.value)


def test_errors_name_missing_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        read_idx_images(tmp_path)


WRONG = DigitsSetting((WeightPenalty("x", "l3", 1.0),), sparsity=0.1, epochs=1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: run_lowrank(rows=0), ValueError, "rows"),
        (lambda: run_lowrank(least_rates=(0.0, 1.0)), ValueError, "least_rates"),
        (lambda: run_recovery(size="huge"), ValueError, "small, paper"),
        (lambda: run_recovery(size=3), TypeError, "size"),
        (lambda: run_recovery(variants=("best",)), ValueError, "variants"),
        (lambda: run_digits(seeds=1), ValueError, "seeds"),
        (lambda: run_digits(setting=replace(MNIST, epochs=0)), ValueError, "epochs"),
        (lambda: run_digits(setting=WRONG), ValueError, "penalties"),
        (lambda: run_digits(setting=3), TypeError, "setting"),
    ],
)
def test_impossible_studies_raise(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()
