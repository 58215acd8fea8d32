"""Random cases of every native op, compared with the reference.

Most values are integers times a power of two. Sums of their products are exact in any order, so the
result must have the bits of the reference at every magnitude, denormal numbers and ties included.
Instruction set, number of threads, dtype and strides are random as well.
"""

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.campaign import Campaign
from helpers.codes import draw_indices
from helpers.graphs import assert_best
from helpers.strategies import FLOATS, Shape, as_laid_out, generator, small_integers
from helpers.tolerance import assert_same_bits
from helpers.updates import Problem
from helpers.xxh64 import xxh64
from torch import Tensor

from saefast import reference
from saefast.disk.checksums import numbers
from saefast.match.assignment import Assignment, Graph, best_assignment
from saefast.ops.cpu import native
from saefast.ops.decode_prefixes import decode_prefixes
from saefast.ops.decode_residual import decode_residual
from saefast.ops.encode_cpu import PackedWeight, encode_on_cpu, threshold_on_cpu
from saefast.ops.gather_dots import gather_dots
from saefast.ops.latent_sum import latent_sum
from saefast.ops.partial_sums import halved, most_ranks, partial_dots
from saefast.ops.screens import usable_screens
from saefast.ops.sparse_decode import sparse_decode_op

LAYOUTS = ("contiguous", "contiguous", "transposed", "offset", "gaps")
NAN_BITS = {torch.float32: (torch.int32, 23), torch.float64: (torch.int64, 52)}
"""Integers of the same size, and bits of the mantissa."""


