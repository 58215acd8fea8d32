"""The GPU's topk_encode: both engines, every product, rows whose screen fails."""

import pytest
import torch
from helpers.codes import assert_top_k
from helpers.screened import exact_by_every_screen, failed_rows
from helpers.strategies import Shape, layouts, normal, seeds, small_integers, uneven
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import saefast
from saefast import reference
from saefast.kernels import round_rows
from saefast.kernels.encode import hot_groups, screening, select_triton, topk_encode
from saefast.kernels.encode.tiles import Tile, measuring
from saefast.ops.encode_gpu import encode_rounded
from saefast.ops.gpu_screens import ENVIRONMENT, GpuScreen


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Draw small sizes around the tiles of the interpreter, 16 x 64, and powers of two."""
    n = draw(st.sampled_from([1, 2, 3, 17]))
    d = draw(st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 40])))
    m = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 200])))
    k = draw(st.one_of(st.just(1), st.integers(1, min(m, 9)), st.just(min(m, 40))))
    return Shape(n, d, m, k)


@settings(max_examples=4)
@given(shape=shapes(), seed=seeds)
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_integers_give_the_reference_bit_for_bit(
    screen: str, shape: Shape, seed: int, precision: str, with_bias: bool
) -> None:
    n, d, m, k = shape
    x, weight = (small_integers(s, seed + i, torch.float32) for i, s in enumerate([(n, d), (m, d)]))
    bias = small_integers((m,), seed + 2, torch.float32) if with_bias else None
    scale = small_integers((m,), seed + 3, torch.float32) if with_bias else None
    expected = reference.topk_encode(x, weight, bias, k=k, scale=scale, precision=precision)
    actual = saefast.topk_encode(x, weight, bias, k=k, scale=scale, precision=precision)
    assert_same_bits(actual.indices, expected.indices)
    assert_same_bits(actual.values, expected.values)


@settings(max_examples=4)
@given(shape=shapes(), seed=seeds, layout=layouts)
@pytest.mark.parametrize("data", [normal, uneven])
def test_exact_is_the_top_k_of_full_precision_for_every_screen(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, seed: int, layout: str, data: object
) -> None:
    exact_by_every_screen(monkeypatch, shape, seed, layout, data)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_the_screen_decides_ordinary_rows(
    screen: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failed_rows(monkeypatch)
    x, weight = normal((17, 40), 0, torch.float32), normal((300, 40), 1, torch.float32)
    saefast.topk_encode(x, weight, k=5, precision=precision)
    assert failed == [0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("trouble", ["masked", "huge", "zero row", "equal", "near ties"])
def test_rows_whose_screen_fails_are_scored_in_full(
    screen: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failed_rows(monkeypatch)
    n, d, m, k = 3, 12, 200, 6
    x, weight = normal((n, d), 0, torch.float32), normal((m, d), 1, torch.float32)
    bias = None
    if trouble == "masked":
        bias = torch.full((m,), -torch.inf)
        bias[[3, 77, 150]] = 0.0
    elif trouble == "huge":
        x[1] *= 1e18  # so near overflow that a screen could overflow
        weight *= 1e19
    elif trouble == "zero row":
        x[1] = 0.0
    elif trouble == "equal":
        weight[:] = weight[:1]
    else:
        steps = torch.randperm(m, generator=torch.Generator().manual_seed(0)).float()
        weight = weight[:1] * (1 + steps[:, None] * 2.0**-21)
    code = saefast.topk_encode(x, weight, bias, k=k)
    if trouble == "huge":
        expected = reference.topk_encode(x, weight, bias, k=k)
        assert_same_bits(code.indices, expected.indices)
        torch.testing.assert_close(code.values, expected.values)
    elif trouble == "masked":
        assert (code.values[:, 3:] == -torch.inf).all()
        assert (code.indices[:, 3:] == torch.tensor([0, 1, 2])).all()
        assert_top_k(
            saefast.SparseCode(code.values[:, :3], code.indices[:, :3]), x, weight, bias, None
        )
    else:
        assert_top_k(code, x, weight, bias, None)
    # A row of zeros has only scores of zero: its first k columns are the best.
    assert failed[0] >= (0 if trouble == "zero row" else 1)
    if trouble == "equal":
        assert (code.indices == torch.arange(k)).all()


def scratch(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return a list that records the memory in which `score_all` lists its scored columns."""
    seen: list[torch.Tensor] = []
    launch = topk_encode.score_all.run
    place = topk_encode.score_all.arg_names.index("work")

    def keeping(*arguments: object, **options: object) -> object:
        seen.append(arguments[place].fill_(7))
        return launch(*arguments, **options)

    monkeypatch.setattr(topk_encode.score_all, "run", keeping)
    return seen


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("product", "exact"), [("float16", True), ("bfloat16", True), ("bfloat16", False)]
)
@pytest.mark.parametrize("place", ["weight", "bias", "x", "infinite weight"])
def test_rows_are_not_scored_in_full_if_weights_have_nan(
    place: str, product: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = scratch(monkeypatch)
    n, d, m, k = 3, 12, 90, 6
    x, weight = normal((n, d), 0, torch.float32), normal((m, d), 1, torch.float32)
    bias = normal((m,), 2, torch.float32)
    if place == "x":
        x[1, 2] = torch.nan
    elif place == "bias":
        bias[70] = torch.nan
    else:
        weight[70, 3] = torch.inf if place == "infinite weight" else torch.nan
    left = round_rows.rounded_rows(x, product)
    right = round_rows.rounded_columns(weight, product)
    screen = GpuScreen("fused", product)
    code = encode_rounded(x, weight, bias, None, k, exact, screen, left, right, impl="triton")
    spoilt = [1] if place == "x" else [0, 1, 2]
    assert code.values[spoilt].isnan().all()
    assert (code.indices[spoilt] == torch.arange(k)).all()
    assert (used[0] == 7).all()
    whole = [row for row in range(n) if row not in spoilt]
    assert code.values[whole].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_failed_row_among_others_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = scratch(monkeypatch)
    x, weight = normal((3, 12), 0, torch.float32), normal((90, 12), 1, torch.float32)
    x[1] *= 1e37
    saefast.topk_encode(x, weight, k=6)
    assert not (used[0] == 7).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_far_larger_or_smaller_than_others_are_screened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row has its own multiplier, and the weight is not close to one."""
    used = scratch(monkeypatch)
    monkeypatch.setenv(ENVIRONMENT, "fused-float16")
    x, weight = normal((5, 32), 0, torch.float32), normal((90, 32), 1, torch.float32)
    x *= torch.tensor([1e-6, 1e-3, 1.0, 1e6, 1e12])[:, None]
    for size in (1e-5, 1e8):
        code = saefast.topk_encode(x, weight * size, k=6)
        assert_top_k(code, x, weight * size, None, None)
    assert (used[0] == 7).all()


def test_parts_of_a_failed_row_do_not_run_into_the_next_list(screen: str) -> None:
    """Each of the eight parts keeps all its 66 columns, and two parts are more than 2 k + 16."""
    n, d, m, k = 2, 8, 8 * 66, 54
    x, weight = (
        small_integers(shape, i, torch.float32) for i, shape in enumerate([(n, d), (m, d)])
    )
    weight *= 2.0**60
    x[0] *= 2.0**60  # so near overflow that a screen could overflow
    expected = reference.topk_encode(x, weight, k=k, precision="bf16")
    code = saefast.topk_encode(x, weight, k=k, precision="bf16")
    assert_same_bits(code.indices, expected.indices)
    assert_same_bits(code.values, expected.values)


@pytest.mark.parametrize("d", [16, 40])
@pytest.mark.parametrize("loser", ["x", "weight"])
def test_rounding_that_all_points_one_way(screen: str, d: int, loser: str) -> None:
    """As on the CPU: the best column loses as much as possible to bfloat16, its rivals nothing."""
    rounds_down = torch.full((1, d), 1 + 2.0**-8 - 2.0**-14)
    rounds_up = torch.full((1, d), 1 + 2.0**-8 + 2.0**-14)
    signs = torch.ones(1, d)
    signs[:, ::2] = -1
    if loser == "weight":
        x, best = torch.ones(1, d), rounds_down
    else:
        x, best = torch.where(signs > 0, rounds_down, rounds_up), signs
    score = float((x.double() * best.double()).sum())
    weight = torch.zeros(100, d)
    weight[99] = best
    bias = torch.full((100,), score - 2.0**-12)
    bias[99] = 0
    assert saefast.topk_encode(x, weight, bias, k=1).indices.item() == 99
    assert saefast.topk_encode(x, weight, bias, k=1, precision="bf16").indices.item() != 99


@given(seed=seeds)
@settings(max_examples=10)
@pytest.mark.parametrize("product", ["float16", "bfloat16", "tfloat32", "float32"])
@pytest.mark.parametrize("of", ["rows", "columns"])
def test_bounds_cover_rounding_losses(of: str, product: str, seed: int) -> None:
    rows = uneven((9, 37), seed, torch.float32)
    rounded = getattr(round_rows, f"rounded_{of}")(rows, product)
    units = rounded.units[:, :37].double()
    if product == "float16":
        assert_same_bits(units.half().double(), units)  # each of them is a float16
        units /= rounded.multiplier.double()[:, None]
    assert (rounded.units[:, 37:] == 0).all()
    lost = (rows.double() - units).norm(dim=1)
    assert (lost <= rounded.lost.double()).all()
    assert (rows.double().norm(dim=1) <= rounded.norm.double()).all()
    # Only slightly above, so that the screen rules out columns.
    assert (rounded.norm.double() <= rows.double().norm(dim=1) * (1 + 1e-4) + 1e-11).all()
    assert (rounded.lost.double() <= lost * (1 + 1e-4) + 1e-11).all()
    if product == "bfloat16":
        assert_same_bits(rounded.units[:, :37], rows.bfloat16().float())
    assert ((rounded.lost == 0) == (lost == 0)).all()


@pytest.mark.parametrize("tma", [False, True])
def test_tiles_by_address_and_by_descriptor_agree(
    tma: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    monkeypatch.setattr(screening, "has_tma", lambda tensor: tma)
    run = hot_groups.hot_groups.run
    monkeypatch.setattr(
        type(hot_groups.hot_groups),
        "run",
        lambda self, *a, **o: (launches.append(o.get("TMA")), run.__func__(self, *a, **o))[1],
    )
    x, weight = normal((17, 33), 0, torch.float32), normal((200, 33), 1, torch.float32)
    left, right = (round_rows.rounded_rows(t, "float32") for t in (x, weight))
    screen = GpuScreen("fused", "float32")
    code = encode_rounded(x, weight, None, None, 5, True, screen, left, right, impl="triton")
    assert_top_k(code, x, weight, None, None)
    assert {tma} == {seen for seen in launches if seen is not None}


def test_a_measured_tile_is_used_and_does_not_change_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = []
    run = hot_groups.hot_groups.run
    monkeypatch.setattr(
        type(hot_groups.hot_groups),
        "run",
        lambda self, *a, **o: (launches.append(o), run.__func__(self, *a, **o))[1],
    )
    monkeypatch.setenv(ENVIRONMENT, "fused-bfloat16")
    x, weight = normal((17, 33), 0, torch.float32), normal((200, 33), 1, torch.float32)
    expected = saefast.topk_encode(x, weight, k=5)
    for tile in (Tile(32, 32, 16, 4, 2), Tile(16, 128, 32, 4, 3)):
        launches.clear()
        with measuring(tile):
            actual = saefast.topk_encode(x, weight, k=5)
        assert_same_bits(actual.indices, expected.indices)
        assert_same_bits(actual.values, expected.values)
        tiles = {
            (o["BLOCK_ROWS"], o["BLOCK_COLUMNS"], o["BLOCK_D"], o["num_warps"], o["num_stages"])
            for o in launches
            if "TMA" in o
        }
        assert tiles == {tuple(tile)}


def test_large_k_and_float64_are_served_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_encode, "MOST_KEPT", 4)
    x, weight = normal((7, 9), 0, torch.float32), normal((30, 9), 1, torch.float32)
    for dtype, k in ((torch.float32, 5), (torch.float64, 3)):
        args = x.to(dtype), weight.to(dtype)
        expected = reference.topk_encode(*args, k=k)
        actual = saefast.topk_encode(*args, k=k)
        assert_same_bits(actual.indices, expected.indices)
        assert_same_bits(actual.values, expected.values)


def test_lists_are_kept_by_triton_without_cuda_kernels() -> None:
    from saefast.ops import gpu

    assert gpu.select("triton") is select_triton
