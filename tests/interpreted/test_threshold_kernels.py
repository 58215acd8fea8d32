"""The GPU's threshold_encode: selection with every screen, full lists, and long lists."""

import pytest
import torch
from helpers.codes import assert_right, assert_same_code, at_the_scores, selected
from helpers.strategies import Shape, generator, normal, seeds, small_integers, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode_kernels import shapes
from torch import Tensor

import saefast
from saefast import reference
from saefast.kernels.encode import threshold_encode, topk_encode
from saefast.kernels.encode.lists import Lists
from saefast.ops import batch_topk as module
from saefast.ops.batch_topk import batch_topk
from saefast.ops.encode_packed import repacked, threshold_packed
from saefast.ops.gpu_screens import ENVIRONMENT
from saefast.ops.keep_of_batch import keep_of_batch


@pytest.fixture(params=["chunked-bfloat16", "fused-bfloat16", "fused-float16"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each engine; tests do not depend on the product of the screen."""
    monkeypatch.setenv(ENVIRONMENT, request.param)
    return str(request.param)


def all_scores(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Return [n, m] scores of the exact `topk_encode` of a GPU for all latents."""
    n, m = x.shape[0], weight.shape[0]
    lists = Lists.allocate(n, m, x.device)
    lists.counts.fill_(m)
    lists.keys.copy_(0x7FFFFFFF - torch.arange(m))
    topk_encode._score_candidates(x, weight, bias, scale, lists)
    values, indices = torch.empty(n, m), torch.empty(n, m, dtype=torch.int64)
    threshold_encode._choose_by_torch(lists.keys, lists.counts, values, indices)
    return torch.empty(n, m).scatter(1, indices, values)


@settings(max_examples=4)
@given(shape=shapes(), seed=seeds, one_for_all=st.booleans(), with_bias=st.booleans())
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_integers_give_the_reference_bit_for_bit(
    screen: str, shape: Shape, seed: int, one_for_all: bool, precision: str, with_bias: bool
) -> None:
    _, d, m, width = shape
    x, weight = (small_integers(s, seed + i, torch.float32) for i, s in enumerate([(3, d), (m, d)]))
    bias = small_integers((m,), seed + 2, torch.float32) if with_bias else None
    scale = small_integers((m,), seed + 3, torch.float32) if with_bias else None
    threshold = small_integers(() if one_for_all else (m,), seed + 4, torch.float32) * d**0.5 // 1
    settings = {"threshold": threshold, "width": width, "scale": scale, "precision": precision}
    expected = reference.threshold_encode(x, weight, bias, **settings)
    assert_same_code(saefast.threshold_encode(x, weight, bias, **settings), expected)


@settings(max_examples=4)
@given(shape=shapes(), seed=seeds, with_bias=st.booleans(), with_scale=st.booleans())
@pytest.mark.parametrize("data", [normal, uneven])
def test_a_threshold_equal_to_a_score_is_not_exceeded(
    screen: str, shape: Shape, seed: int, with_bias: bool, with_scale: bool, data: object
) -> None:
    """Scores equal those of `topk_encode` to the last bit."""
    _, d, m, width = shape
    x, weight = data((3, d), seed, torch.float32), data((m, d), seed + 1, torch.float32)
    bias = normal((m,), seed + 2, torch.float32) if with_bias else None
    scale = normal((m,), seed + 3, torch.float32) if with_scale else None
    scores = all_scores(x, weight, bias, scale)
    threshold = at_the_scores(scores, seed + 4)
    expected = selected(scores, threshold, width, torch.float32)
    settings = {"scale": scale, "threshold": threshold, "width": width}
    assert_same_code(saefast.threshold_encode(x, weight, bias, **settings), expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_large_biases_may_nearly_cancel_the_threshold(engine: str, seed: int) -> None:
    """The rounding of the bias decides, which is not part of the product."""
    m = 130
    x, weight = normal((2, 12), seed, torch.float32), normal((m, 12), seed + 1, torch.float32)
    sizes = 10.0 ** torch.randint(5, 10, (m,), generator=generator(seed))
    bias, scale = (
        sizes * normal((m,), seed + 2, torch.float32),
        1 + torch.rand(m, generator=generator(seed + 3)),
    )
    scores = all_scores(x, weight, bias, scale)
    threshold = at_the_scores(scores, seed + 4)
    expected = selected(scores, threshold, 100, torch.float32)
    settings = {"scale": scale, "threshold": threshold, "width": 100}
    assert_same_code(saefast.threshold_encode(x, weight, bias, **settings), expected)


@pytest.mark.parametrize("width", [1, 40, 130])
def test_full_lists_keep_the_best_and_count_all(engine: str, width: int) -> None:
    """Lists of 64 and 128 for up to 130 columns above the threshold."""
    x, weight = normal((2, 12), 0, torch.float32), normal((130, 12), 1, torch.float32)
    scores = all_scores(x, weight)
    for limit in (-100.0, float(scores.median())):
        threshold = torch.tensor(limit)
        expected = selected(scores, threshold, width, torch.float32)
        actual = saefast.threshold_encode(x, weight, threshold=threshold, width=width)
        assert_same_code(actual, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("trouble", ["masked", "huge", "equal", "near ties", "huge threshold"])
def test_rows_with_extreme_values(engine: str, trouble: str) -> None:
    n, d, m, width = 2, 12, 90, 30
    x, weight = normal((n, d), 0, torch.float32), normal((m, d), 1, torch.float32)
    bias, threshold = torch.zeros(m), torch.zeros(m)
    if trouble == "masked":
        bias[::2], threshold[::3] = -torch.inf, torch.inf
    elif trouble == "huge":
        # Rounded to bfloat16 the product is -infinity, for any bias.
        x[1], weight[7] = 0.0, 0.0
        x[1, 0], weight[7, 0] = (1 - 2.0**-10) * 2.0**64, -(1 - 2.0**-10) * 2.0**64
        bias[7] = 2.0**127 * (2 - 2.0**-9)
    elif trouble == "equal":
        weight[:] = weight[:1]
    elif trouble == "near ties":
        steps = torch.randperm(m, generator=torch.Generator().manual_seed(0)).float()
        weight = weight[:1] * (1 + steps[:, None] * 2.0**-21)
    else:
        threshold[:] = 1e30
        bias[5] = 2e30
    scores = all_scores(x, weight, bias)
    if trouble == "near ties":
        threshold[:] = scores[0].median()
    finite = scores.clamp(min=torch.finfo(torch.float32).min)
    expected = selected(finite, threshold, width, torch.float32)
    actual = saefast.threshold_encode(x, weight, bias, threshold=threshold, width=width)
    assert_same_code(actual, expected)
    assert actual.counts.sum() > 0
    assert trouble != "huge" or 7 in actual.indices[1]


def scored_columns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that records the columns left to be scored in each encode."""
    seen: list[int] = []
    launch = threshold_encode.settle_lists.run

    def counting(*arguments: object, **options: object) -> object:
        seen.append(int(arguments[7].sum()))
        return launch(*arguments, **options)

    monkeypatch.setattr(threshold_encode.settle_lists, "run", counting)
    return seen


def test_the_screen_decides_nearly_all_columns(
    screen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = scored_columns(monkeypatch)
    x, weight = normal((5, 40), 0, torch.float32), normal((200, 40), 1, torch.float32)
    code = saefast.threshold_encode(x, weight, threshold=10.0, width=60)
    above = int(code.counts.sum())
    assert above > 20
    assert above <= waiting[0] <= above + 5


def largest_of(code: saefast.ThresholdCode, wanted: int) -> tuple[Tensor, ...]:
    """Return the `wanted` largest values of a code, see `keep_of_batch`."""
    kept: tuple[Tensor, ...] = keep_of_batch(code.values, code.indices, wanted)
    return kept


def test_only_candidates_of_a_batch_are_scored(
    screen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = scored_columns(monkeypatch)
    x, weight = normal((5, 40), 0, torch.float32), normal((200, 40), 1, torch.float32)
    bias, limit, wanted = normal((200,), 2, torch.float32), torch.tensor(3.0), 60
    packed = repacked(None, False, x, weight, 4, "exact")
    everything = threshold_packed(x, weight, bias, limit, 100, "exact", packed)
    largest = threshold_packed(x, weight, bias, limit, 100, "exact", packed, wanted=wanted)
    assert waiting[0] > 4 * wanted
    # bfloat16 leaves a tenth of them in doubt.
    assert wanted <= largest.counts.sum() <= waiting[1] <= 1.2 * wanted
    for mine, theirs in zip(*(largest_of(c, wanted) for c in (largest, everything)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wanted", [1, 60, 400])
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("trouble", ["near ties", "equal", "biases", "short lists", "unsafe"])
def test_omitted_scores_are_not_among_the_largest(
    engine: str, trouble: str, precision: str, wanted: int
) -> None:
    """This includes batches with fewer than wanted above the threshold."""
    m, width = 90, 90
    x, weight = normal((4, 12), 0, torch.float32), normal((m, 12), 1, torch.float32)
    bias = normal((m,), 2, torch.float32)
    if trouble == "near ties":
        steps = torch.randperm(m, generator=generator(0)).float()
        weight = weight[:1] * (1 + steps[:, None] * 2.0**-21)
        x[:] = x[:1]
        bias[:] = 10.0
    elif trouble == "equal":
        weight[:], bias[:] = weight[:1], 4.0
    elif trouble == "biases":  # scores are less certain than their differences
        bias = bias.abs() + 2.0**20
    elif trouble == "short lists":
        width = 5
    else:
        x[1, 3] = 3e37
    limit = torch.tensor(2.0**20 if trouble == "biases" else 0.25)
    if trouble == "near ties":  # differences from it are smaller than their errors
        limit = all_scores(x, weight, bias).median()
    packed = repacked(None, False, x, weight, 4, precision)
    operands = (x, weight, bias, limit, width, precision, packed)
    everything = threshold_packed(*operands)
    largest = threshold_packed(*operands, wanted=wanted)
    assert (largest.counts <= everything.counts).all()
    assert largest.counts.sum() >= min(wanted, int(everything.counts.sum()))
    if int(largest.counts.max()) <= width:
        whole = threshold_packed(x, weight, bias, limit, m, precision, packed)
        pairs = [largest_of(c, wanted) for c in (largest, whole)]
        for mine, theirs in zip(*pairs, strict=True):
            shape = theirs.shape if theirs.ndim < 2 else (len(theirs), min(width, m))
            assert torch.equal(mine, theirs[:, : shape[1]] if theirs.ndim == 2 else theirs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_nothing_is_scored_if_weights_have_nan(
    engine: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = scored_columns(monkeypatch)
    x, weight = normal((3, 12), 0, torch.float32), normal((90, 12), 1, torch.float32)
    bias, threshold = torch.zeros(90), torch.tensor(-100.0)

    def counts(x: Tensor, weight: Tensor) -> list[int]:
        packed = repacked(None, False, x, weight, 4, precision)
        code = threshold_packed(x, weight, bias, threshold, 90, precision, packed)
        assert (code.values.isfinite()).all()
        assert ((code.indices >= 0) & (code.indices < 90)).all()
        return code.counts.tolist()

    x[1, 2] = torch.nan
    assert counts(x, weight) == [90, 0, 90]
    weight[70, 3] = torch.nan
    assert counts(x, weight) == [0, 0, 0]
    assert waiting == [180, 0]


def test_long_lists_are_sorted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal((5, 12), 0, torch.float32), normal((90, 12), 1, torch.float32)
    expected = saefast.threshold_encode(x, weight, threshold=-1.0, width=50)
    monkeypatch.setattr(threshold_encode, "_SORTED_BY_ROWS", 64)
    assert_same_code(saefast.threshold_encode(x, weight, threshold=-1.0, width=50), expected)


def test_rows_are_served_in_parts_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal((7, 12), 0, torch.float32), normal((90, 12), 1, torch.float32)
    for precision in ("exact", "bf16"):
        settings = {"threshold": 1.0, "width": 20, "precision": precision}
        monkeypatch.setattr(threshold_encode, "_LIST_BYTES", 1 << 30)
        expected = saefast.threshold_encode(x, weight, **settings)
        monkeypatch.setattr(threshold_encode, "_LIST_BYTES", 3 * 8 * 64)
        assert_same_code(saefast.threshold_encode(x, weight, **settings), expected)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_a_packed_weight_gives_the_same_code(engine: str, precision: str) -> None:
    x, weight = normal((7, 12), 0, torch.float32), normal((90, 12), 1, torch.float32)
    bias, threshold = normal((90,), 2, torch.float32), torch.tensor(0.5)
    packed = repacked(None, False, x, weight, 4, precision)
    assert packed is not None
    expected = saefast.threshold_encode(
        x, weight, bias, threshold=threshold, width=40, precision=precision
    )
    actual = threshold_packed(x, weight, bias, threshold, 40, precision, packed)
    assert_same_code(actual, expected)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize("lower", [None, 1.5])
def test_batch_topk_keeps_the_largest_of_the_batch(
    engine: str, precision: str, lower: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound from a top k may be wrong."""
    if lower is not None:
        monkeypatch.setattr(module, "_LOWER", lower)
    x, weight = normal((4, 12), 0, torch.float32), normal((40, 12), 1, torch.float32)
    bias = normal((40,), 2, torch.float32)
    code = saefast.threshold_encode(
        x, weight, bias, threshold=-100.0, width=40, precision=precision
    )
    scores = torch.empty(4, 40).scatter(1, code.indices, code.values)
    packed = repacked(None, False, x, weight, 3, precision)
    for guess in (None, 2.0):
        found = batch_topk(x, weight, bias, 3, guess=guess, precision=precision, packed=packed)
        assert_right(found, scores, 3)


def test_no_rows_and_float64_are_served() -> None:
    weight = normal((9, 5), 0, torch.float64)
    empty = saefast.threshold_encode(torch.empty(0, 5), weight.float(), threshold=0.0, width=3)
    assert [tuple(part.shape) for part in empty] == [(0, 3), (0, 3), (0,)]
    x = normal((4, 5), 1, torch.float64)
    threshold = torch.tensor(0.25, dtype=torch.float64)
    expected = reference.threshold_encode(x, weight, threshold=threshold, width=3)
    assert_same_code(saefast.threshold_encode(x, weight, threshold=threshold, width=3), expected)


def test_input_that_is_not_finite_is_refused() -> None:
    x, weight = normal((4, 5), 1, torch.float32), normal((9, 5), 0, torch.float32)
    for threshold in (torch.nan, -torch.inf):
        with pytest.raises(ValueError, match="threshold"):
            saefast.threshold_encode(x, weight, threshold=threshold, width=3)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="x must be finite"):
        saefast.threshold_encode(x, weight, threshold=0.0, width=3)