class Draw(random.Random):
    """Random choices of one case."""

    def shape(self) -> Shape:
        """Draw sizes around the widths of vectors and tiles."""
        n = self.choice([0, 1, 2, 3, 5, 9, 17, 33, 97])
        d = self.choice([1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 129])
        m = self.choice([1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 129, 257])
        return Shape(n, d, m, self.choice([1, m, self.randint(1, m), min(m, 4)]))

    def number(self) -> int:
        return self.getrandbits(31)

    def exponents(self, *dtypes: torch.dtype) -> tuple[int, int]:
        """Draw powers of two of two factors whose products and sums are exact, denormal or not."""
        low, high = (max(lowest(t) for t in dtypes), min(highest(t) for t in dtypes) - 20)
        of_sum = self.choice([0, low, high, self.randint(low, high)])
        first = self.randint(max(low, of_sum - high), min(high, of_sum - low))
        return first, of_sum - first

    def integers(self, shape: tuple[int, ...], power: int, dtype: torch.dtype) -> Tensor:
        """Draw integers times a power of two, in memory of any layout."""
        values = small_integers(shape, self.number(), torch.float64)
        half = power // 2  # a power beyond float64's in one step
        scaled = (values * 2.0**half * 2.0 ** (power - half)).to(dtype)
        if min(shape, default=0) == 0 or len(shape) > 2:
            return scaled
        layout = self.choice(LAYOUTS)
        return as_laid_out(scaled, "offset" if len(shape) == 1 and layout != "gaps" else layout)

    def code(self, shape: Shape, power: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Draw values, a third of them zero, and indices."""
        values = self.integers((shape.n, shape.k), power, dtype)
        return values, draw_indices(shape, self.number())


def lowest(dtype: torch.dtype) -> int:
    """Return the exponent of the smallest denormal number."""
    return round(math.log2(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps))


def highest(dtype: torch.dtype) -> int:
    return math.floor(math.log2(torch.finfo(dtype).max))


def encode(draw: Draw) -> None:
    shape, dtype = draw.shape(), draw.choice(FLOATS)
    a, b = draw.exponents(dtype)
    x = draw.integers((shape.n, shape.d), a, dtype)
    weight = draw.integers((shape.m, shape.d), b, dtype)
    bias = draw.choice([None, draw.integers((shape.m,), a + b, dtype)])
    scale = draw.choice([None, draw.integers((shape.m,), 0, dtype)])
    if bias is not None and draw.random() < 0.5:
        bias[torch.rand(shape.m, generator=generator(draw.number())) < 0.3] = -torch.inf
    if draw.random() < 0.5:
        absolute = draw.random() < 0.3
        expected = reference.topk_encode(x, weight, bias, k=shape.k, scale=scale, absolute=absolute)
        for screen in usable_screens():
            found = encode_on_cpu(
                x, weight, bias, scale, shape.k, "exact", screen, absolute=absolute
            )
            for actual, wanted in zip(found, expected, strict=True):
                assert_same_bits(actual, wanted)
        return
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    threshold = draw.integers((shape.m,), a + b, computed)
    wanted_code = reference.threshold_encode(
        x, weight, bias, threshold=threshold, width=shape.k, scale=scale
    )
    for screen in usable_screens():
        packed = None
        if screen.engine == "native" and draw.random() < 0.5:
            packed = PackedWeight.of(
                weight.contiguous(), screen, None if scale is None else scale.contiguous()
            )
        given = (x, weight, bias, scale, threshold, shape.k, "exact", screen, packed)
        for actual, wanted in zip(threshold_on_cpu(*given), wanted_code, strict=True):
            assert_same_bits(actual, wanted)


def encode_hostile(draw: Draw) -> None:
    """NaN of any payload, and infinity, are refused wherever they are."""
    shape, dtype = draw.shape(), draw.choice([torch.float32, torch.float64])
    if shape.n == 0:
        return
    x = draw.integers((shape.n, shape.d), 0, dtype).contiguous()
    weight = draw.integers((shape.m, shape.d), 0, dtype).contiguous()
    spoil(draw.choice([x, weight]), draw)
    screen = draw.choice(usable_screens())
    with pytest.raises(ValueError, match=r"must be finite, but row \d+ holds NaN or infinity"):
        encode_on_cpu(x, weight, None, None, shape.k, "exact", screen)


def spoil(values: Tensor, draw: Draw) -> None:
    """Set one value to infinity or to a NaN with random bits."""
    kind, mantissa = NAN_BITS[values.dtype]
    exponent = ((1 << (8 * values.element_size() - 1 - mantissa)) - 1) << mantissa
    payload = draw.choice([0, 1, draw.getrandbits(mantissa)])
    sign = -1 if draw.random() < 0.5 else 1  # of the integer: another payload and the sign bit
    bits = values.view(-1).view(kind)
    lowest_integer = torch.iinfo(kind).min
    pattern = exponent | payload
    bits[draw.randrange(len(bits))] = pattern if sign > 0 else lowest_integer + pattern


def decode(draw: Draw) -> None:
    shape, dtype = draw.shape(), draw.choice(FLOATS)
    a, b = draw.exponents(dtype)
    values, indices = draw.code(shape, a, dtype)
    weight = draw.integers((shape.m, shape.d), b, dtype)
    bias = draw.choice([None, draw.integers((shape.d,), a + b, dtype)])
    expected = reference.sparse_decode(values, indices, weight, bias)
    assert_same_bits(sparse_decode_op(values, indices, weight, bias), expected)
    rows = draw.integers((shape.n, shape.d), a, dtype)
    expected = reference.gather_dots(rows, weight, indices)
    assert_same_bits(gather_dots(rows, weight, indices), expected)


def decode_hostile(draw: Draw) -> None:
    """NaN reaches exactly the rows whose active latents hold it; wrong indices are refused."""
    shape, dtype = draw.shape(), draw.choice([torch.float32, torch.float64])
    if shape.n == 0:
        return
    values, indices = draw.code(shape, 0, dtype)
    weight = draw.integers((shape.m, shape.d), 0, dtype).contiguous()
    spoil(weight, draw)
    found = sparse_decode_op(values, indices, weight, None)
    bad = ~weight.isfinite().all(1)
    touched = (bad[indices] & (values != 0)).any(1)
    assert torch.equal(~found.isfinite().all(1), touched)
    wrong = indices.clone()
    wrong.view(-1)[draw.randrange(wrong.numel())] = draw.choice(
        [-1, shape.m, 2**31, 2**63 - 1, -(2**63)]
    )
    for op in (
        lambda: sparse_decode_op(values, wrong, weight, None),
        lambda: gather_dots(torch.ones(shape.n, shape.d, dtype=dtype), weight, wrong),
        lambda: latent_sum(values, wrong, torch.ones(shape.n, shape.d, dtype=dtype), shape.m),
    ):
        with pytest.raises(ValueError, match="indices must be in"):
            op()


def sums(draw: Draw) -> None:
    shape, dtype = draw.shape(), draw.choice(FLOATS)
    a, b = draw.exponents(dtype)
    values, indices = draw.code(shape, a, dtype)
    rows = draw.integers((shape.n, shape.d), b, dtype)
    expected = reference.latent_sum(values, indices, rows, shape.m)
    assert_same_bits(latent_sum(values, indices, rows, shape.m), expected)


def residuals(draw: Draw) -> None:
    """Powers whose squares and products with the decoder stay in range, so bits are exact."""
    shape, dtype = draw.shape(), draw.choice([torch.float32, torch.float64])
    a, b = draw.randint(-20, 20), draw.randint(-10, 10)
    values, indices = draw.code(shape, a, dtype)
    weight = draw.integers((shape.m, shape.d), b, dtype)
    bias = draw.choice([None, draw.integers((shape.d,), a + b, dtype)])
    target = draw.integers((shape.n, shape.d), a + b, dtype)
    factor = draw.choice([1.0, 2.0**-7, -0.5])
    given = (values, indices, weight, bias, target)
    if draw.random() < 0.5:
        found = decode_residual(*given, factor)
        expected = reference.decode_residual(*given, factor)
    else:
        ends = sorted({*(draw.randint(1, shape.m) for _ in range(3)), shape.m})
        found = decode_prefixes(*given, torch.tensor(ends), factor)
        expected = reference.decode_prefixes(*given, torch.tensor(ends), factor)
    # Sums of squares of integers: exact in float32 up to 2^24, which they do not always stay below.
    for actual, wanted in zip(found[:2], expected[:2], strict=True):
        close(actual, wanted, dtype)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=0)


def close(actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == wanted.dtype
    most = float(wanted.abs().max()) if wanted.numel() else 0.0
    torch.testing.assert_close(actual, wanted, rtol=0, atol=64 * torch.finfo(dtype).eps * most)


def updates(draw: Draw) -> None:
    shape = draw.shape()
    seed, asked = draw.number(), {"unit_norm": draw.random() < 0.5, "extra": draw.random() < 0.5}
    power = 2.0 ** draw.choice([0, 0, -60, 60, -500])
    fused, plain = (Problem(shape, seed, torch.float64) for _ in range(2))
    for problem in (fused, plain):
        problem.w_enc *= power
        for moment in problem.moments:
            moment += power * power
    number = draw.choice([1, 2, 1000])
    found, wanted = fused.fused(number, **asked), plain.plain(number, **asked)
    assert_same_bits(found[1], wanted[1])
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-9, atol=1e-9)
    for a, e in zip(
        fused.parameters + fused.moments, plain.parameters + plain.moments, strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-9)


def parts(draw: Draw) -> None:
    """Parts of dot products of any values have the bits of whole rows when they are added."""
    shape, dtype = draw.shape(), draw.choice([torch.float32, torch.float64])
    ranks = 2 ** draw.randint(1, most_ranks(dtype).bit_length() - 1)
    power = 2.0 ** draw.choice([0, 0, -60, 60])
    rows = torch.randn(shape.n, shape.d, generator=generator(draw.number()), dtype=dtype) * power
    weight = torch.randn(shape.m, shape.d, generator=generator(draw.number()), dtype=dtype)
    indices = draw_indices(shape, draw.number())
    each = [
        partial_dots(rows[:, r::ranks], weight[:, r::ranks], indices, shape.d, ranks)
        for r in range(ranks)
    ]
    whole = gather_dots(rows, weight, indices)
    native.use_level(native.usable_levels()[-1])  # the lanes of other levels are fewer
    assert_same_bits(halved(each), whole)


def checksums(draw: Draw) -> None:
    content = draw.randbytes(draw.choice([0, 1, 31, 32, 33, draw.randint(0, 300)]))
    cuts = sorted(draw.randint(0, len(content)) for _ in range(draw.randint(0, 4)))
    pieces = [memoryview(content)[a:b] for a, b in pairwise([0, *cuts, len(content)])]
    found = numbers(pieces, torch.get_num_threads())
    assert found == [xxh64(bytes(piece)) for piece in pieces]


def assignments(draw: Draw) -> None:
    """Ties, stars, chains, duplicate arcs, empty rows and similarities of any magnitude."""
    rows, columns = (draw.choice([1, 2, 7, 30, draw.randint(1, 60)]) for _ in range(2))
    arcs = sorted(adversarial(draw, rows, columns))
    unit = 2.0 ** draw.choice([0, 0, 0, -40, 40])
    worth = draw.choice(
        [
            lambda: 1.0,
            lambda: float(draw.randint(-2, 2)),
            lambda: draw.gauss(0, 1),
            lambda: draw.choice([-1, 1]) * 2.0 ** draw.randint(-30, 3),
            lambda: 1.0 + draw.randint(0, 3) * 2.0**-50,
        ]
    )
    start = [0] * (rows + 1)
    for row, _ in arcs:
        start[row + 1] += 1
    for row in range(rows):
        start[row + 1] += start[row]
    similarity = torch.tensor([worth() for _ in arcs], dtype=torch.float64)
    graph = Graph(
        torch.tensor(start),
        torch.tensor([column for _, column in arcs], dtype=torch.int32),
        similarity * unit,
        columns,
    )
    floor = draw.choice([0.0, -3.0, 3.0, draw.gauss(0, 1), 1.0]) * unit
    begin = None
    if draw.random() < 0.3:
        price = torch.tensor([draw.gauss(0, 2) for _ in range(columns)], dtype=torch.float64)
        partner = torch.full((rows,), -1)
        chosen = draw.sample(range(columns), min(rows, columns) // 2)
        partner[: len(chosen)] = torch.tensor(chosen, dtype=torch.int64)
        begin = Assignment(partner, torch.empty(0), price * unit, False)
    found = best_assignment(graph, floor, start=begin)
    assert_best(
        graph._replace(similarity=similarity),
        floor / unit,
        found._replace(row_price=found.row_price / unit, column_price=found.column_price / unit),
    )


def adversarial(draw: Draw, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield arcs (row, column)."""
    kind = draw.choice(["chain", "star", "full", "random", "none", "twice"])
    if kind == "chain":  # one augmenting path through all rows
        for row in range(rows):
            yield row, row % columns
            yield row, (row + 1) % columns
    elif kind == "star":
        for row in range(rows):
            yield row, 0
        for column in range(columns):
            yield 0, column
    elif kind == "full":
        for row in range(rows):
            yield from ((row, column) for column in range(columns))
    elif kind != "none":
        for _ in range(draw.randint(0, 4 * rows)):
            arc = draw.randrange(rows), draw.randrange(columns)
            yield arc
            if kind == "twice":
                yield arc


OPS: dict[str, Callable[[Draw], None]] = {
    each.__name__: each
    for each in (
        encode,
        encode_hostile,
        decode,
        decode_hostile,
        sums,
        residuals,
        updates,
        parts,
        checksums,
        assignments,
    )
}


@pytest.fixture
def any_level(torch_threads: None) -> Iterator[None]:
    before = native.level()
    yield
    native.use_level(before)


@pytest.mark.campaign("op fuzz", 30, 11_000)
@pytest.mark.parametrize("op", OPS)
def test_random_cases(op: str, campaign: Campaign, any_level: Any) -> None:
    for case in range(campaign.cases):
        draw = Draw(f"{op} {case}")
        native.use_level(draw.choice(native.usable_levels()))
        torch.set_num_threads(draw.choice([1, 2, 4]))
        try:
            OPS[op](draw)
        except Exception as error:
            error.add_note(f"{op}, case {case}, {native.level()}")
            raise
        campaign.count("as the reference")
