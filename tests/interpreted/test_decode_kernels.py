"""The GPU's sums and products over sparse codes, forward and backward."""

import pytest
import torch
from helpers.codes import draw_indices
from helpers.strategies import Shape, as_laid_out, layouts, normal, seeds, small_integers
from helpers.tolerance import assert_no_worse_than_torch, assert_same_bits
from helpers.updates import update_of
from hypothesis import given, settings
from hypothesis import strategies as st

import saefast
from saefast import reference
from saefast.kernels.codes import by_latent, latent_sum
from saefast.kernels.update import latent_update
from saefast.ops.decode_residual import decode_residual

ops = torch.ops.saefast


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Draw sizes around the blocks of the interpreter: 4 entries, 16 columns."""
    n = draw(st.sampled_from([0, 1, 2, 5]))
    d = draw(st.sampled_from([1, 7, 15, 16, 17, 33]))
    m = draw(st.sampled_from([1, 3, 8, 17, 31]))
    k = draw(st.integers(1, min(m, 9)))
    return Shape(n, d, m, k)


@settings(max_examples=15)
@given(shape=shapes(), seed=seeds, layout=layouts)
def test_integers_give_the_reference_bit_for_bit(shape: Shape, seed: int, layout: str) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, weight, rows = (
        as_laid_out(small_integers(s, seed + i, torch.float32), layout)
        for i, s in enumerate([(n, k), (m, d), (n, d)])
    )
    bias = small_integers((d,), seed + 3, torch.float32)
    assert_same_bits(
        saefast.sparse_decode(values, indices, weight, bias),
        reference.sparse_decode(values, indices, weight, bias),
    )
    assert_same_bits(
        ops.gather_dots(rows, weight, indices), reference.gather_dots(rows, weight, indices)
    )
    assert_same_bits(
        ops.latent_sum(values, indices, rows, m), reference.latent_sum(values, indices, rows, m)
    )
    for actual, expected in zip(
        decode_residual(values, indices, weight, bias, rows, 0.5),
        reference.decode_residual(values, indices, weight, bias, rows, 0.5),
        strict=True,
    ):
        assert_same_bits(actual, expected)


@settings(max_examples=10)
@given(shape=shapes(), seed=seeds)
def test_errors_are_within_float32_rounding(shape: Shape, seed: int) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    data = [normal(s, seed + i, torch.float32) for i, s in enumerate([(n, k), (m, d), (n, d)])]
    values, weight, rows = data
    wide_values, wide_weight, wide_rows = (t.double() for t in data)
    assert_no_worse_than_torch(
        saefast.sparse_decode(values, indices, weight),
        reference.sparse_decode(values, indices, weight),
        reference.sparse_decode(wide_values, indices, wide_weight),
    )
    assert_no_worse_than_torch(
        ops.latent_sum(values, indices, rows, m),
        reference.latent_sum(values, indices, rows, m),
        reference.latent_sum(wide_values, indices, wide_rows, m),
    )


@settings(max_examples=8)
@given(shape=shapes(), seed=seeds, layout=layouts)
def test_float64_is_summed_in_float64(shape: Shape, seed: int, layout: str) -> None:
    n, d, m, k = shape
    indices = draw_indices(shape, seed)
    values, weight, rows = (
        as_laid_out(normal(s, seed + i, torch.float64), layout)
        for i, s in enumerate([(n, k), (m, d), (n, d)])
    )
    dots, decoded = (
        ops.gather_dots(rows, weight, indices),
        saefast.sparse_decode(values, indices, weight),
    )
    assert dots.dtype == decoded.dtype == torch.float64
    close = {"rtol": 1e-13, "atol": 1e-13 * d}
    torch.testing.assert_close(dots, reference.gather_dots(rows, weight, indices), **close)
    expected = reference.sparse_decode(values, indices, weight)
    torch.testing.assert_close(decoded, expected, **close)


def test_float64_products_of_rows_are_symmetric() -> None:
    """The number of rows and indices is random: a matching compares products of several calls."""
    x, y = normal((3, 50), 0, torch.float64), normal((5, 50), 1, torch.float64)
    forward = ops.gather_dots(x, y, torch.arange(5).expand(3, 5))
    backward = ops.gather_dots(y, x, torch.arange(3).expand(5, 3))
    assert_same_bits(forward, backward.T)
    for j in range(5):
        assert_same_bits(ops.gather_dots(x, y, torch.full((3, 1), j))[:, 0], forward[:, j])


@pytest.mark.parametrize("op", ["latent_sum", "latent_update"])
def test_latents_with_many_entries_are_summed_in_pieces(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 8 instead of 512: half the entries belong to one latent."""
    monkeypatch.setattr(by_latent.sort_by_latent, "__defaults__", (8,))
    summed = []

    def counting(values, by, *arguments):  # type: ignore[no-untyped-def]
        summed.append(int((by.piece_end > by.piece_begin).sum()))
        return partial_sums(values, by, *arguments)

    partial_sums = latent_sum.partial_sums
    for module in (latent_sum, latent_update):
        monkeypatch.setattr(module, "partial_sums", counting)
    n, d, m = 45, 19, 6
    indices = torch.stack([torch.zeros(n), torch.arange(n) % 5 + 1], 1).long()
    # Entries whose value is zero belong to no latent.
    values = small_integers((n, 2), 0, torch.float32).abs() + 1
    rows = small_integers((n, d), 1, torch.float32)
    if op == "latent_sum":
        actual = ops.latent_sum(values, indices, rows, m)
        assert_same_bits(actual, reference.latent_sum(values, indices, rows, m))
    else:  # whose moments start from zero, so that the first moments are a quarter of the gradients
        weight, bias = torch.zeros(m, d), torch.zeros(m)
        moments = [torch.zeros_like(t) for t in (weight, weight, bias, bias, weight, weight)]
        rates = torch.ones(2, dtype=torch.float64)
        update = update_of(
            (indices, values, values, rows, rows),
            (weight, bias, weight.clone()),
            moments,
            rates=rates,
            beta1=0.75,
            beta2=0.75,
            eps=1.0,
            unit_norm=False,
        )
        ops.latent_update(*update)
        for moment in (moments[0], moments[4]):
            assert_same_bits(moment * 4, reference.latent_sum(values, indices, rows, m))
    assert summed == [6 + 5 * 2] * (1 if op == "latent_sum" else 2)


