"""Errors of C++ for tensors that do not fit: it reads and writes only checked memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.strategies import normal
from helpers.updates import update_of
from torch import Tensor

from saefast import sparse_decode, topk_encode
from saefast.ops.cpu import native
from saefast.ops.encode_cpu import PackedWeight, Screen
from saefast.types import Update

N, D, M, K, C = 3, 4, 6, 2, 2
SHAPES = {
    "indices": (N, K),
    "values": (N, K),
    "value_grads": (N, K),
    "residual": (2, N, D),
    "inputs": (N, D),
    **{f"w_{side}{moment}": (M, D) for side in ("enc", "dec") for moment in ("_first", "_second")},
    "w_dec": (M, D),
    "b_enc": (M,),
    "b_enc_first": (M,),
    "b_enc_second": (M,),
    "norm": (M,),
    "lost": (M,),
    "extra_w_enc": (C, D),
    "extra_b_enc": (C,),
    "extra_w_dec": (C, D),
    "rates": (2,),
    "shrink_enc": (M,),
    "shrink_dec": (M,),
    "sign": (2,),
    "factor": (),
}
"""Of the operands whose shape others decide on"""
OTHERS = ("w_enc", "units", "extra_latents", "group_ends")


def whole_update() -> Update:
    """Return all operands of an update."""
    parameters = [normal(shape, seed, torch.float32) for seed, shape in enumerate([(M, D), (M,)])]
    parameters.append(normal((M, D), 2, torch.float32))
    packed = PackedWeight.of(parameters[0], Screen("native", "float32"))
    values = torch.ones(N, K)
    return update_of(
        (
            torch.zeros(N, K, dtype=torch.int64),
            values,
            values,
            torch.ones(2, N, D),
            torch.ones(N, D),
        ),
        parameters,
        [torch.zeros_like(p) for p in parameters for _ in range(2)],
        packed=(packed.units, packed.norm, packed.lost),
        extra=(torch.tensor([1, M]), torch.ones(C, D), torch.ones(C), torch.ones(C, D)),
        rates=torch.ones(2, dtype=torch.float64),
        beta1=0.9,
        beta2=0.99,
        eps=1e-8,
        unit_norm=True,
        shrink_enc=torch.ones(M),
        shrink_dec=torch.ones(M),
        sign=torch.ones(2, dtype=torch.float64),
        factor=torch.tensor(0.5, dtype=torch.float64),
        group_ends=torch.tensor([2, M]),
    )


def run(update: Update) -> tuple[Tensor, Tensor]:
    """Call C++ directly."""
    input_grad_sum, fired = torch.empty(D), torch.empty(M, dtype=torch.int64)
    native.latent_update(update, input_grad_sum, None, fired, None, None, 1)
    return input_grad_sum, fired


def test_every_tensor_of_an_update_is_listed() -> None:
    update = whole_update()
    run(update)
    tensors = {name for name, value in update._asdict().items() if isinstance(value, Tensor)}
    assert {*SHAPES, *OTHERS} == tensors
    assert {name: tuple(getattr(update, name).shape) for name in SHAPES} == SHAPES


@pytest.mark.parametrize(("latents", "width"), [(M, 0), (M + 1, 2 * D + 1)])
def test_wrong_room_for_gradients_raises(latents: int, width: int) -> None:
    update = whole_update()
    (m, d), stored = update.w_enc.shape, native.StoredGradients(latents, width, 4)
    squares, fired = torch.zeros(m, dtype=torch.float64), torch.empty(m, dtype=torch.int64)
    with pytest.raises(ValueError, match="stored must have room"):
        native.latent_update(update, torch.empty(d), None, fired, squares, stored, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shapes_of_an_update_raise(name: str) -> None:
    update = whole_update()
    tensor = getattr(update, name)
    longer = torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor[None]
    for wrong in (longer, tensor[None]):
        # The code determines n and k, so another operand does not fit.
        named = "values" if name == "indices" and wrong.ndim == 2 else name
        with pytest.raises(ValueError, match=rf"^{named} must have (shape|2 dimensions)"):
            run(update._replace(**{name: wrong}))


@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_wrong_dtypes_of_an_update_raise(name: str) -> None:
    update = whole_update()
    tensor = getattr(update, name)
    with pytest.raises(TypeError, match=rf"^{name} must be .*float|^{name} must be int"):
        run(update._replace(**{name: tensor.bool()}))


@pytest.mark.parametrize("name", [name for name in (*SHAPES, *OTHERS) if name != "factor"])
def test_strided_operands_of_an_update_raise(name: str) -> None:
    update = whole_update()
    tensor = getattr(update, name)
    apart = torch.stack([tensor, tensor], -1)[..., 0]
    with pytest.raises(ValueError, match=rf"^{name} .*must be contiguous.*pass {name}.contiguous"):
        run(update._replace(**{name: apart}))


def test_incomplete_operands_of_an_update_raise() -> None:
    update = whole_update()
    for name in ("extra_latents", "extra_b_enc"):
        with pytest.raises(ValueError, match="the extra gradients must be given together"):
            run(update._replace(**{name: None}))
    with pytest.raises(ValueError, match="units, norm and lost must be given together"):
        run(update._replace(norm=None))
    with pytest.raises(ValueError, match=r"units must have shape \(\d+,\), got \(1,\)"):
        run(update._replace(units=update.units[:1]))


VALUES, INDICES = torch.ones(N, K), torch.zeros(N, K, dtype=torch.int64)
WEIGHT, OUT = torch.ones(M, D), torch.empty(N, D)
MISFITS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no tensor": (
        lambda: native.sparse_decode(VALUES, INDICES, WEIGHT.tolist(), None, OUT, 1),
        TypeError,
        "incompatible function arguments",
    ),
    "None": (
        lambda: native.sparse_decode(VALUES, INDICES, None, None, OUT, 1),
        TypeError,
        "weight must be a torch.Tensor, got None",
    ),
    "another device": (
        lambda: native.sparse_decode(VALUES, INDICES, WEIGHT.to("meta"), None, OUT, 1),
        ValueError,
        "weight must be on the CPU, got meta",
    ),
    "a dtype of no kernel": (
        lambda: native.sparse_decode(VALUES, INDICES, WEIGHT.half(), None, OUT, 1),
        TypeError,
        "weight must be float32, float64 or bfloat16, got float16",
    ),
    "another dtype": (
        lambda: native.sparse_decode(VALUES.double(), INDICES, WEIGHT, None, OUT, 1),
        TypeError,
        "values must be float32, got float64",
    ),
    "dimensions": (
        lambda: native.sparse_decode(VALUES, INDICES, WEIGHT[None, None], None, OUT, 1),
        ValueError,
        r"weight must have 2 dimensions, got shape \(1, 1, 6, 4\)",
    ),
    "the output": (
        lambda: native.sparse_decode(VALUES, INDICES, WEIGHT, None, OUT[1:], 1),
        ValueError,
        r"out must have shape \(3, 4\), got \(2, 4\)",
    ),
    "a view": (
        lambda: native.sparse_decode(VALUES, INDICES, torch.ones(D, M).T, None, OUT, 1),
        ValueError,
        r"weight must be contiguous, got shape \(6, 4\) with strides \(1, 6\)",
    ),
    "absolute values above a threshold": (
        lambda: native.encode(
            torch.ones(N, D),
            WEIGHT,
            None,
            None,
            torch.zeros(M),
            torch.empty(N, K),
            INDICES.clone(),
            torch.empty(N, dtype=torch.int64),
            True,
            True,
            "float32",
            None,
            None,
            None,
            1,
        ),
        ValueError,
        "absolute must be false with a threshold",
    ),
    "rows of a tile": (
        lambda: tile_screen().feed(torch.empty(2, M), 0, 3, 0, M, 1),
        ValueError,
        r"scores must have at least 3 rows and 6 columns, got shape \(2, 6\)",
    ),
    "rows of an encode": (
        lambda: tile_screen().feed(torch.empty(2, M), N - 1, 2, 0, M, 1),
        ValueError,
        rf"row and rows must be within the {N} rows of the encode, got row={N - 1} and rows=2",
    ),
    "columns of an encode": (
        lambda: tile_screen().feed(torch.empty(1, M + 1), 0, 1, 0, M + 1, 1),
        ValueError,
        rf"must be within the {M} columns of the encode, got column=0 and columns={M + 1}",
    ),
    "the first column": (
        lambda: tile_screen().feed(torch.empty(1, M), 0, 1, 3, 1, 1),
        ValueError,
        "column must be a multiple of 64, got 3",
    ),
    "rows to finish": (
        lambda: tile_screen().finish(-1, 1, 1),
        ValueError,
        "got row=-1 and rows=1",
    ),
    "a product": (
        lambda: native.panel_units("int8", D, M),
        ValueError,
        "product must be float32, bfloat16 or int16, got 'int8'",
    ),
    "groups out of order": (
        lambda: run(whole_update()._replace(group_ends=torch.tensor([4, 3]))),
        ValueError,
        "group_ends must ascend, got 3 after 4 at entry 1",
    ),
}


def tile_screen() -> native.TileScreen:
    """Return a tile screen for an encode of `OUT` by `WEIGHT`."""
    arrays = (torch.ones(N, D), WEIGHT, None, None, None, torch.empty(N, K), INDICES.clone(), None)
    return native.TileScreen(*arrays, False, "float32", 1)


@pytest.mark.parametrize("misfit", MISFITS)
def test_arguments_that_do_not_fit_raise(misfit: str) -> None:
    call, kind, message = MISFITS[misfit]
    with pytest.raises(kind, match=message):
        call()


def test_views_of_parameters_and_half_precision_are_read() -> None:
    """A view has the elements of tensor subclasses, and the offset of a slice."""
    rows = torch.arange(24.0).view(M, D).bfloat16()
    weight = torch.nn.Parameter(rows, requires_grad=False)
    out = torch.empty(1, D, dtype=torch.bfloat16)
    values, indices = VALUES[:1, :1].bfloat16(), torch.tensor([[1]])
    native.sparse_decode(values, indices, weight, None, out, 1)
    assert torch.equal(out[0], rows[1])
    native.sparse_decode(values, indices, weight[2:], None, out, 1)
    assert torch.equal(out[0], rows[3])


def test_lazy_negatives_are_read() -> None:
    """The imaginary part of a conjugate is a view of memory that holds its negative."""
    x = torch.randn(N, D)
    rows = torch._neg_view(-x)
    weight, indices = torch.randn(M, D), torch.zeros(N, 1, dtype=torch.int64)
    assert rows.is_neg()
    assert torch.equal(topk_encode(rows, weight, k=K).values, topk_encode(x, weight, k=K).values)
    decoded = sparse_decode(rows[:, :1], indices, weight)
    assert torch.equal(decoded, sparse_decode(x[:, :1].clone(), indices, weight))


def test_tensors_are_read_without_the_exchange_api_of_dlpack(tmp_path: Path) -> None:
    """Before torch 2.10, Python attributes are used instead."""
    program = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
from saefast.ops.cpu import native
weight, out = torch.arange(24.0).view(6, 4).bfloat16(), torch.empty(1, 4, dtype=torch.bfloat16)
values, indices = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([[1]])
native.sparse_decode(values, indices, weight[2:], None, out, 1)
assert torch.equal(out[0], weight[3])
for wrong in (weight[None], weight.float(), weight.T.contiguous().T, weight[:, :2]):
    try:
        native.sparse_decode(values, indices, wrong, None, out, 1)
    except (TypeError, ValueError) as error:
        print(error)
"""
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        program = program.replace("del torch.Tensor.__dlpack_c_exchange_api__\n", "")
    # Run in another folder, so that Python does not import the checkout without compiled kernels.
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [
        "weight must have 2 dimensions, got shape (1, 6, 4)",
        "values must be float32, got bfloat16",
        "weight must be contiguous, got shape (6, 4) with strides (1, 6); pass weight.contiguous()",
        "weight must be contiguous, got shape (6, 2) with strides (4, 1); pass weight.contiguous()",
    ]
