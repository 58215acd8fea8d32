"""score_bits: the kernels whose exact scores must have the same bits, compared with each other.

`exact_scores` is inlined in four kernels, and the order in which the products of a score are added
follows from how the compiler lays a block out over threads. `summations` compares the layouts
without a GPU, `scores_by_kernel` gives the scores themselves on one.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor

import saefast
from bench.compiled import Kernel, binary_of, kernels
from saefast.ops import gpu
from saefast.types import SparseCode

SCORERS = ("score_candidates", "score_all", "keep_above", "settle_lists")
_LOWEST = torch.finfo(torch.float32).min


class Summation(NamedTuple):
    """How a compiled kernel adds the products of a score."""

    layouts: frozenset[str]
    """over threads, of all blocks of the shape that is summed"""
    products: int
    """multiplications of two such blocks"""
    multiply_adds: int
    """fused float32 ones in the kernel"""


def summations(
    architecture: int, *, bfloat16: bool = False, aligned: bool = True
) -> dict[str, Summation]:
    """The summation of every kernel that computes exact scores, by its name and constants.

    `bfloat16`: of operands in bfloat16 instead of float32. `aligned`: for widths that are multiples
    of 16, for which the compiler loads wider vectors.
    """
    found = {}
    for kernel in kernels(architecture):
        if kernel.name not in SCORERS:
            continue
        if bfloat16:
            operands = dict.fromkeys(["x", "weight", "bias", "scale"], "*bf16")
            kernel = kernel._replace(types={**kernel.types, **operands})
        hot = f" HOT={kernel.constants['HOT']}" if "HOT" in kernel.constants else ""
        found[kernel.name + hot] = _summation_of(kernel, architecture, aligned)
    return found


def _summation_of(kernel: Kernel, architecture: int, aligned: bool) -> Summation:
    assembly = binary_of(kernel, architecture, ("d", "width") if aligned else ()).asm
    code = assembly["ttgir"]
    block = f"tensor<{kernel.constants['COLUMNS']}x{kernel.constants['BLOCK_D']}xf32, "
    definitions = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", code, re.MULTILINE))
    layouts = frozenset(definitions[name] for name in re.findall(rf"{block}(#\w+)>", code))
    products = len(re.findall(rf"arith\.mulf .* : {block}", code))
    return Summation(layouts, products, len(re.findall(r"\bfma\.rn\.f32\b", assembly["ptx"])))


def scores_by_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> dict[str, SparseCode]:
    """The k largest exact scores of rows on a GPU, from every kernel that computes such scores.

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
    """As if the screen had failed in every row."""
    encode, lists = gpu.kernels("topk_encode"), gpu.kernels("lists")
    rounded = gpu.kernels("round_rows").rounded_rows
    n, m = x.shape[0], weight.shape[0]
    failed = lists.Lists.empty(
        torch.zeros(n, dtype=torch.bool, device=x.device),
        encode.capacity_of(m, x.shape[1], k, "bfloat16", gpu.kernels("lists").block()),
    )
    operands = x.contiguous(), weight.contiguous(), bias, scale
    rows = (rounded(t, "bfloat16") for t in operands[:2])
    encode._mend_failed(*operands, *rows, failed, k)
    code = SparseCode(x.new_empty(n, k), x.new_empty(n, k, dtype=torch.int64))
    gpu.kernels("select_triton").choose(failed.keys, failed.counts, *code)
    return code
