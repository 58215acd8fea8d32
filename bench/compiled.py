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
            "bias_grads",
            "along",
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
    **dict.fromkeys(["slots", "fired", "piece_begin", "piece_end"], _L),
    **dict.fromkeys(
        ["counts", "hot_list", "failed", "total", "part_counts", "held", "waiting"], _I
    ),
    **dict.fromkeys(["columns", "width", "k", "m", "d", "padded", "latents", "first", "room"], _S),
    **dict.fromkeys(["factor", "beta1", "beta2", "eps"], "fp32"),
    "rates": "*fp64",
    "units": _B,
    "rounded": _B,
}
"""Of arguments by their names, unless a kernel says otherwise."""
_AUXK = {
    **dict.fromkeys(["w_enc", "b_enc", "w_dec", "inputs", "means", "deviations", "totals"], _F),
    **dict.fromkeys(["bias_sums", "encoder_gradient", "bias_gradient", "decoder_gradient"], _F),
    **dict.fromkeys(["input_parts", "encoder_parts", "decoder_parts", "active_parts"], _B),
    **dict.fromkeys(["missed_parts", "gradient_parts", "kept"], _B),
    **dict.fromkeys(["rows", "padded_rows", "places", "d_out", "width_out", "blocks"], _S),
    **dict.fromkeys(["dead_after", "capacity"], _S),
    **dict.fromkeys(["idle", "latents"], _L),
    **dict.fromkeys(["block_counts", "count"], _I),
    **dict.fromkeys(["scale", "coefficient"], "fp32"),
    "loss": _F,
}
"""Of arguments of AuxK's kernels."""
_MULTIPLES_OF_16 = ("d", "padded", "width", "padded_rows", "places", "d_out", "width_out")


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
    yield Kernel("latent_sum", "sum_pieces", summed)
    moments = {"first": _F, "second": _F}
    yield Kernel("latent_update", "update_biases", {"EXTRA": True, "BLOCK": 128}, 1, types=moments)
    for encoder in (True, False):
        for one in (True, False):
            constants = {
                "EXTRA": True,
                "ENCODER": encoder,
                "UNIT_NORM": not encoder,
                "PACK": encoder,
                "DROP": 16,
                "ONE_BLOCK": one,
                "TOGETHER": 16,
                **summed,
            }
            yield Kernel("latent_update", "update_rows", constants, types=moments)
    yield from _auxk()


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


def _auxk() -> Iterator[Kernel]:
    """Yield the kernels of AuxK, in bfloat16 and by three parts, at 16384 dead latents or more."""
    yield Kernel("dead_latents", "count_dead", {"BLOCK": 1024}, types=_AUXK)
    yield Kernel("dead_latents", "list_dead", {"BLOCK": 1024, "LANES": 1024}, types=_AUXK)
    tiling = _module("auxk").TILING
    for parts in (1, 3):
        split = {"PARTS": parts, "TILE": 128}
        yield Kernel(
            "auxk_operands",
            "split_operands",
            {"NORMALISED": True, **split, "BLOCK": 1024, "COLUMNS": 32},
            types=_AUXK,
        )
        for exceeds in (False, True):
            constants = {"SIGNED": False, "MAY_EXCEED": exceeds, "BLOCK": 16384, "CHUNK": 2048}
            yield Kernel(
                "keep_largest", "keep_largest_of_row", {**constants, **split}, 16, types=_AUXK
            )
        for name, constants in (
            ("score_dead", {}),
            ("miss_error", {}),
            ("score_gradients", {"NORMALISED": True, "LINES": 16}),
            ("weight_gradients", {"NORMALISED": True, "BLOCKS": 32}),
        ):
            yield Kernel(
                "auxk_products",
                name,
                {**constants, **split, "BLOCK_DEPTH": tiling.depth, "TOGETHER": 8},
                tiling.warps,
                tiling.stages,
                _AUXK,
                tensor_cores=True,
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
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": True}
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
