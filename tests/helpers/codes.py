"""Random codes, and comparisons with their definitions."""

import torch
from helpers.strategies import (
    Shape,
    generator,
    normal,
    seeds,
    small_integers,
)
from helpers.tolerance import assert_same_bits
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast import SparseCode, ThresholdCode, reference
from saefast.ops.batch_topk import BatchCode


def draw_indices(shape: Shape, seed: int) -> Tensor:
    """Draw [n, k] different latents in each row, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape.n, shape.m, generator=generator).argsort(dim=1)[:, : shape.k]


def assert_top_k(
    code: saefast.SparseCode,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    *,
    absolute: bool = False,
) -> None:
    """Assert that no omitted score exceeds a kept one beyond the rounding of one exact score."""
    wide = [t if t is None else t.double() for t in (x, weight, bias, scale)]
    truth = reference.scores(*wide)
    magnitude = reference.scores(*[t if t is None else t.abs() for t in wide])
    compute = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    rounding = torch.finfo(compute).eps / 2 * (x.shape[1] / 16 + 8) * magnitude.amax(1)
    kept = truth.gather(1, code.indices)
    ranks = reference.magnitudes(truth) if absolute else truth
    smallest = ranks.gather(1, code.indices).amin(1)
    rest = ranks.scatter(1, code.indices, -torch.inf)
    assert (smallest >= rest.amax(1) - 2 * rounding).all()
    storing = torch.finfo(x.dtype).eps * kept.abs().amax(1)
    assert ((code.values.double() - kept).abs().amax(1) <= rounding + storing).all()
    of_code = code.values.abs() if absolute else code.values
    ordered = of_code[:, :-1] >= of_code[:, 1:]
    assert ordered.all()
    assert all(len(set(row)) == len(row) for row in code.indices.tolist())


keep_of_batch = torch.ops.saefast.keep_of_batch


@st.composite
def codes(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Draw rows of descending positive values and zeros; ties within and between rows."""
    n, width = draw(st.integers(0, 9)), draw(st.sampled_from([1, 2, 15, 16, 17, 33, 64]))
    data = draw(st.sampled_from([normal, small_integers]))
    scale = draw(st.sampled_from([1.0, 1e-42, 1e30]))  # the first gives denormal numbers
    seed = draw(seeds)
    values = (data((n, width), seed, dtype) * scale).relu().sort(dim=1, descending=True).values
    indices = torch.randint(0, 1000, (n, width), generator=generator(seed + 1))
    return values, torch.where(values > 0, indices, 0)


def assert_keeps(values: Tensor, indices: Tensor, wanted: int) -> None:
    """Compare with a loop that keeps one value after another, the largest first."""
    expected = torch.zeros_like(values)
    order = sorted(
        (-value, place) for place, value in enumerate(values.flatten().tolist()) if value > 0
    )
    places = [place for _, place in order[:wanted]]
    for place in places:
        expected.view(-1)[place] = values.view(-1)[place]
    kept_values, kept_indices, kept, smallest = keep_of_batch(values, indices, wanted)
    assert_same_bits(kept_values, expected)
    assert_same_bits(kept_indices, torch.where(expected > 0, indices, 0))
    assert_same_bits(kept, (expected > 0).sum(1))
    assert float(smallest) == (float(expected.view(-1)[places[-1]]) if places else 0.0)
    for mine, its in zip(
        (kept_values, kept_indices, kept, smallest),
        reference.keep_of_batch(values, indices, wanted),
        strict=True,
    ):
        assert_same_bits(mine, its)


def dense_batch_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the definition: [n, m] with zeros if omitted, the smallest kept, the counts."""
    flat = scores.flatten()
    kept = torch.sort(flat, descending=True, stable=True).indices[: scores.shape[0] * k]
    kept = kept[flat[kept] > 0]
    dense = torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(scores)
    smallest = flat[kept].amin() if len(kept) else flat.new_zeros(())
    return dense, smallest, (dense > 0).sum(1)


def assert_right(actual: BatchCode, scores: Tensor, k: int) -> None:
    dense, smallest, counts = dense_batch_topk(scores, k)
    n, m = scores.shape
    (values, indices), threshold, actual_counts = actual
    assert_same_bits(actual_counts, counts)
    assert_same_bits(threshold, smallest)
    assert values.shape == indices.shape == (n, max([1, *counts.tolist()]))
    filled = torch.arange(values.shape[1]) < counts[:, None]
    assert (values[~filled] == 0).all()
    assert (indices[~filled] == 0).all()
    summed = torch.zeros(n, m, dtype=values.dtype).scatter_add(1, indices, values)
    assert_same_bits(summed, dense)
    order = torch.sort(dense, dim=1, descending=True, stable=True).indices[:, : values.shape[1]]
    assert_same_bits(indices, torch.where(filled, order, 0))


def assert_same_code(
    actual: SparseCode | ThresholdCode, expected: SparseCode | ThresholdCode
) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def selected(scores: Tensor, threshold: Tensor, width: int, dtype: torch.dtype) -> ThresholdCode:
    """Return the definition for finite scores: a product with the identity is exact."""
    identity = torch.eye(scores.shape[1], dtype=scores.dtype)
    code = reference.threshold_encode(scores, identity, threshold=threshold, width=width)
    return code._replace(values=code.values.to(dtype))


def at_the_scores(scores: Tensor, seed: int) -> Tensor:
    """Return [m] thresholds equal to one row's scores, or the next number below or above."""
    n, m = scores.shape
    if n == 0:
        return torch.zeros(m, dtype=scores.dtype)
    rows = torch.randint(n, (1, m), generator=generator(seed))
    at = scores.gather(0, rows)[0]
    step = torch.randint(-1, 2, (m,), generator=generator(seed + 1))
    return torch.where(step == 0, at, torch.nextafter(at, step * torch.inf).nan_to_num())
