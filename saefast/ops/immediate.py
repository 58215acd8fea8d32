"""Calls of kernels without torch's dispatcher, whose Python layers take longer than a small op."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_TYPES = (Tensor, nn.Parameter)
_DEVICES = ("cpu", "cuda")


def immediate(*operands: Tensor | None) -> bool:
    """Return whether a kernel may be called on the operands without the dispatcher.

    This requires that no derivative is recorded, and that no compiler, transform of torch.func,
    dispatch mode or subclass of Tensor has to see the op.
    """
    records = torch.is_grad_enabled()
    for operand in operands:
        if operand is None:
            continue
        if records and operand.requires_grad:
            return False
        if type(operand) not in _TYPES or operand.device.type not in _DEVICES:
            return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )
