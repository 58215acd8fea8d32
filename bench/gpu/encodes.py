"""Contests of encoding: k largest of a row, of a batch, and values above a threshold."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import saefast
from bench.gpu.contest import ROUNDED, Contest
from bench.gpu.times import Contestant, Run
from saefast import SparseCode, ThresholdCode, reference
from saefast.ops import gpu
from saefast.ops.batch_topk import batch_topk
from saefast.ops.encode_gpu import encode_rounded, screen_for
from saefast.ops.encode_packed import repacked
from saefast.ops.gpu_screens import CANDIDATES, GpuScreen


def encodes(contest: Contest) -> Iterator[Contestant]:
    """Yield encodes of the k largest values of each row, by every screen and by dense products."""
    shape, x, weights = contest.shape, contest.centred, contest.weights
    exact, rounded = encode_agreements(contest)

    def ours(precision: str, screen: GpuScreen | None, impl: str = "auto") -> Callable[[], Run]:
        """Encode like the public op, but with a given screen."""
        is_exact = precision == "exact"

        def run() -> Tensor:
            if screen is None:
                return saefast.topk_encode(
                    x, weights.w_enc, weights.b_enc, k=shape.k, precision=precision
                ).values
            left = gpu.launch("round_rows.rounded_rows", x, screen.product)
            right = gpu.launch("round_rows.rounded_columns", weights.w_enc, screen.product)
            operands = (x, weights.w_enc, weights.b_enc, None, shape.k)
            return encode_rounded(*operands, is_exact, screen, left, right, impl).values

        return lambda: run

    def entry(mode: str, agrees: Callable[[Any], bool], build: Callable[[], Run]) -> Contestant:
        return Contestant("encode", "saefast", mode, build, lambda values: agrees(values.relu()))

    yield entry("exact", exact, ours("exact", None))
    yield entry("bf16", rounded, ours("bf16", None))
    for screen in CANDIDATES:
        yield entry(f"exact {screen}", exact, ours("exact", screen))
    # `untimed` in saefast/ops/gpu_screens.py is set from these.
    for engine in ("fused", "chunked"):
        screen = GpuScreen(engine, "bfloat16")
        yield entry(f"bf16 {engine}", rounded, ours("bf16", screen))

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values: Tensor = torch.addmm(bias, x, weight.T).relu().topk(shape.k).values
        return values

    wholes = [x, weights.w_enc, weights.b_enc]
    halves = [t.bfloat16() for t in wholes]
    yield Contestant("encode", "torch", "bf16 dense", lambda: partial(dense, *halves), rounded)
    yield Contestant("encode", "torch", "fp32 dense", lambda: partial(dense, *wholes), exact)
    yield Contestant(
        "encode",
        "torch.compile",
        "bf16 dense",
        lambda: partial(torch.compile(dense, dynamic=False), *halves),
        rounded,
    )
    if gpu.has_cuda():
        chosen = screen_for(x, weights.w_enc, shape.k, exact=True)
        yield entry(f"exact {chosen} triton", exact, ours("exact", chosen, "triton"))


def encode_agreements(
    contest: Contest,
) -> tuple[Callable[[Tensor], bool], Callable[[Tensor], bool]]:
    """Return checks of values against float64, for exact encodes and for rounded operands."""
    x, weights = contest.centred, contest.weights
    operands = [t.double() for t in (x[contest.sample], weights.w_enc, weights.b_enc)]
    truth = reference.topk_encode(*operands, k=contest.shape.k).values.relu()
    return contest.near(1e-4, truth), contest.near(ROUNDED, truth)


def thresholds(contest: Contest) -> Iterator[Contestant]:
    """Yield encodes above the k-th largest value of a typical row; scores have a top k's bits."""
    shape, x, weights = contest.shape, contest.centred, contest.weights
    operands = (x, weights.w_enc, weights.b_enc)
    limit = float(contest.code.values[:, -1].median())
    room = min(4 * shape.k, shape.m)

    def ours(precision: str) -> Run:
        settings: dict[str, Any] = {"threshold": limit, "width": room, "precision": precision}
        return lambda: saefast.threshold_encode(*operands, **settings)

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        scores = torch.addmm(bias, x, weight.T)
        return scores.masked_fill_(scores <= limit, 0.0)

    def same_bits(found: ThresholdCode) -> bool:
        best = saefast.topk_encode(*operands, k=shape.k)
        return scores_are_the_same(best, found, limit)

    fewest, most = (sizes.clamp(max=room).sum() for sizes in rounded_counts(contest, limit))

    def near(found: ThresholdCode | Tensor) -> bool:
        sizes = found.counts if isinstance(found, ThresholdCode) else (found > 0).sum(1)
        return bool(fewest <= sizes[contest.sample].clamp(max=room).sum() <= most)

    yield Contestant("threshold", "saefast", "exact", partial(ours, "exact"), same_bits)
    yield Contestant("threshold", "saefast", "bf16", partial(ours, "bf16"), near)
    halves = [t.bfloat16() for t in operands]
    yield Contestant("threshold", "torch", "bf16 dense", lambda: partial(dense, *halves), near)


