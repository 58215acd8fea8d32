"""batch_topk: the n * k largest values of a batch, for any guess."""

import pytest
import torch
from helpers.codes import assert_right, dense_batch_topk
from helpers.strategies import Shape, normal, seeds, shapes, small_integers
from helpers.tolerance import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast.ops import batch_topk as module
from saefast.ops.batch_topk import batch_topk
from saefast.ops.encode_packed import repacked

trained = st.sampled_from([torch.float32, torch.float64])


def scores_of(x: Tensor, weight: Tensor, bias: Tensor, precision: str) -> Tensor:
    """Return all scores from `topk_encode`."""
    code = saefast.topk_encode(x, weight, bias, k=weight.shape[0], precision=precision)
    return code.to_dense(weight.shape[0])


def guesses(scores: Tensor, k: int) -> list[float | None]:
    """Return None, guesses that are right or nearly right, and some far too low or too high."""
    smallest = float(dense_batch_topk(scores, k)[1])
    near = [smallest * factor for factor in (0.0, 0.5, 0.98, 1.0, 1.02, 2.0)]
    return [None, *near, -3.0, torch.inf]


@settings(max_examples=12)
@given(shape=shapes(), seed=seeds, dtype=trained, precision=st.sampled_from(["exact", "bf16"]))
@pytest.mark.parametrize("data", [normal, small_integers])
def test_any_guess_gives_the_result_of_the_definition(
    level: str, shape: Shape, seed: int, dtype: torch.dtype, precision: str, data: object
) -> None:
    n, d, m, k = shape
    x, weight = data((n, d), seed, dtype), data((m, d), seed + 1, dtype)
    bias = data((m,), seed + 2, dtype)
    scores = scores_of(x, weight, bias, precision)
    packed = repacked(None, False, x, weight, k, precision)
    rooms = [(None, None), (1, packed), (m, None)]
    for turn, guess in enumerate(guesses(scores, k)):
        room, panels = rooms[(seed + turn) % 3]
        code = batch_topk(
            x, weight, bias, k, guess=guess, width=room, precision=precision, packed=panels
        )
        assert_right(code, scores, k)


@settings(max_examples=8)
@given(seed=seeds)
@pytest.mark.parametrize("k", [1, 5])
def test_rows_of_very_different_norm(level: str, seed: int, k: int) -> None:
    """One row has nearly all values; the others' lists and its own room are too short at first."""
    n, d, m = 40, 16, 500
    x, weight = normal((n, d), seed, torch.float32), normal((m, d), seed + 1, torch.float32)
    x[seed % n] *= 50
    bias = torch.zeros(m)
    scores = scores_of(x, weight, bias, "exact")
    assert dense_batch_topk(scores, k)[2].max() > 32 or k == 1
    for guess in guesses(scores, k):
        assert_right(batch_topk(x, weight, bias, k, guess=guess), scores, k)


def test_fewer_positive_values_than_requested(level: str) -> None:
    x, weight = normal((30, 12), 0, torch.float32), normal((200, 12), 1, torch.float32)
    for shift in (-8.0, -30.0, -torch.inf):
        bias = torch.full((200,), shift)
        scores = scores_of(x, weight, bias, "exact").nan_to_num(neginf=-1.0)
        assert (scores > 0).sum() < 30 * 20
        for guess in (None, 0.0, 1.0, torch.inf):
            assert_right(batch_topk(x, weight, bias, 20, guess=guess), scores, 20)


def test_equal_values_are_kept_by_row_and_then_by_index(level: str) -> None:
    x, weight = torch.ones(6, 4), torch.ones(50, 4)
    for guess in (None, 0.0, 3.9, 4.0):
        (values, indices), threshold, counts = batch_topk(
            x, weight, torch.zeros(50), 20, guess=guess
        )
        assert threshold.item() == 4
        assert counts.tolist() == [50, 50, 20, 0, 0, 0]
        assert (values[2, :20] == 4).all()
        assert indices[2].tolist() == [*range(20), *[0] * 30]


def test_a_good_guess_takes_one_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal((50, 32), 0, torch.float32), normal((400, 32), 1, torch.float32)
    bias = torch.zeros(400)
    threshold = float(batch_topk(x, weight, bias, 8).threshold)
    calls = []
    for name in ("threshold_packed", "encode_packed"):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, f=function, name=name, **b: (calls.append(name), f(*a, **b))[1]
        )
    batch_topk(x, weight, bias, 8, guess=0.95 * threshold)
    assert calls == ["threshold_packed"]
    batch_topk(x, weight, bias, 8, guess=1.05 * threshold)
    assert calls[1:] == ["threshold_packed", "encode_packed", "threshold_packed"]


@pytest.mark.usefixtures("torch_threads")
def test_any_number_of_threads_gives_the_same_bits(level: str) -> None:
    x, weight = normal((130, 70), 0, torch.float32), normal((900, 70), 1, torch.float32)
    bias = normal((900,), 2, torch.float32)
    codes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        codes.append(batch_topk(x, weight, bias, 16))
    for code in codes[1:]:
        assert_same_bits(code.code.values, codes[0].code.values)
        assert_same_bits(code.code.indices, codes[0].code.indices)
        assert_same_bits(code.counts, codes[0].counts)


def test_an_empty_batch_is_encoded() -> None:
    code = batch_topk(torch.empty(0, 4), torch.randn(6, 4), torch.zeros(6), 3, guess=1.0)
    assert code.code.values.shape == code.code.indices.shape == (0, 1)
    assert code.counts.shape == (0,)
    assert code.threshold.item() == 0
