"""AuxK's kernels against its definition, and their work when few or no latents are dead."""

from typing import Any, NamedTuple

import pytest
import torch
from helpers.host_waits import host_waits
from helpers.strategies import normal, seeds, small_integers
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from saefast import AuxK, reference
from saefast.kernels.auxk import dead_latents as listing
from saefast.kernels.auxk.bounds import SCORES, bounds
from saefast.kernels.auxk.keep_largest import keep_largest
from saefast.kernels.auxk.operands import operands
from saefast.kernels.parts import whole_tiles
from saefast.train.auxk import (
    AuxGradients,
    DeadLatents,
    auxk_gradients,
    dead_latents,
    dense_gradients,
    sparse_gradients,
)


class Problem(NamedTuple):
    """Arguments of `auxk_gradients` that several tests share."""

    inputs: Tensor
    residual: Tensor
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor

    @classmethod
    def drawn(cls, data: Any = normal, n: int = 18) -> "Problem":
        """Draw more than one tile of tokens, latents and decoder width, the last one partial."""
        d, d_out, m = 12, 20, 40
        shapes = ((n, d), (n, d_out), (m, d), (m,), (m, d_out))
        return cls(*(data(s, seed, torch.float32) for seed, s in enumerate(shapes)))

    def found(self, dead: DeadLatents, settings: AuxK, **options: Any) -> AuxGradients:
        """Return the result of the kernels."""
        return auxk_gradients(*self, dead, settings, **options)

    def expected(self, dead: DeadLatents, settings: AuxK, **options: Any) -> AuxGradients:
        """Return the result of the reference's ops in float64, for only the dead latents."""
        real = dead.latents[: int(dead.number)]
        wide = (part.double() for part in self)
        return auxk_gradients(*wide, DeadLatents(real, dead.number), settings, **options)


def dead_of(count: int, settings: AuxK, m: int = 40) -> DeadLatents:
    """List `count` of m latents as dead."""
    idle = torch.zeros(m, dtype=torch.int64)
    idle[torch.randperm(m, generator=torch.Generator().manual_seed(count))[:count]] = 100
    return dead_latents(idle, settings)


@settings(max_examples=20, deadline=None)
@given(
    m=st.integers(1, 60), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=seeds, data=st.data()
)
def test_the_list_of_dead_latents(m: int, share: float, seed: int, data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, m))
    idle = torch.randint(0, 1000, (m,), generator=torch.Generator().manual_seed(seed))
    limit = int(1000 * (1 - share))
    latents, count = listing.dead_latents(idle, limit, capacity)
    dead = (idle >= limit).nonzero()[:capacity, 0]
    assert count.tolist() == [len(dead)]
    assert latents.tolist() == dead.tolist() + [m] * (capacity - len(dead))


@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 3),
    count=st.integers(0, 50),
    k=st.integers(1, 12),
    ranked=st.sampled_from(["positive", "signed", "absolute"]),
    seed=seeds,
)
@pytest.mark.parametrize("data", [normal, small_integers])
def test_keep_largest(n: int, count: int, k: int, ranked: str, seed: int, data: Any) -> None:
    """Up to 32 columns in registers, more by several reads; ties go to the lower column."""
    by: dict[str, Any] = {"signed": ranked != "positive", "absolute": ranked == "absolute"}
    scores = torch.full((16, 64), torch.nan)
    scores[:n, :count] = data((n, count), seed, torch.float32)
    scores[:n, :count:7] = -torch.inf
    expected = torch.zeros(16, whole_tiles(count))
    expected[:n, :count] = scores[:n, :count]
    reference.keep_largest(expected[:n, :count], k, **by)
    number = torch.tensor([count], dtype=torch.int32)
    largest = torch.zeros(7, 3)
    largest[SCORES.value, 1] = max(expected.nan_to_num(neginf=0.0).abs().flatten(), default=0.0)
    kept = keep_largest(scores, number, largest, n, k, **by, parts=2)
    assert_near(kept[:, :, : whole_tiles(count)], expected, largest[SCORES.value, 1])
    assert kept[:, :, whole_tiles(count) :].isnan().all()  # not written


def test_nan_ends_the_search_for_the_largest() -> None:
    scores = torch.full((16, 48), torch.nan)
    scores[:, ::2] = 1.0
    for count in (20, 48):
        number = torch.tensor([count], dtype=torch.int32)
        none = torch.empty(7, 3)
        kept = keep_largest(scores, number, none, 2, 3, signed=False, parts=1)[0, :2, :count]
        assert kept.isnan().nonzero()[:, 1].tolist() == [1, 3, 5] * 2
        assert (kept.nan_to_num() == 0).all()


