"""Operands of `latent_update`: schema for torch's dispatcher, layout and checks for kernels."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from saefast import checks
from saefast.types import Update

LEARNED = (
    *("w_enc", "b_enc", "w_dec"),
    *("w_enc_first", "w_enc_second"),
    *("b_enc_first", "b_enc_second"),
    *("w_dec_first", "w_dec_second"),
)
"""Names of the parameters and their moments in `Update`."""
MUTATED = (*LEARNED, "units", "norm", "lost")
_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", float: "float", bool: "bool"}

_T = TypeVar("_T")


def schema(mutated: tuple[str, ...]) -> str:
    """Return the schema of an op that takes the fields of an `Update` and modifies some."""
    arguments = []
    for i, (name, kind) in enumerate(Update.__annotations__.items()):
        written = _KINDS[kind]
        if name in mutated:
            written = written.replace("Tensor", f"Tensor({chr(97 + i)}!)")
        default = Update._field_defaults.get(name, ...)
        arguments.append(f"{written} {name}" + ("" if default is ... else f"={default}"))
    return f"({', '.join(arguments)}) -> (Tensor, Tensor)"


def by_fields(function: Callable[[Update], _T]) -> Callable[..., _T]:
    """Adapt a function of an `Update` to torch's dispatcher, which passes fields individually."""

    @functools.wraps(function)
    def called(*fields: Any) -> _T:
        return function(Update(*fields))

    return called


def contiguous(update: Update) -> Update:
    """Make the tensors contiguous that are only read."""
    read: dict[str, Any] = {
        name: value.contiguous().resolve_neg()
        for name, value in update._asdict().items()
        if isinstance(value, Tensor) and name not in MUTATED
    }
    return update._replace(**read)


def check(update: Update) -> None:
    """Raise unless all operands but the packed weight have the right dtype, device and shape."""
    checks.at_least_float32("w_enc", update.w_enc)
    checks.code(update.values, update.indices, update.w_enc)
    m, d = update.w_enc.shape
    n, k = update.values.shape
    d_out = update.w_dec.shape[-1]
    groups = () if update.group_ends is None else update.group_ends.shape
    shapes: dict[str, tuple[int, ...]] = {
        "value_grads": (n, k),
        "residual": (*groups, n, d_out),
        "inputs": (n, d),
    }
    rows = {"w_enc": (m, d), "b_enc": (m,), "w_dec": (m, d_out)}
    for name in LEARNED:
        checks.writable(name, getattr(update, name))
        shapes[name] = rows[name.removesuffix("_first").removesuffix("_second")]
    for name in ("shrink_enc", "shrink_dec"):
        if getattr(update, name) is not None:
            shapes[name] = (m,)
    if update.extra:
        checks.indices("extra_latents", update.extra.latents, "[c]")
        c = len(update.extra.latents)
        shapes |= {"extra_w_enc": (c, d), "extra_b_enc": (c,), "extra_w_dec": (c, d_out)}
    for name, shape in shapes.items():
        checks.same_kind("w_enc", update.w_enc, name, getattr(update, name))
        checks.shape(name, getattr(update, name), shape)
    check_scalars("rates", update.rates, (2,), update.w_enc)
    check_scalars("sign", update.sign, (2,), update.w_enc)
    check_scalars("factor", update.factor, (), update.w_enc)
    if update.group_ends is not None:
        checks.same_device("w_enc", update.w_enc, "group_ends", update.group_ends)
        checks.indices("group_ends", update.group_ends, "[g]")


def check_scalars(name: str, scalars: Tensor | None, shape: tuple[int, ...], w_enc: Tensor) -> None:
    """Raise unless scalars, if given, are float64 and on the device of `w_enc`."""
    if scalars is None:
        return
    checks.same_device("w_enc", w_enc, name, scalars)
    checks.dtype(name, scalars, torch.float64)
    checks.shape(name, scalars, shape)


def check_packed(update: Update, units: tuple[int, ...]) -> None:
    """Raise unless the packed weight, if given, is writable and its units have this shape."""
    if update.packed is None:
        return
    m = update.w_enc.shape[0]
    sizes: tuple[tuple[int, ...], ...] = (units, (m,), (m,))
    for name, part, size in zip(("units", "norm", "lost"), update.packed, sizes, strict=True):
        checks.writable(name, part)
        checks.shape(name, part, size)
