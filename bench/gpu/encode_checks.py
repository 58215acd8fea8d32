"""Checks of the GPU's encodes at small and odd shapes, against float64, and of their determinism.

A near-tie, which two correct sums decide differently, fails no check: a choice may be off by the
error bound of float32 sums, and results that depend on a choice are compared for the same choice.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, Weights
from bench.gpu.encodes import scores_are_the_same
from bench.gpu.finding import UNIT, Finding
from saefast import SparseCode, ThresholdCode, reference
from saefast.ops import gpu
from saefast.ops.encode_gpu import encode_rounded, threshold_rounded
from saefast.ops.gpu_screens import GpuScreen

SCREENS = (
    GpuScreen("fused", "float16"),
    *(
        GpuScreen(engine, units)
        for engine, units in product(("chunked", "fused"), ("bfloat16", "tfloat32", "float32"))
    ),
)


def _selects() -> list[str]:
    """Return the implementations of lists that are available."""
    return ["triton", "cuda"] if gpu.has_cuda() else ["triton"]


def _encode(
    x: Tensor, weights: Weights, scale: Tensor, k: int, screen: GpuScreen, by: str, *, exact: bool
) -> SparseCode:
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_columns", weights.w_enc, screen.product, scale)
    bias = weights.b_enc
    return encode_rounded(x, weights.w_enc, bias, scale, k, exact, screen, left, right, by)


def exact_encodes(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check that the top k agrees with float32, with the same bits from every screen."""
    scale = 0.5 + weights.w_enc.norm(dim=1)
    first = None
    for screen, by in product(SCREENS, _selects()):
        codes = [_encode(x, weights, scale, shape.k, screen, by, exact=True) for _ in range(2)]
        first = first or codes[0]
        same = all(map(torch.equal, *codes)) and all(map(torch.equal, first, codes[0]))
        apart = apart_from(codes[0], x, weights.w_enc, weights.b_enc, scale, 1.0)
        figures = {"apart": apart, "same_bits": float(same)}
        yield Finding(f"exact {screen} {by}", shape, apart <= 1.0 and same, figures)


