"""Dense matrix [n, m] of pre-activations that is computed only when it is read.

Other libraries pass such a matrix on and hardly ever read it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from saefast.ops.topk_encode import topk_encode
from saefast.types import SparseCode

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""Dtypes in which saefast encodes."""


def precision_at(x: Tensor) -> str:
    """Return the precision of an encode: "bf16" if autocast would round the dense product."""
    device = x.device.type
    low = (torch.bfloat16, torch.float16)
    rounds = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in low
    return "bf16" if rounds else "exact"


class PreActivations(Tensor):
    """Tensor (x @ weight.T + bias) * scale [..., m], rectified or not, that is computed lazily.

    Its k largest values, of all latents or of those that a mask leaves, are found by an encode.
    Every other operation computes the dense matrix. Gradients reach x, weight, bias and scale
    either way. It must be read before the weights change: afterwards it raises RuntimeError.

    Args:
        x: [..., d] inputs.
        weight: [m, d] encoder.
        bias: [m] biases; None: zeros.
        scale: [m] factors of the latents; None: ones.
        rectified: replace negative values by zero.
        among: [m] bool, latents to keep; the others are -infinity. None keeps all.
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
        """Create the tensor without computing its values."""
        made: PreActivations = Tensor._make_wrapper_subclass(
            cls, (*x.shape[:-1], len(weight)), dtype=weight.dtype, device=weight.device
        )
        made.operands = (x, weight, bias, scale)
        made._rectified, made._among, made._born = rectified, among, _version_of(weight)
        return made

    def dense(self) -> Tensor:
        """Return the dense matrix [..., m]."""
        x, weight, bias, scale = self._current()
        acts = torch.nn.functional.linear(x, weight, bias)
        acts = acts if scale is None else acts * scale
        acts = acts.relu() if self._rectified else acts
        return acts if self._among is None else torch.where(self._among, acts, -torch.inf)

    def largest(self, k: int, *, absolute: bool = False) -> SparseCode:
        """Return the k largest values of each row and their latents, [..., k].

        With `absolute`, they are ranked by their absolute value.
        """
        x, weight, bias, scale = self._current()
        latents = None if self._among is None else self._among.nonzero().flatten()
        if latents is not None:
            weight = weight.index_select(0, latents)
            bias = None if bias is None else bias.index_select(0, latents)
            scale = None if scale is None else scale.index_select(0, latents)
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        values, indices = topk_encode(
            rows, weight, bias, k=k, scale=scale, precision=precision_at(x), absolute=absolute
        )
        values = values.relu() if self._rectified else values
        indices = indices if latents is None else latents[indices]
        shape = (*x.shape[:-1], k)
        return SparseCode(values.view(shape), indices.view(shape))

    def only(self, among: Tensor) -> "PreActivations":
        """Return the same tensor with -infinity for latents where `among` [m] is false."""
        return PreActivations(*self._current(), rectified=self._rectified, among=among)

    def _current(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if _version_of(self.operands[1]) != self._born:
            raise RuntimeError(
                "pre-activations were read after the weights had changed, but they are computed at "
                "the first read; read them or call .dense() before the optimiser's step"
            )
        return self.operands

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle a torch function of such a tensor; called by torch."""
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
        """Handle an operation that reaches such a tensor from within torch; called by torch."""
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
"""Attributes that are known without computing the values."""


def _version_of(weight: Tensor) -> int | None:
    return None if weight.is_inference() else weight._version


def _of_dense(func: Any, args: Any, kwargs: Any) -> Any:
    def dense(one: Any) -> Any:
        return one.dense() if isinstance(one, PreActivations) else one

    return func(*tree_map(dense, args), **tree_map(dense, kwargs))


def _masked(mask: Tensor, input: Any = None, other: Any = None, **_: Any) -> Tensor | None:
    """Return the result of torch.where if it keeps the same latents in all rows, otherwise None."""
    if not isinstance(input, PreActivations) or input._among is not None:
        return None
    same = mask.dtype == torch.bool and mask.shape == (1, input.shape[-1])
    return input.only(mask[0]) if same and other == -torch.inf else None


def _topk(
    input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **_: Any
) -> SparseCode | None:
    """Return the result of torch.topk if an encode can compute it, otherwise None."""
    assert isinstance(input, PreActivations)
    if dim not in (-1, input.ndim - 1) or not largest:
        return None
    if input._among is not None and k > int(input._among.sum()):
        return None
    return input.largest(k)
