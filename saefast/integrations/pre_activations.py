"""A dense [n, m] matrix that peers pass on and hardly ever read: computed when it is looked at."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from saefast.ops.topk_encode import topk_encode
from saefast.types import SparseCode

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What saefast encodes in."""


def precision_at(x: Tensor) -> str:
    """What an encode computes in: bfloat16 where the dense product would, under autocast."""
    device = x.device.type
    low = (torch.bfloat16, torch.float16)
    rounds = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in low
    return "bf16" if rounds else "exact"


class PreActivations(Tensor):
    """(x @ weight.T + bias) * scale [..., m], rectified or not, as a tensor.

    Where the largest are asked for, of all latents or of those a mask leaves, an encode finds them.
    For anything else it becomes the dense matrix. Gradients reach x, weight, bias and scale either
    way. It must be read before the weights change: afterwards it raises RuntimeError.

    Args:
        x: [..., d].
        weight: [m, d].
        bias: [m].
        scale: [m].
        rectified: negative ones are zero.
        among: [m] bool; the others are -infinity.
    """

    operands: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    _rectified: bool
    _among: Tensor | None
    _born: int | None

    @staticmethod
    def __new__(
        cls,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None = None,
        *,
        rectified: bool,
        among: Tensor | None = None,
    ) -> "PreActivations":
        """Computes nothing."""
        made: PreActivations = Tensor._make_wrapper_subclass(
            cls, (*x.shape[:-1], len(weight)), dtype=weight.dtype, device=weight.device
        )
        made.operands = (x, weight, bias, scale)
        made._rectified, made._among, made._born = rectified, among, _version_of(weight)
        return made

    def dense(self) -> Tensor:
        """The matrix itself."""
        x, weight, bias, scale = self._current()
        acts = torch.nn.functional.linear(x, weight, bias)
        acts = acts if scale is None else acts * scale
        acts = acts.relu() if self._rectified else acts
        return acts if self._among is None else torch.where(self._among, acts, -torch.inf)

    def largest(self, k: int) -> SparseCode:
        """The k largest of each row, [..., k]."""
        x, weight, bias, scale = self._current()
        latents = None if self._among is None else self._among.nonzero().flatten()
        if latents is not None:
            weight = weight.index_select(0, latents)
            bias = None if bias is None else bias.index_select(0, latents)
            scale = None if scale is None else scale.index_select(0, latents)
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        values, indices = topk_encode(
            rows, weight, bias, k=k, scale=scale, precision=precision_at(x)
        )
        values = values.relu() if self._rectified else values
        indices = indices if latents is None else latents[indices]
        shape = (*x.shape[:-1], k)
        return SparseCode(values.view(shape), indices.view(shape))

    def only(self, among: Tensor) -> "PreActivations":
        """The same with -infinity for latents where `among` [m] is false."""
        return PreActivations(*self._current(), rectified=self._rectified, among=among)

    def _current(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if _version_of(self.operands[1]) != self._born:
            raise RuntimeError(
                "pre-activations were read after the weights had changed; they are computed when "
                "they are read: read them, or call .dense(), before the optimiser's step"
            )
        return self.operands

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function of such a tensor."""
        kwargs = kwargs or {}
        if func in _FACTS:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if func is torch.where and (masked := _masked(*args, **kwargs)) is not None:
            return masked
        if func in (torch.topk, Tensor.topk) and (code := _topk(*args, **kwargs)) is not None:
            return torch.return_types.topk(code)
        return _of_dense(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Called for what reaches such a tensor from within torch."""
        return _of_dense(func, args, kwargs or {})


_FACTS = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout", "is_sparse")
    ),
}
"""What can be said without computing anything."""


def _version_of(weight: Tensor) -> int | None:
    return None if weight.is_inference() else weight._version


def _of_dense(func: Any, args: Any, kwargs: Any) -> Any:
    def dense(one: Any) -> Any:
        return one.dense() if isinstance(one, PreActivations) else one

    return func(*tree_map(dense, args), **tree_map(dense, kwargs))


def _masked(mask: Tensor, input: Any = None, other: Any = None, **_: Any) -> Tensor | None:
    """torch.where, if it leaves the same latents to all rows."""
    if not isinstance(input, PreActivations) or input._among is not None:
        return None
    same = mask.dtype == torch.bool and mask.shape == (1, input.shape[-1])
    return input.only(mask[0]) if same and other == -torch.inf else None


def _topk(
    input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **_: Any
) -> SparseCode | None:
    """torch.topk, if an encode can do it."""
    assert isinstance(input, PreActivations)
    if dim not in (-1, input.ndim - 1) or not largest:
        return None
    if input._among is not None and k > int(input._among.sum()):
        return None
    return input.largest(k)