def test_gradients_of_a_model_equal_autograds() -> None:
    """Gradients of encode, decode and all ops of their backward passes."""
    n, d, m, k = 5, 12, 40, 4
    x, scale = normal((n, d), 0, torch.float32), normal((m,), 1, torch.float32).abs()
    leaves = [normal(s, i, torch.float32) for i, s in enumerate([(m, d), (m,), (m, d), (d,)], 2)]

    def gradients(encode: object, decode: object) -> tuple[torch.Tensor, ...]:
        wanted = [leaf.clone().requires_grad_() for leaf in (x, scale, *leaves)]
        rows, factors, w_enc, b_enc, w_dec, b_dec = wanted
        code = encode(rows - b_dec, w_enc, b_enc, k=k, scale=factors)
        out = decode(code.values.relu(), code.indices, w_dec, b_dec)
        return torch.autograd.grad((out - rows).square().sum(), wanted)

    actual = gradients(saefast.topk_encode, saefast.sparse_decode)
    expected = gradients(reference.topk_encode, reference.sparse_decode)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_indices_out_of_range_are_refused_and_not_read() -> None:
    values, weight = torch.ones(1, 2), torch.ones(3, 4)
    wrong = torch.tensor([[1, 3]])
    with pytest.raises(ValueError, match=r"indices must be in \[0, 3\)"):
        saefast.sparse_decode(values, wrong, weight)
    # The ops that do not check indices read nothing out of bounds.
    assert ops.gather_dots(torch.ones(1, 4), weight, wrong).tolist() == [[4.0, 0.0]]
    assert ops.latent_sum(values, wrong, torch.ones(1, 4), 3)[1].tolist() == [1.0] * 4