def rounded_counts(contest: Contest, limit: float) -> tuple[Tensor, Tensor]:
    """Return bounds [rows] on the number of scores of sampled rows above a limit: least and most.

    Score and limit may be rounded to bfloat16, each by 2^-9 of itself. Both operands of a product
    are off by up to 2^-9, in either direction: the resulting error of a sum has a standard
    deviation of 2^-9 sqrt(2 / 3) times the length of its terms, of which four times as much is
    allowed.
    """
    x, weight = contest.centred[contest.sample].double(), contest.weights.w_enc.double()
    scores = torch.addmm(contest.weights.b_enc.double(), x, weight.T)
    lengths = (x.square() @ weight.T.square()).sqrt()
    slack = 2.0**-9 * (2 * abs(limit) + 4 * (2 / 3) ** 0.5 * lengths)
    return (scores > limit + slack).sum(1), (scores > limit - slack).sum(1)


def scores_are_the_same(best: SparseCode, found: ThresholdCode, limit: float) -> bool:
    """Return whether a top k and a threshold give the same latents above the limit, bit for bit.

    `best` may end before the limit is reached, and so may the room of `found`.
    """
    width = min(best.values.shape[1], found.values.shape[1])
    above = best.values[:, :width] > limit
    listed = torch.arange(width, device=above.device) < found.counts[:, None]
    pairs = zip(best, found[:2], strict=True)
    same = [torch.equal(a[:, :width][above], b[:, :width][above]) for a, b in pairs]
    return all(same) and bool((above <= listed).all())


def batches(contest: Contest) -> Iterator[Contestant]:
    """Yield encodes of the n k largest values of a batch, with the last step's threshold known."""
    shape, x, weights = contest.shape, contest.centred, contest.weights
    wanted = shape.n * shape.k

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values: Tensor = torch.addmm(bias, x, weight.T).relu().flatten().topk(wanted).values
        return values

    truth = float(dense(x, weights.w_enc, weights.b_enc).double().sum())

    def near(tolerance: float) -> Callable[[Tensor], bool]:
        return lambda values: abs(float(values.double().sum()) / truth - 1) <= tolerance

    def ours(precision: str) -> Run:
        settings: dict[str, Any] = {"precision": precision}
        settings["packed"] = repacked(None, False, x, weights.w_enc, shape.k, precision)
        found = batch_topk(x, weights.w_enc, weights.b_enc, shape.k, **settings)
        settings["guess"] = 0.9 * float(found.threshold)
        settings["width"] = 2 * int(found.counts.amax())
        return lambda: batch_topk(x, weights.w_enc, weights.b_enc, shape.k, **settings).code.values

    for precision in ("exact", "bf16"):
        yield Contestant("batch_topk", "saefast", precision, partial(ours, precision), near(1e-3))
    halves = [t.bfloat16() for t in (x, weights.w_enc, weights.b_enc)]
    yield Contestant(
        "batch_topk", "torch", "bf16 dense", lambda: partial(dense, *halves), near(1e-2)
    )
