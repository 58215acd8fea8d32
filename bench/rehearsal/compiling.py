"""Compilation of recorded kernels without a GPU, and figures of the result."""

import importlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

from bench.rehearsal.pretended_gpu import Driver, triton_driver
from bench.rehearsal.recording import Launched
from bench.rehearsal.rereads import rereads

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TENSOR_CORES = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync")
_ASYNC_COPY = re.compile(r"ttg\.async_copy_global_to_local|ttng\.async_tma_copy_global_to_local")


class Figures(NamedTuple):
    """Resources of one compiled kernel, and properties of its code."""

    registers: int
    """registers of a thread"""
    stack_bytes: int
    """bytes of a thread's stack, spilled registers included"""
    spills: int
    """instructions that load registers back from the stack"""
    shared_bytes: int
    """bytes of a block's shared memory"""
    tensor_core: str
    """tensor-core instruction, or an empty text"""
    async_copies: int
    """copies into shared memory that a pipelined loop starts ahead of their use"""


class Source(NamedTuple):
    """Facts from the compiler's first representation of a kernel, before any optimisation."""

    rereads: list[str]
    """arguments whose memory the kernel both writes and reads"""
    narrow_products: list[str]
    """products of two sizes or positions in 32 bits"""
    wants_tensor_cores: bool
    """whether there is a product of operands that are rounded to less than float32"""


class Compiled(NamedTuple):
    """One specialisation on one architecture."""

    figures: Figures
    source: Source


def kernel_of(launched: Launched, architecture: int) -> Any:
    """Compile through Triton's cache, where a later launch on a GPU finds the result."""
    function = getattr(importlib.import_module(launched.module), launched.kernel)
    driver = Driver(architecture)
    with triton_driver(driver):
        kernel = function.preload(launched.specialisation)
    del function.device_caches[driver.get_current_device()]  # remains on disk
    return kernel


def compiled(launched: Launched, architecture: int) -> Compiled:
    """Compile a specialisation and return facts about the result."""
    kernel = kernel_of(launched, architecture)
    ttir = kernel.asm["ttir"]
    source = Source(rereads(ttir), narrow_products(ttir), _wants_tensor_cores(ttir))
    return Compiled(figures_of(kernel), source)


def figures_of(kernel: Any) -> Figures:
    """Return the figures of a `CompiledKernel`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        stack = int(re.findall(r"STACK:(\d+)", usage)[-1])
        # Spilled registers lie on the stack; disassembling takes as long as compiling.
        code = _output("nvdisasm", "-c", file.name) if stack else ""
    tensor_core = _TENSOR_CORES.search(kernel.asm["ptx"])
    return Figures(
        registers=int(re.findall(r"REG:(\d+)", usage)[-1]),
        stack_bytes=stack,
        # Waits for a barrier on sm_120 store zeros on the stack that nothing loads: no spills.
        spills=len(re.findall(r"\bLDL\b", code)),
        shared_bytes=kernel.metadata.shared,
        tensor_core=tensor_core[0] if tensor_core else "",
        async_copies=len(_ASYNC_COPY.findall(kernel.asm["ttgir"])),
    )


def _wants_tensor_cores(ttir: str) -> bool:
    products = [line for line in ttir.splitlines() if "tt.dot " in line]
    return any("inputPrecision = tf32" in line or "xbf16>" in line for line in products)


def narrow_products(ttir: str) -> list[str]:
    """Return products of two sizes or positions in 32 bits, which may overflow.

    Products with a constant are those of a block's number with its size.
    """
    constants = set(re.findall(r"(%\S+) = arith\.constant", ttir))
    products = re.findall(r"(%\S+) = arith\.muli (%\S+), (%\S+) : (?:tensor<[\dx]+xi32>|i32)", ttir)
    return [result for result, *factors in products if not constants & set(factors)]


def _output(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
