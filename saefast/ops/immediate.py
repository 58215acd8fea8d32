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
        if type(operand) not in _TYPES or operand.device.type not in _DEVICES:
            return False
    return not observed()


def observed() -> bool:
    """Return whether a compiler, tracer, transform of torch.func or dispatch mode must see ops."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def refuse_tangents(*operands: Tensor | None) -> None:
    """Raise a NotImplementedError if an operand has a tangent, which torch's custom ops drop."""
    if forward_ad._current_level < 0:
        return
    for operand in operands:
        if operand is None:
            continue
        dual = forward_ad.unpack_dual(operand)  # type: ignore[no-untyped-call]
        if dual.tangent is not None:
            raise NotImplementedError(
                "forward-mode derivatives (torch.func.jvp, jacfwd, forward_ad) are not implemented;"
                " use reverse mode, or the functions of saefast.reference"
            )