def multiplier_of(bound: Tensor) -> Tensor:
    """Return the power of two that brings a bound between 2^13 and 2^14."""
    return torch.ldexp(torch.ones(()), 14 - torch.frexp(bound).exponent)


def assert_near(parts: Tensor, numbers: Tensor, bound: Tensor) -> None:
    """Assert that parts add up to numbers, and are zero where those are."""
    multiplier = multiplier_of(bound).double()
    assert_same_bits(parts, parts.half().float())
    lost = (parts.double().sum(0) / multiplier - numbers).abs()
    finite = numbers.isfinite()
    least = 2.0**-22 * numbers.double().abs().clamp(min=2.0**-16 * float(bound))
    assert (lost <= least)[finite].all()
    assert (parts[:, numbers == 0] == 0).all()


def test_two_parts_add_up_to_the_number_and_one_is_the_nearest() -> None:
    """Three of their four products leave at most 3 * 2^-22 + 2^-42 of the product."""
    problem = Problem.drawn()
    dead = dead_of(5, AuxK(dead_after=50, capacity=20))
    largest = bounds(problem.inputs, problem.residual, *problem[2::2], *dead, scale=1.0, parts=2)
    arguments = (*problem, *dead, largest)
    split = operands(*arguments, scale=1.0, normalised=False, parts=2)
    rounded = operands(*arguments, scale=1.0, normalised=False, parts=1)
    latents = dead.latents[:5]
    sources = (problem.inputs, problem.w_enc[latents], problem.w_dec[latents])
    for source, two, one in zip(sources, split, rounded, strict=False):
        rows, columns = source.shape
        written = whole_tiles(rows)
        whole = torch.zeros(written, two.shape[2])
        whole[:rows, :columns] = source
        assert_near(two[:, :written], whole, source.abs().max())
        assert_same_bits(one[0, :rows, :columns], source.bfloat16().float())
        assert (one[0, :written][whole == 0] == 0).all()
    x, w = split.inputs[:, :18].double(), split.encoder[:, :5].double()
    kept = sum(x[i][:, None] * w[j] for i in range(2) for j in range(2 - i))
    kept /= multiplier_of(sources[0].abs().max()) * multiplier_of(sources[1].abs().max())
    product = problem.inputs.double()[:, None] * problem.w_enc[latents].double()
    loss = ((kept[..., :12] - product) / product).abs()
    assert loss.max() <= 3 * 2.0**-22 + 2.0**-42
    assert loss.max() > 0  # one product is omitted


