"""The GPU's topk_encode by every screen, and the rows whose screen fails."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers.codes import assert_same_code, assert_top_k
from helpers.strategies import Shape, as_laid_out, normal

import saefast
from saefast.kernels.encode import topk_encode
from saefast.ops.gpu_screens import ENVIRONMENT, SCREENS


class Operands(NamedTuple):
    """Operands of an encode."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor


def exact_by_every_screen(
    monkeypatch: pytest.MonkeyPatch,
    shape: Shape,
    seed: int,
    layout: str,
    data: Callable[..., torch.Tensor],
    *,
    absolute: bool = False,
) -> tuple[Operands, saefast.SparseCode]:
    """Encode drawn operands by each screen; the code must be the same, and the exact top k."""
    n, d, m, k = shape
    x = as_laid_out(data((n, d), seed, torch.float32), layout)
    weight = as_laid_out(data((m, d), seed + 1, torch.float32), layout)
    bias, scale = (normal((m,), seed + i, torch.float32) for i in (2, 3))
    codes = []
    for screen in SCREENS:
        monkeypatch.setenv(ENVIRONMENT, str(screen))
        codes.append(saefast.topk_encode(x, weight, bias, k=k, scale=scale, absolute=absolute))
    assert_top_k(codes[0], x, weight, bias, scale, absolute=absolute)
    for other in codes[1:]:
        assert_same_code(other, codes[0])
    return Operands(x, weight, bias, scale), codes[0]


def failed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that records the number of rows whose screen failed in each encode."""
    seen: list[int] = []
    mend = topk_encode._mend_failed

    def counting(*arguments: object) -> None:
        lists, k = arguments[-2:]
        seen.append(int((lists.counts < k).sum()))
        mend(*arguments)

    monkeypatch.setattr(topk_encode, "_mend_failed", counting)
    return seen
