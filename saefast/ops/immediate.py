"""Calls of kernels without torch's dispatcher, whose Python layers take longer than a small op."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_TYPES = (Tensor, nn.Parameter)
_DEVICES = ("cpu", "cuda")


def immediate(*operands: Tensor | None) -> bool:
    """Return whether a kernel may be called on the operands without the dispatcher.

    This requires that no derivative is recorded, and that neither a subclass of Tensor nor anything
    else has to see the op; see `observed`.
    """
    records = torch.is_grad_enabled()
    for operand in operands:
        if operand is None:
            continue
        if records and operand.requires_grad:
            return False
        if not plain(operand):
            return False
    return not observed()


def plain(operand: Tensor) -> bool:
    """Return whether a tensor is of torch's own types, and on a device that has kernels."""
    return type(operand) in _TYPES and operand.device.type in _DEVICES


def observed() -> bool:
    """Return whether a compiler, tracer, transform of torch.func or dispatch mode must see ops."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def refuse_transforms(*operands: Tensor | None) -> None:
    """Raise a NotImplementedError if torch's custom ops cannot differentiate an operand.

    They drop the tangents of forward mode. Under torch.func.grad and similar transforms, torch
    raises an error about its own classes.
    """
    for operand in operands:
        if operand is None:
            continue
        if _has_tangent(operand):
            raise NotImplementedError(
                "forward-mode derivatives (torch.func.jvp, jacfwd, forward_ad) are not implemented;"
                " use reverse mode, or the functions of saefast.reference"
            )
        if _is_differentiated(operand):
            raise NotImplementedError(
                "derivatives by torch.func (grad, vjp, jacrev) are not implemented; use "
                "torch.autograd.grad or backward, or the functions of saefast.reference"
            )


def _has_tangent(operand: Tensor) -> bool:
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(operand).tangent is not None  # type: ignore[no-untyped-call]


def _is_differentiated(operand: Tensor) -> bool:
    """Return whether torch.func.grad or similar differentiates a tensor, also inside vmap."""
    if torch.compiler.is_compiling():  # the tensors of a compiler are not wrapped
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(operand):
        if functorch.is_gradtrackingtensor(operand) and operand.requires_grad:
            return True
        operand = functorch.get_unwrapped(operand)
    return False
