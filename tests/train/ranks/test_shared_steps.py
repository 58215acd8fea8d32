"""Steps of several ranks have the bits of one process."""

from typing import Any

import pytest
import torch
from helpers.checkout import CHECKOUT
from helpers.process_steps import CASES
from helpers.rank_processes import torchrun
from helpers.shared_steps import (
    PENALTIES,
    SELECTING,
    assert_ranks_equal_one_process,
    copied,
    rows,
    with_gradients_of_thresholds,
    with_thresholds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import SAE, AuxK, FusedStep, Penalty, Rules
from saefast.train.ranks import Ranks, Simulated

FLOAT32, FLOAT64 = torch.float32, torch.float64
RANKS = [2, 4, 8, 16]


def sae_of(d: int, m: int, k: int, dtype: torch.dtype = FLOAT32, **arguments: Any) -> SAE:
    return SAE(d, m, k=k, seed=3, dtype=dtype, **arguments)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from([FLOAT32, FLOAT64]))
    size = draw(st.sampled_from(RANKS if dtype == FLOAT32 else RANKS[:3]))
    m = draw(st.sampled_from([5, 64, 100, 320, 700]))
    return {
        "size": size,
        "dtype": dtype,
        "d": draw(st.sampled_from([16, 17, 24, 63, 80])),
        "m": m,
        "k": draw(st.integers(1, min(m, 7))),
        "n": draw(st.sampled_from([1, 7, 32, 65])),
        "clip": draw(st.sampled_from([None, 0.3])),
        "auxk": draw(st.sampled_from([None, AuxK(k=3, dead_after=40, capacity=50)])),
        "seed": draw(st.integers(0, 9)),
    }


@st.composite
def selecting_problems(draw: st.DrawFn) -> dict[str, Any]:
    problem = draw(problems())
    precisions = ["exact", "bf16", "bf16_weights"] if problem["dtype"] == FLOAT32 else ["exact"]
    return problem | {
        "variant": draw(st.sampled_from(SELECTING)),
        "penalties": draw(st.sampled_from([(), PENALTIES, PENALTIES[4:5]])),
        "precision": draw(st.sampled_from(precisions)),
    }


