"""score_bits: comparison of kernels whose exact scores must have the same bits.

`exact_scores` is inlined in four kernels, and the order in which the products of a score are added
follows from the compiler's layout of a block over threads. `summations` compares the layouts
without a GPU, `scores_by_kernel` the scores themselves on a GPU.
"""

import os
import re
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import saefast
from bench.rehearsal.compiling import kernel_of
from bench.rehearsal.pretended_gpu import DEVICE, GPUS, on
from bench.rehearsal.recording import Launched, recording
from saefast.ops import gpu
from saefast.ops.gpu_screens import CANDIDATES, ENVIRONMENT
from saefast.types import SparseCode

SCORERS = ("score_candidates", "score_all", "keep_above", "settle_lists")
_LOWEST = -1e36  # so low that rows count as near overflow and all columns are scored


class Summation(NamedTuple):
    """Order in which a compiled kernel adds the products of a score."""

    layouts: frozenset[str]
    """layouts over threads of all blocks with the shape that is summed"""
    products: int
    """number of multiplications of two such blocks"""
    multiply_adds: int
    """number of fused float32 multiply-adds in the kernel"""


def summations(architecture: int, dtype: torch.dtype, d: int) -> dict[str, Summation]:
    """Compile every kernel that scores operands of width `d` exactly, and return its summation.

    For widths that are multiples of 16 the compiler loads wider vectors.

    Returns:
        The summation of each kernel, by its name and constants.
    """
    with on(GPUS[architecture]), recording() as launched:
        x, weight = (torch.empty(size, d, dtype=dtype, device=DEVICE) for size in (64, 4096))
        bias = torch.empty(4096, dtype=dtype, device=DEVICE)
        for screen in CANDIDATES:
            with mock.patch.dict(os.environ, {ENVIRONMENT: str(screen)}):
                saefast.topk_encode(x, weight, bias, k=8, scale=bias)
                saefast.threshold_encode(x, weight, bias, threshold=0.0, width=64, scale=bias)
    scorers = [one for one in launched if one.kernel in SCORERS]
    return {
        f"{one.kernel} {one.described['constants']}": _summation_of(one, architecture)
        for one in scorers
    }


def _summation_of(launched: Launched, architecture: int) -> Summation:
    assembly = kernel_of(launched, architecture).asm
    constants = dict(part.split("=") for part in launched.described["constants"].split(", "))
    code = assembly["ttgir"]
    block = f"tensor<{constants['COLUMNS']}x{constants['BLOCK_D']}xf32, "
    definitions = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", code, re.MULTILINE))
    layouts = frozenset(definitions[name] for name in re.findall(rf"{block}(#\w+)>", code))
    products = len(re.findall(rf"arith\.mulf .* : {block}", code))
    return Summation(layouts, products, len(re.findall(r"\bfma\.rn\.f32\b", assembly["ptx"])))


def scores_by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> dict[str, SparseCode]:
    """Return the k largest exact scores of rows on a GPU, from every kernel that computes them.

    All of them must be equal bit for bit.
    """
    above = saefast.threshold_encode(x, weight, bias, threshold=_LOWEST, width=k, scale=scale)
    return {
        "score_candidates": saefast.topk_encode(x, weight, bias, k=k, scale=scale),
        "score_all": _all_in_full(x, weight, bias, scale, k),
        "keep_above": SparseCode(above.values, above.indices),
    }


def _all_in_full(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> SparseCode:
    """Return the code of rows for which the screen is made to fail."""
    encode, lists = gpu.kernels("encode.topk_encode"), gpu.kernels("encode.lists")
    rounded = gpu.kernels("round_rows").rounded_rows
    n, m = x.shape[0], weight.shape[0]
    capacity = encode.capacity_of(m, x.shape[1], k, "bfloat16", lists.block())
    failed = lists.Lists(
        torch.empty(n, capacity, dtype=torch.int64, device=x.device),
        torch.full(
            (n,), gpu.kernels("encode.keep_best").OVERFLOW.value, dtype=torch.int32, device=x.device
        ),
        torch.full((n,), gpu.kernels("keys").EMPTY.value, dtype=torch.int64, device=x.device),
        torch.full((n,), torch.inf, device=x.device),
    )
    operands = x.contiguous(), weight.contiguous(), bias, scale
    rows = (rounded(t, "bfloat16") for t in operands[:2])
    encode._mend_failed(*operands, *rows, failed, k)
    code = SparseCode(x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int64))
    gpu.kernels("encode.select_triton").choose(failed.keys, failed.counts, *code)
    return code
