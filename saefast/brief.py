"""How results print: sizes in place of numbers, so that one fits on a screen."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_FEW = 6


def brief(result: Any) -> str:
    """For `__repr__` of a named tuple or a dataclass: its fields, without those that are None."""
    if dataclasses.is_dataclass(result):
        names = [each.name for each in dataclasses.fields(result) if each.repr]
    else:
        names = list(result._fields)
    values = ((name, getattr(result, name)) for name in names)
    told = ", ".join(f"{name}={_told(value)}" for name, value in values if value is not None)
    return f"{type(result).__name__}({told})"


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_meta:
            return _told(value.item())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        if len(value) > _FEW:
            return f"<{len(value)} entries>"
        return f"{{{', '.join(f'{key!r}: {_told(its)}' for key, its in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str) and not _is_record(value):
        if value and _is_record(value[0]):
            return f"<{len(value)} {type(value[0]).__name__}>"
        each = [_told(its) for its in value[:_FEW]]
        if len(value) > 1 and len(set(each)) == 1:
            return f"{len(value)} x {each[0]}"
        return f"[{', '.join(each)}{', ...' * (len(value) > _FEW)}]"
    return repr(value)


def _is_record(value: Any) -> bool:
    return hasattr(value, "_fields") or dataclasses.is_dataclass(value)
