"""A simulated device beside the CPU: its tensors do not mix with those of the CPU, as on a GPU.

Its arithmetic is the CPU's, so that results have the bits of the CPU. An operation with tensors of
both raises, unless torch permits it for a GPU: numbers without dimensions, and indices on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta")
"""A device of every build of torch, whose tensors have numbers here"""

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""Operations whose indices may be on the CPU"""


class There(Tensor):
    """Tensor of the device, with its numbers in a tensor of the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    def tolist(self) -> Any:
        return self.here.tolist()  # torch refuses it for classes of tensors

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _perform(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """Mode in which the device exists."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _perform(func, args, kwargs or {})


class Constants(TorchFunctionMode):
    """Mode that copies values of Python to the device, where torch allocates memory alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _without_lists(args[1]), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[None]:
    """Let the device exist, and modules move there."""
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with SecondDevice(), Constants():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _perform(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    there = any(isinstance(each, There) for each in leaves)
    asked = kwargs.get("device")
    if there and func not in _COPIES:
        _check(func, args[2:] if func in _INDEXED else args, kwargs)
    if asked is not None and asked.type == DEVICE.type:
        there, kwargs = True, {**kwargs, "device": torch.device("cpu")}
    elif asked is not None:
        there = False
    if func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)
    out = func(
        *pytree.tree_map_only(There, lambda each: each.here, args),
        **pytree.tree_map_only(There, lambda each: each.here, kwargs),
    )
    if not there:
        return out
    out = pytree.tree_map_only(Tensor, There, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _check(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    for each in pytree.tree_leaves((args, kwargs)):
        if isinstance(each, Tensor) and not isinstance(each, There) and each.ndim:
            raise RuntimeError(
                f"{func} got tensors of the CPU and of {DEVICE}, shape {tuple(each.shape)}"
            )