def rounded_encodes(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check the top k of products of rounded operands; tensor cores may truncate when they add."""
    scale = torch.ones_like(weights.b_enc)
    rounded = x.bfloat16().float(), weights.w_enc.bfloat16().float()
    for screen, by in product(SCREENS, _selects()):
        if screen.product != "bfloat16":
            continue
        codes = [_encode(x, weights, scale, shape.k, screen, by, exact=False) for _ in range(2)]
        same = all(map(torch.equal, *codes))
        apart = apart_from(codes[0], *rounded, weights.b_enc, scale, 2.5)
        figures = {"apart": apart, "same_bits": float(same)}
        yield Finding(f"bf16 {screen.engine} {by}", shape, apart <= 1.0 and same, figures)


def apart_from(
    code: SparseCode,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    roundings: float,
    *,
    rectified: bool = False,
) -> float:
    """Return the largest error of values and choices in units of the bound for float32 sums.

    A value may differ from the float64 score of its index by the bound, a choice from the k-th best
    score by twice the bound. `rectified`: values of negative scores are zero.
    """
    values, indices = code.values.double(), code.indices
    ordered = indices.sort(dim=1).values
    sound = values.isfinite().all() and (values[:, 1:] <= values[:, :-1]).all()
    sound = sound and (ordered[:, 1:] > ordered[:, :-1]).all()
    if not (sound and indices.min() >= 0 and indices.max() < weight.shape[0]):
        return float("inf")
    wide_x, wide_weight = x.double(), weight.double()
    truth = reference.scores(wide_x, wide_weight, bias.double(), scale.double())
    allowed = _allowed(wide_x, wide_weight, bias, scale, roundings)
    kept = truth.gather(1, indices)
    expected = kept.relu() if rectified else kept
    of_values = (values - expected).abs() / allowed.gather(1, indices)
    worst = truth.topk(indices.shape[1], dim=1).values[:, -1:]
    of_choices = (worst - kept) / (2 * allowed.amax(1, keepdim=True))
    return float(torch.maximum(of_values.amax(), of_choices.amax()))


def _allowed(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, roundings: float) -> Tensor:
    """Return the error bound [n, m] of float32 sums of float64 operands."""
    sizes: Tensor = x.norm(dim=1, keepdim=True) * (weight.norm(dim=1) * scale)
    return roundings * (x.shape[1] + 32) * UNIT * sizes + 16 * UNIT * (bias * scale).abs()


def integer_encodes(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check that the result is the reference's bit for bit if every sum is exact, ties included."""
    generator = torch.Generator().manual_seed(1)
    x, w_enc, b_enc, scale = (
        torch.randint(-3, 4, like.shape, generator=generator).to(like)
        for like in (x, weights.w_enc, weights.b_enc, weights.b_enc)
    )
    scale = scale.abs()
    expected = reference.topk_encode(x, w_enc, b_enc, k=shape.k, scale=scale)
    weights = Weights(w_enc, b_enc, w_enc, b_enc)
    for screen, by, exact in product(SCREENS, _selects(), (True, False)):
        if screen.product == "float16" and not exact:
            continue
        code = _encode(x, weights, scale, shape.k, screen, by, exact=exact)
        same = torch.equal(code.indices, expected.indices)
        same = same and torch.equal(code.values, expected.values)
        name = f"integers {'exact' if exact else 'rounded'} {screen} {by}"
        yield Finding(name, shape, same, {})


def thresholds(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check the latents above a threshold against float64; every screen must give the same bits.

    A code with less room is the beginning of the code with room for all.

    Yields:
        A finding for each screen.
    """
    scale = 0.5 + weights.w_enc.norm(dim=1)
    best = saefast.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k, scale=scale).values
    limit = best[:, -1].median().expand(shape.m)
    wide = x.double(), weights.w_enc.double(), weights.b_enc.double(), scale.double()
    truth, allowed = reference.scores(*wide), _allowed(*wide, 1.0)
    first = None
    for screen in SCREENS:
        codes = [_above(x, weights, scale, limit, room, screen) for room in (shape.m, 2 * shape.k)]
        first = first or codes[0]
        values, indices, counts = codes[0]
        room = codes[1].values.shape[1]
        same = all(map(torch.equal, first, codes[0])) and torch.equal(counts, codes[1].counts)
        same = same and torch.equal(values[:, :room], codes[1].values)
        same = same and torch.equal(indices[:, :room], codes[1].indices)
        filled = torch.arange(shape.m, device=x.device) < counts[:, None]
        row, place = filled.nonzero(as_tuple=True)
        column = indices[row, place]
        found = torch.zeros_like(truth, dtype=torch.bool)
        found[row, column] = True
        wrong = int((found & (truth < limit - allowed)).sum())
        wrong += int((~found & (truth > limit + allowed)).sum())
        wrong += int(((values[row, place] - truth[row, column]).abs() > allowed[row, column]).sum())
        figures = {"wrong": float(wrong), "same_bits": float(same), "above": float(counts.sum())}
        yield Finding(f"threshold {screen}", shape, wrong == 0 and same, figures)


def _above(
    x: Tensor, weights: Weights, scale: Tensor, limit: Tensor, room: int, screen: GpuScreen
) -> ThresholdCode:
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_columns", weights.w_enc, screen.product, scale)
    operands = (x, weights.w_enc, weights.b_enc, scale, limit, min(room, len(limit)))
    return threshold_rounded(*operands, "exact", screen, left, right)


def integer_thresholds(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check thresholds like `integer_encodes`; scores equal to their threshold are not above it."""
    generator = torch.Generator().manual_seed(1)
    x, w_enc, b_enc, limit = (
        torch.randint(-3, 4, like.shape, generator=generator).to(like)
        for like in (x, weights.w_enc, weights.b_enc, weights.b_enc)
    )
    limit = limit * shape.d**0.5 // 1
    rooms = {"some": shape.k, "all": shape.m}
    for precision, (kept, room) in product(("exact", "bf16"), rooms.items()):
        settings: dict[str, Any] = {"threshold": limit, "width": room, "precision": precision}
        expected = reference.threshold_encode(x, w_enc, b_enc, **settings)
        code = saefast.threshold_encode(x, w_enc, b_enc, **settings)
        same = all(map(torch.equal, code, expected))
        yield Finding(f"integers above {precision}, {kept} kept", shape, same, {})


def same_scores(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Check that scores have the same bits from every kernel that computes them, in four ways.

    These are: scores of a top k, of rows that are scored in full since too few latents are
    unmasked, and above a threshold, from lists with room for all and from lists that fill up.

    Yields:
        A finding for each way to compute scores.
    """
    operands = (x, weights.w_enc)
    scale = 0.5 + weights.w_enc.norm(dim=1)
    best = saefast.topk_encode(*operands, weights.b_enc, k=shape.k, scale=scale)
    limit = float(torch.nextafter(best.values.amin(), best.values.new_tensor(-torch.inf)))
    for room in dict.fromkeys((shape.m, shape.k)):
        found = saefast.threshold_encode(
            *operands, weights.b_enc, threshold=limit, width=room, scale=scale
        )
        same = scores_are_the_same(best, found, limit)
        yield Finding(f"top k and threshold with room for {room}", shape, same, {})
    # Only k - 1 latents remain, so no list can be filled and every row is scored in full.
    if shape.k > 1:
        masked = torch.full_like(weights.b_enc, -torch.inf)
        few = best.indices[0, 1:]
        masked[few] = weights.b_enc[few]
        code = saefast.topk_encode(*operands, masked, k=shape.k, scale=scale)
        found = saefast.threshold_encode(
            *operands, masked, threshold=-1e36, width=shape.k, scale=scale
        )
        same = scores_are_the_same(code, found, -1e36)
        same = same and bool((found.counts == len(few)).all())
        yield Finding("rows scored in full and threshold", shape, same, {})
