"""compiled: every Triton kernel at its production shapes, compiled without a GPU, and what it uses.

`python -m bench.compiled [--json FILE]` from the checkout; it compiles the installed kernels.
"""

import argparse
import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes a block can have."""
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_F, _B, _L, _I, _S = "*fp32", "*bf16", "*i64", "*i32", "i32"
_TYPES = {
    **dict.fromkeys(
        ["shift", "norm", "lost", "reach", "spread", "floor", "scores", "maxima", "bias", "scale"],
        _F,
    ),
    **dict.fromkeys(
        ["values", "weight", "target", "residual", "value_grads", "squares", "rows", "out", "sums"],
        _F,
    ),
    **dict.fromkeys(
        ["partial", "coefficients", "extra", "scalars", "first_moment", "extra_bias"], _F
    ),
    **dict.fromkeys(
        [
            "extra_along",
            "extra_w_dec",
            "w_dec",
            "bias_grads",
            "along",
            "shrink",
            "second",
            "inputs_share",
            "source",
            "x",
            "threshold",
        ],
        _F,
    ),
    **dict.fromkeys(
        ["keys", "floor_keys", "work", "parts", "entries", "start", "piece_start", "indices"], _L
    ),
    **dict.fromkeys(["slots", "fired", "piece_begin", "piece_end", "group_ends"], _L),
    "extra_latents": _L,
    **dict.fromkeys(
        ["counts", "hot_list", "failed", "total", "part_counts", "held", "waiting"], _I
    ),
    **dict.fromkeys(["columns", "width", "k", "m", "d", "padded", "latents", "first", "room"], _S),
    **dict.fromkeys(["groups", "n"], _S),
    **dict.fromkeys(["factor", "rest1", "beta2", "rest2", "eps"], "fp32"),
    **dict.fromkeys(["rates", "signs"], "*fp64"),
    "units": _B,
    "rounded": _B,
}
"""Of arguments by their names, unless a kernel says otherwise."""
_MULTIPLES_OF_16 = ("d", "padded", "width")


class Kernel(NamedTuple):
    """One kernel with one set of constants."""

    module: str
    name: str
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    types: dict[str, str] = {}  # noqa: RUF012
    tensor_cores: bool = False
    label: str = ""
    most_registers: int | None = None


def kernels(architecture: int) -> Iterator[Kernel]:
    """What runs at d from 768 to 4096, k = 32 to 64, in lists of 1024."""
    lists = {"CAPACITY": 1024}
    for bounded in (True, False):
        yield from _products(architecture, bounded)
        for hot in (True, False):
            constants = {"HOT": hot, "BOUNDED": bounded, "GROUP": 32, "BLOCK": 256, **lists}
            yield Kernel("keep_best", "keep_best", constants, types={"first": _S})
    scored = {"BIASED": True, "SCALED": True, "COLUMNS": 16, "BLOCK_D": 256}
    yield Kernel("exact_scores", "score_candidates", {**scored, **lists})
    yield Kernel("exact_scores", "list_failed", {"BLOCK": 1024}, types={"rows": _S})
    yield Kernel("exact_scores", "score_all", {**scored, "SPLIT": 8, "CAPACITY": 256, "KEPT": 128})
    yield Kernel("exact_scores", "join_parts", {"SPLIT": 8, "KEPT": 128, **lists})
    for hot in (True, False):
        constants = {"HOT": hot, "GROUP": 32, "BLOCK": 256, "LOOK": 1024, **scored, **lists}
        yield Kernel("keep_above", "keep_above", constants)
    yield Kernel("keep_above", "settle_lists", {**scored, **lists})
    yield Kernel("choose", "choose", {"FEW": 128, **lists}, types={"indices": _L})
    yield Kernel("round_rows", "round_rows", {"SCALED": True, "DROP": 16, "BLOCK": 1024})
    decoded = {"BLOCK_K": 8, "BLOCK_D": 256}
    yield Kernel("sparse_decode", "decode_rows", {"BIASED": True, **decoded})
    yield Kernel("sparse_decode", "dot_rows", decoded)
    for block, one in ((32, True), (64, True), (128, False)):
        constants = {"BIASED": True, "ONE_BLOCK": one, "BLOCK_K": block, "BLOCK_D": 8192 // block}
        yield Kernel("sparse_decode", "residual_rows", constants, warps=8)
    summed = {"BLOCK_E": 4, "BLOCK_D": 1024}
    yield Kernel("latent_sum", "sum_latents", summed)
    for grouped in (False, True):
        yield Kernel("latent_sum", "sum_pieces", {"GROUPED": grouped, **summed})
    yield from _updates()
    yield Kernel(
        "keep_largest", "keep_largest_of_row", {"SIGNED": False, "BLOCK": 2048}, 8, types={}
    )


def _updates() -> Iterator[Kernel]:
    """Of d = 768, and of 2304 and 4096, which are several blocks unless a part is measured.

    What is measured is so for d = 8192 only.
    """
    types = {"first": _F, "second": _F, "factor": "*fp64", "squares": "*fp64"}
    for along in (True, False):
        yield Kernel("extra_gradients", "fill_slots", {"ALONG": along, "BLOCK": 1024})
    tasks = ({"TASK": "update", "FACTOR": True}, {"TASK": "squares", "FACTOR": False})
    for task in tasks:
        constants = {"EXTRA": True, "ALONG": True, **task, "BLOCK": 128}
        yield Kernel("update_biases", "update_biases", constants, 1, types=types)
    decays = {"GROUPED": True, "SHRINK": True, "SIGN": True}
    sides: list[dict[str, Any]] = [
        {"ENCODER": True, "PROJECT": "none"},
        {"ENCODER": True, "PROJECT": "none", "SHRINK": True, "SIGN": True},
        {"ENCODER": False, "PROJECT": "none", **decays},
        {"ENCODER": False, "PROJECT": "inferred", "GROUPED": True},
        {"ENCODER": False, "PROJECT": "measured", **decays},
    ]
    blocks = {"measured": ((1024, True, 4), (4096, True, 16), (4096, False, 16))}
    usual = ((1024, True, 4), (1024, False, 4))
    cases = [(side, *shape) for side in sides for shape in blocks.get(side["PROJECT"], usual)]
    for side, block, one, warps in cases:
        frozen = [{"TASK": "share", "FACTOR": False}] if side == sides[0] else []
        for task in (*tasks, *frozen):
            updated = task["TASK"] == "update"
            constants = {
                **dict.fromkeys(("GROUPED", "SHRINK", "SIGN"), False),
                **side,
                **task,
                "EXTRA": True,
                "UNIT_NORM": updated and not side["ENCODER"],
                "PACK": updated and side["ENCODER"],
                "DROP": 16,
                "ONE_BLOCK": one,
                "TOGETHER": 16,
                "BLOCK_E": 4,
                "BLOCK_D": block,
            }
            yield Kernel(
                "update_rows",
                "update_rows",
                constants,
                warps,
                types=types,
                most_registers=128 if constants["SIGN"] else None,
            )


def _products(architecture: int, bounded: bool) -> Iterator[Kernel]:
    tma = architecture >= 90
    for (product, by_descriptor), tile in _module("screening").TILES.items():
        if by_descriptor != tma:
            continue
        dtype = "bf16" if product == "bfloat16" else "fp32"
        constants = {
            "PRECISION": "tf32" if product == "tfloat32" else "ieee",
            "BOUNDED": bounded,
            "TMA": tma,
            "GROUP": 32,
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLUMNS": tile.columns,
            "BLOCK_D": tile.depth,
            "TOGETHER": 8,
        }
        operands = {
            "x": f"tensordesc<{dtype}[{tile.rows},{tile.depth}]>" if tma else f"*{dtype}",
            "weight": f"tensordesc<{dtype}[{tile.columns},{tile.depth}]>" if tma else f"*{dtype}",
            "rows": _S,
        }
        yield Kernel(
            "hot_groups",
            "hot_groups",
            constants,
            tile.warps,
            tile.stages,
            operands,
            product != "float32",
            product,
        )


def _module(name: str) -> Any:
    return importlib.import_module(f"saefast.kernels.{name}")


def compiled(kernel: Kernel, architecture: int) -> dict[str, Any]:
    """A row of the table."""
    function = getattr(_module(kernel.module), kernel.name)
    types = {**_TYPES, **kernel.types}
    signature = {
        name: "constexpr" if name in kernel.constants else types[name]
        for name in function.arg_names
    }
    aligned = [
        index
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in _MULTIPLES_OF_16
    ]
    source = ASTSource(
        function,
        signature,
        constexprs={
            (function.arg_names.index(name),): value for name, value in kernel.constants.items()
        },
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {
        "num_warps": kernel.warps,
        "num_stages": kernel.stages,
        "enable_fp_fusion": True,
        "maxnreg": kernel.most_registers,
    }
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        code = _output("nvdisasm", "-c", file.name)
    constants = ", ".join(f"{n}={v}" for n, v in kernel.constants.items() if n.isupper())
    return {
        "kernel": kernel.name + (f" {kernel.label}" if kernel.label else ""),
        "constants": constants,
        "sm": architecture,
        "warps": kernel.warps,
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "stack_bytes": int(re.findall(r"STACK:(\d+)", usage)[-1]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared_bytes": binary.metadata.shared,
        "tensor_core": next(
            (kind for kind in ("HGMMA", "UTCHMMA", "UTCQMMA", "HMMA") if kind in code), ""
        ),
        "needs_tensor_cores": kernel.tensor_cores,
        "narrow_products": narrow_products(binary.asm["ttir"]),
    }


def narrow_products(ttir: str) -> list[str]:
    """Products of two sizes or places in 32 bits: a row times a width can be more than fits.

    Products with a constant are those of a block's number with its size.
    """
    constants = set(re.findall(r"(%\S+) = arith\.constant", ttir))
    products = re.findall(r"(%\S+) = arith\.muli (%\S+), (%\S+) : (?:tensor<[\dx]+xi32>|i32)", ttir)
    return [result for result, *factors in products if not constants & set(factors)]


def _output(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table() -> list[dict[str, Any]]:
    """Every kernel for every architecture."""
    return [compiled(kernel, sm) for sm in ARCHITECTURES for kernel in kernels(sm)]


def main() -> None:
    """Print the table; with --json, write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = table()
    for row in rows:
        print(
            f"sm_{row['sm']:<4} {row['kernel']:24} {row['warps']:2} warps "
            f"{row['registers']:4} registers {row['spills']:3} spills "
            f"{row['shared_bytes']:7} B shared  {row['tensor_core']:8} {row['constants']}"
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
