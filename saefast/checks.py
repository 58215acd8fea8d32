"""Validate arguments; errors state the argument, the expectation, the value and a remedy."""

import math

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def floating(name: str, value: object, shape: str) -> None:
    """Raise unless `value` is a dense float tensor with as many dimensions as `shape` names."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {shape}, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32, float64 or bfloat16, got {_dtype(value)}; convert it with "
            f"{name}.float()"
        )
    dense(name, value)
    _dimensions(name, value, shape)


def dense(name: str, value: Tensor) -> None:
    """Raise a TypeError unless `value` is a dense tensor."""
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise TypeError(
            f"{name} must be a dense tensor, got one of layout {layout}; convert it with "
            f"{name}.to_dense()"
        )


def at_least_float32(name: str, value: Tensor) -> None:
    """Raise a TypeError unless `value` is float32 or float64, as trained parameters must be."""
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32 or float64 to be trained, got {_dtype(value)}; use "
            f"{name}.float()"
        )


def indices(name: str, value: object, shape: str) -> None:
    """Raise unless `value` is an int64 tensor with as many dimensions as `shape` names."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {shape}, got {type(value).__name__}")
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {_dtype(value)}; convert it with {name}.long()")
    _dimensions(name, value, shape)


def mask(name: str, value: object, size: int) -> None:
    """Raise unless `value` is a bool tensor [size]."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = _dtype(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a bool tensor [{size}], got {kind}")
    shape(name, value, (size,))


def same_kind(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise unless both tensors have the same dtype and device."""
    if a.dtype != b.dtype:
        raise TypeError(
            f"{second} must have the dtype of {first}, {_dtype(a)}, got {_dtype(b)}; convert one "
            f"of them with .to()"
        )
    same_device(first, a, second, b)


def same_device(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise a ValueError unless both tensors are on the same device."""
    if a.device != b.device:
        raise ValueError(
            f"{second} must be on the device of {first}, {a.device}, got {b.device}; move one of "
            f"them with .to()"
        )


def dtype(name: str, value: Tensor, expected: torch.dtype) -> None:
    """Raise a TypeError unless `value` has this dtype."""
    if value.dtype != expected:
        wanted = str(expected).removeprefix("torch.")
        raise TypeError(f"{name} must be {wanted}, got {_dtype(value)}")


def size(name: str, value: Tensor, axis: int, expected: int, because: str) -> None:
    """Raise a ValueError unless `value.shape[axis]` is `expected`."""
    if value.shape[axis] != expected:
        raise ValueError(
            f"{name} must have size {expected} in dimension {axis} ({because}), got shape "
            f"{tuple(value.shape)}"
        )


def shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Raise a ValueError unless `value` has exactly this shape."""
    if tuple(value.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")


def code(values: Tensor, indices_: Tensor, weight: Tensor) -> None:
    """Raise unless a sparse code and the weight that its indices refer to are compatible."""
    floating("values", values, "[n, k]")
    indices("indices", indices_, "[n, k]")
    floating("weight", weight, "[m, d]")
    same_kind("weight", weight, "values", values)
    same_device("weight", weight, "indices", indices_)
    for axis in (0, 1):
        size("indices", indices_, axis, values.shape[axis], "the shape of values")


def whole(name: str, value: object, least: int | None = None) -> None:
    """Raise unless `value` is an integer of at least `least`; bools are rejected."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def between(name: str, value: int, low: int, high: int, because: str) -> None:
    """Raise a ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high} ({because}), got {value}")


def at_least(name: str, value: object, low: float, *, below: float = math.inf) -> None:
    """Raise unless `value` is a number with low <= value < below."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value < below:
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name} must be at least {low:g}{limit}, got {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def cpu_or_cuda(name: str, value: torch.device | str) -> torch.device:
    """Return the device with a name; raise a ValueError unless it names a CPU or a CUDA GPU."""
    where = _named_device(name, value)
    if where.type not in ("cpu", "cuda"):
        raise _not_a_device(name, value)
    return where


def device_here(name: str, value: torch.device | str) -> torch.device:
    """Return the device with a name; raise a ValueError if torch does not have it."""
    where = _named_device(name, value)
    if where.type != "cuda":
        return where
    if not torch.cuda.is_available():
        raise ValueError(
            f"{name} must be available, got {str(value)!r}, but this torch, {torch.__version__}, "
            f"finds no CUDA GPU; use {name}='cpu'"
        )
    count = torch.cuda.device_count()
    if where.index is not None and where.index >= count:
        raise ValueError(
            f"{name} must be available, got {str(value)!r}, but there are {count} CUDA GPUs, "
            f"counted from 0; use {name}='cuda'"
        )
    return where


def finite(name: str, value: Tensor, masking: float | None = None) -> None:
    """Raise a ValueError if `value` holds NaN or infinity other than `masking`.

    Args:
        name: name of the argument in error messages.
        value: tensor to check.
        masking: infinity that marks a masked latent and is accepted; None accepts neither.
    """
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device")
    good = value.isfinite()
    if masking is not None:
        good = good | (value == masking)
    if not bool(good.all()):
        row = int((~good).nonzero()[0, 0])
        kind = {None: "finite", torch.inf: "finite or infinity"}.get(masking, "finite or -infinity")
        raise ValueError(f"{name} must be {kind}, but row {row} holds NaN or infinity")


def finite_operands(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
    """Raise a ValueError unless the operands of an encode are finite; a bias may be -infinity."""
    finite("x", x)
    finite("weight", weight)
    if bias is not None:
        finite("bias", bias, masking=-torch.inf)
    if scale is not None:
        finite("scale", scale)


def encode_operands(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
    """Raise unless the operands of an encode have compatible shapes, dtypes and devices."""
    floating("x", x, "[n, d]")
    floating("weight", weight, "[m, d]")
    same_kind("weight", weight, "x", x)
    size("x", x, 1, weight.shape[1], "the columns of weight")
    for name, vector in (("bias", bias), ("scale", scale)):
        if vector is not None:
            floating(name, vector, "[m]")
            same_kind("weight", weight, name, vector)
            size(name, vector, 0, weight.shape[0], "one entry per row of weight")
    between("weight.shape[1]", weight.shape[1], 1, 2**31 - 1, "the width")
    between("weight.shape[0]", weight.shape[0], 0, 2**31 - 1, "indices inside are 32 bits")


def in_range(name: str, value: Tensor, m: int) -> None:
    """Raise a ValueError unless every entry is in [0, m)."""
    bad = (value < 0) | (value >= m)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} must be in [0, {m}), but row {row}, column {column} is "
            f"{int(value[row, column])}"
        )


def writable(name: str, value: Tensor) -> None:
    """Raise a ValueError unless `value` is contiguous, so that no two elements share memory."""
    if not value.is_contiguous():
        raise ValueError(
            f"{name} is updated in place and must be contiguous without overlap, got shape "
            f"{tuple(value.shape)} with strides {value.stride()}; pass {name}.contiguous()"
        )


def _dimensions(name: str, value: Tensor, shape: str) -> None:
    if value.ndim != shape.count(",") + 1:
        raise ValueError(
            f"{name} must have shape {shape}, got {tuple(value.shape)}; reshape it first"
        )


def _named_device(name: str, value: torch.device | str) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise _not_a_device(name, value) from error


def _not_a_device(name: str, value: object) -> ValueError:
    return ValueError(f"{name} must be cpu, cuda or cuda:NUMBER, got {value!r}")


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