def test_bounds_are_the_largest_numbers() -> None:
    problem, settings = Problem.drawn(), AuxK(3, dead_after=50, capacity=25)
    dead = dead_of(19, settings)
    found = bounds(
        problem.inputs, problem.residual, *problem[2::2], *dead, scale=-2.0, parts=2
    ).amax(1)
    encoder, decoder = (weight[dead.latents[:19]] for weight in problem[2::2])
    expected = [
        problem.inputs.abs().max(),
        encoder.abs().max(),
        decoder.abs().max(),
        decoder.norm(dim=1).max(),
        2.0 * problem.residual.abs().max(),
    ]
    torch.testing.assert_close(found[:5], torch.stack(expected))
    assert found[5:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("exponents", [(40, -30, 20, -20), (-30, 25, -30, 10)])
def test_units_of_the_operands_do_not_matter(exponents: tuple[int, ...]) -> None:
    """Powers of two, far beyond the range of float16, change only exponents of the gradients."""
    settings = AuxK(3, dead_after=50, capacity=25, normalised=False)
    problem, dead = Problem.drawn(), dead_of(19, settings)
    x, error, encoder, decoder = (2.0**e for e in exponents)
    units = Problem(
        problem.inputs * x,
        problem.residual * error,
        problem.w_enc * encoder,
        problem.b_enc * (x * encoder),
        problem.w_dec * decoder,
    )
    found, expected = (f(dead, settings) for f in (units.found, units.expected))
    for actual, wanted in zip(found[2:], expected[2:], strict=True):
        apart = (actual[:19].double() - wanted).norm() / wanted.norm()
        assert apart < 1e-6


@pytest.mark.parametrize(
    ("count", "normalised", "signed", "absolute"),
    [
        (2, True, False, False),
        (2, False, True, False),
        (19, True, True, False),
        (40, False, False, False),
        (2, True, False, True),
        (40, False, False, True),
    ],
)
def test_gradients_equal_the_references(
    count: int, normalised: bool, signed: bool, absolute: bool
) -> None:
    """Fewer dead latents than k, a tile and a bit, and more than the capacity of 25."""
    settings = AuxK(3, dead_after=50, capacity=25, normalised=normalised, signed=signed)
    problem, dead = Problem.drawn(), dead_of(count, settings)
    listed = int(dead.number)
    assert listed == min(count, 25)
    options = {"scale": -2.0, "absolute": absolute}
    found, expected = (f(dead, settings, **options) for f in (problem.found, problem.expected))
    assert_same_bits(found.latents, dead.latents)
    torch.testing.assert_close(found.loss.double(), expected.loss, rtol=1e-6, atol=0)
    for actual, wanted in zip(found[2:], expected[2:], strict=True):
        apart = (actual[:listed].double() - wanted).norm() / wanted.norm()
        assert apart < 1e-6
        assert actual[listed:].isnan().all()  # not written


def test_dense_and_sparse_definitions_agree() -> None:
    problem, settings = Problem.drawn(), AuxK(3, signed=True)
    wide = [part.double() for part in problem]
    dead = (wide[0], wide[2][:9], wide[3][:9], wide[4][:9], wide[1])
    weight = torch.tensor(0.1, dtype=torch.float64)
    dense = dense_gradients(*dead, weight, settings)
    sparse = sparse_gradients(*dead, weight, settings)
    for actual, expected in zip(dense, sparse, strict=True):
        torch.testing.assert_close(actual, expected)


def test_integers_are_exact_and_ties_go_to_lower_latents() -> None:
    """Gradients reach 2^17, more than one part holds; the weight is a power of two."""
    problem = Problem.drawn(small_integers, n=16)
    settings = AuxK(3, dead_after=50, coefficient=1.0, normalised=False, capacity=25)
    dead = dead_of(19, settings)
    found, expected = (f(dead, settings) for f in (problem.found, problem.expected))
    assert expected.w_enc.abs().max() > 2.0**8
    for actual, wanted in zip(found[2:], expected[2:], strict=True):
        assert_same_bits(actual[:19].double(), wanted)


def test_operands_are_rounded_on_request() -> None:
    """Operands are off by 2^-9; all three dead latents may be active, so that none is swapped."""
    settings = AuxK(3, dead_after=50, capacity=25)
    problem, dead = Problem.drawn(), dead_of(3, settings)
    found = problem.found(dead, settings, rounded=True)
    expected = problem.expected(dead, settings)
    for actual, wanted in zip(found[2:], expected[2:], strict=True):
        apart = (actual[:3].double() - wanted).norm() / wanted.norm()
        assert 1e-5 < apart < 2e-2


def test_a_constant_error_has_no_weight() -> None:
    settings = AuxK(3, dead_after=50, capacity=25)
    problem, dead = Problem.drawn(), dead_of(3, settings)
    problem = problem._replace(residual=torch.full_like(problem.residual, 0.5))
    found = problem.found(dead, settings)
    assert found.loss.item() == 0.0
    for gradient in found[2:]:
        assert (gradient[:3] == 0).all()


@pytest.mark.parametrize("normalised", [False, True])
def test_without_a_dead_latent_nothing_is_written(
    normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocated memory is NaN at first, see conftest; the loss and 7 bounds of 3 programs are 0."""
    settings = AuxK(3, dead_after=50, capacity=25, normalised=normalised)
    problem, dead = Problem.drawn(), dead_of(0, settings)
    written = _written(monkeypatch)
    found = problem.found(dead, settings)
    assert found.loss.item() == 0.0
    assert found.latents.tolist() == [40] * 25
    for gradient in found[2:]:
        assert gradient.isnan().all()
    values = list(written())
    assert sum(tensor.numel() for tensor in values) == 1 + 7 * 3
    assert all((tensor == 0).all() for tensor in values)


def test_there_are_nine_launches_and_no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AuxK(3, dead_after=50, capacity=5)
    problem, idle = Problem.drawn(), torch.full((40,), 100)
    launched = []
    run = InterpretedFunction.run

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(self.fn.__name__)
        return run(self, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", counted)
    with host_waits() as waits:
        problem.found(dead_latents(idle, settings), settings)
    assert waits == []
    assert launched == [
        *("count_dead", "list_dead", "largest_numbers", "split_operands", "score_dead"),
        *("keep_largest_of_row", "miss_error", "score_gradients", "weight_gradients"),
    ]


def _written(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Record arguments of kernels; return a function that lists tensors with changed values."""
    seen: list[tuple[Tensor, Tensor]] = []
    run = InterpretedFunction.run

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        seen.extend((tensor, tensor.clone()) for tensor in tensors)
        return run(self, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", watched)

    def changed() -> list[Tensor]:
        return [
            tensor
            for tensor, before in seen
            if not torch.equal(tensor.nan_to_num(12345.0), before.nan_to_num(12345.0))
        ]

    return changed