@given(selecting_problems())
@settings(max_examples=80)
def test_variants_that_select_have_the_bits_of_one_process(problem: dict[str, Any]) -> None:
    d, m, k, n, dtype = (problem[name] for name in ("d", "m", "k", "n", "dtype"))
    data = rows(4, n, d, problem["seed"], dtype)
    most = min(m, k + 3)
    assert_ranks_equal_one_process(
        sae_of(d, m, k, dtype, variant=problem["variant"]),
        data,
        [most, (most + k) // 2, k, k],
        problem["size"],
        lr=1e-2,
        rules=Rules(clip=problem["clip"], penalties=problem["penalties"]),
        auxk=problem["auxk"],
        precision=problem["precision"],
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "auxk": {"auxk": AuxK(k=6, dead_after=60)},
    "auxk as in SAELens": {"auxk": AuxK(dead_after=60, normalised=False, signed=True)},
    "clipped auxk": {"auxk": AuxK(k=6, dead_after=60), "rules": Rules(clip=0.1)},
    "penalties": {"rules": Rules(penalties=PENALTIES, clip=0.5), "auxk": AuxK(dead_after=60)},
    "penalty of signs": {"rules": Rules(penalties=(Penalty("decoder", "mean_abs", 3.0),))},
    "free norms": {"rules": Rules(unit_norm=False, penalties=PENALTIES[:1])},
    "free norms with auxk": {"rules": Rules(unit_norm=False), "auxk": AuxK(dead_after=60)},
    "parallel part": {"rules": Rules(remove_parallel=False, clip=1.0)},
    "frozen encoder": {"rules": Rules(frozen="encoder", clip=0.5), "auxk": AuxK(dead_after=60)},
    "frozen decoder": {"rules": Rules(frozen="decoder", clip=0.5), "auxk": AuxK(dead_after=60)},
    "bf16": {"precision": "bf16"},
    "bf16 weights": {"precision": "bf16_weights", "rules": Rules(clip=0.5)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_rule_has_the_bits_of_one_process(name: str) -> None:
    arguments = {"lr": 1e-2} | SETTINGS[name]
    assert_ranks_equal_one_process(
        sae_of(40, 300, 4), rows(4, 50, 40, 0, FLOAT32), [6, 5, 4, 4], 4, **arguments
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "abstopk": {"variant": "abstopk"},
    "by norm": {"by_norm": True},
    "batchtopk": {"variant": "batchtopk"},
    "matryoshka": {"variant": "matryoshka"},
    "transcoder": {"d_out": 24},
}


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_bits_of_one_process(name: str, size: int) -> None:
    sae = sae_of(40, 300, 4, **VARIANTS[name])
    data = rows(6, 50, 40, 1, FLOAT32)
    if sae.transcodes:
        data = [(x, x[:, :24] ** 2) for x in data]
    settings = {"rules": Rules(clip=0.5, unit_norm=not sae.by_norm), "auxk": AuxK(dead_after=60)}
    assert_ranks_equal_one_process(sae, data, [6, 6, 5, 4, 4, 4], size, lr=1e-2, **settings)


@st.composite
def threshold_problems(draw: st.DrawFn) -> dict[str, Any]:
    return draw(problems()) | {
        "variant": draw(st.sampled_from(["relu", "jumprelu"])),
        "bias": draw(st.sampled_from([0.0, -8.0, -15.0])),
        "penalties": draw(st.sampled_from([(), PENALTIES])),
    }


@given(threshold_problems())
@settings(max_examples=40)
def test_relu_and_jumprelu_have_the_bits_of_one_process(problem: dict[str, Any]) -> None:
    d, m, k, n, dtype = (problem[name] for name in ("d", "m", "k", "n", "dtype"))
    assert_ranks_equal_one_process(
        with_thresholds(problem["variant"], problem["bias"], d, m, k, dtype),
        rows(4, n, d, problem["seed"], dtype),
        [k] * 4,
        problem["size"],
        with_gradients_of_thresholds,
        lr=1e-2,
        rules=Rules(clip=problem["clip"], penalties=problem["penalties"]),
        auxk=problem["auxk"],
    )


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("variant", ["relu", "jumprelu"])
def test_dense_and_sparse_steps_have_the_bits_of_one_process(variant: str, size: int) -> None:
    data = rows(6, 50, 40, 1, FLOAT32)
    dense, sparse = (
        assert_ranks_equal_one_process(
            with_thresholds(variant, bias, 40, 300, 4, FLOAT32),
            data,
            [4] * 6,
            size,
            with_gradients_of_thresholds,
            lr=1e-2,
            rules=Rules(clip=0.5),
            auxk=AuxK(k=6, dead_after=60),
        )
        for bias in (0.0, -12.0)
    )
    assert [result.path for result in dense] == ["autograd"] * 6
    assert [result.path for result in sparse] == ["autograd"] + ["fused"] * 5
    assert all(result.fired.sum() > 9 for result in sparse)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_have_the_bits_of_one_process(size: int) -> None:
    """Every variant and dtype, with and without AuxK, clipping and penalties, by gloo."""
    done = torchrun(size, "-m", "helpers.process_steps", cwd=CHECKOUT / "tests")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{len(CASES)} trainings compared"]


def test_latents_die_and_are_revived() -> None:
    """The comparisons of AuxK above would be trivial without dead latents."""
    step = FusedStep(sae_of(40, 300, 4), lr=1e-2, auxk=AuxK(k=6, dead_after=60))
    losses = [float(step(x).auxk) for x in rows(4, 50, 40, 0, FLOAT32)]
    assert losses[0] == 0
    assert losses[-1] > 0


def test_a_batch_of_ties_goes_to_the_lowest_latents() -> None:
    sae = sae_of(16, 200, 3)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc[:1].expand(200, 16))  # all latents have the same score
    assert_ranks_equal_one_process(sae, rows(1, 20, 16, 0, FLOAT32), [3], 2, lr=1e-2)


@pytest.mark.parametrize("auxk", [None, AuxK(k=6, dead_after=10_000)], ids=["plain", "auxk"])
def test_ranks_exchange_codes_and_norms_alone(auxk: AuxK | None) -> None:
    """They exchange the bytes of the design: 24 n k + 8 m, and less that grows with n or d alone.

    AuxK exchanges nothing while no latent is dead.
    """
    n, d, m, k, size = 64, 64, 512, 4, 4
    sae, (x,) = sae_of(d, m, k), rows(1, n, d, 0, FLOAT32)
    group = Simulated(size)
    group.run(lambda ranks: FusedStep(copied(sae), auxk=auxk, ranks=ranks)(x).path)
    codes, norms, squares_of_rows = 24 * n * k, 8 * m, 8 * n
    gradient_of_inputs, b_dec = 4 * (m // 64 * d // size + d), 4 * d
    others = (size - 1) / size
    total = codes + norms + squares_of_rows + gradient_of_inputs + b_dec
    assert group.received == [total * others] * size
    assert group.calls == [9] * size


@pytest.mark.parametrize(
    ("arguments", "changes", "size", "message"),
    [
        ({"variant": "gated"}, {}, 2, "several ranks train topk, .* got gated; train it by one"),
        ({}, {"rules": Rules(tether=0.9)}, 2, "several ranks do not train with a tether"),
        ({}, {}, 3, "ranks of an SAE in float32 must be a power of two up to 16, .* got 3"),
        ({"dtype": FLOAT64}, {}, 16, "ranks of an SAE in float64 must be .* up to 8, .* got 16"),
        ({"d": 6}, {}, 8, "the number of ranks must be at most the width 6, got 8"),
    ],
)
def test_settings_that_cannot_be_shared_are_refused(
    arguments: dict[str, Any], changes: dict[str, Any], size: int, message: str
) -> None:
    sae = sae_of(**({"d": 20, "m": 70, "k": 2} | arguments))
    with pytest.raises(ValueError, match=message):
        Simulated(size).run(lambda ranks: FusedStep(sae, ranks=ranks, **changes))


def test_an_error_of_one_rank_ends_all() -> None:
    def work(ranks: Ranks) -> None:
        step = FusedStep(sae_of(20, 130, 2), ranks=ranks)
        if ranks.rank == 1:
            step.sae.W_enc.data[0, 0] = torch.nan
        step(rows(1, 8, 20, 0, FLOAT32)[0])

    with pytest.raises(ValueError, match="must be finite"):
        Simulated(2).run(work)
