"""The CUDA kernels compile within their limits of registers and shared memory."""

import re
import shutil
import subprocess
from typing import NamedTuple

import pytest
from helpers.checkout import CHECKOUT

SOURCE = CHECKOUT / "csrc" / "cuda" / "select.cu"
ARCHITECTURES = ("80", "90", "100")
STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a block has without a launch attribute."""

nvcc = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(nvcc is None, reason="nvcc, the CUDA compiler, is not on the PATH")


class Usage(NamedTuple):
    """Output of ptxas for one kernel."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int


def usage_of_kernels(log: str) -> dict[str, dict[str, Usage]]:
    """Return usage by architecture and mangled name."""
    found: dict[str, dict[str, Usage]] = {}
    entries = re.split(r"Compiling entry function ", log)[1:]
    for entry in entries:
        name = re.match(r"'(\w+)' for 'sm_(\d+)\w*'", entry)
        memory = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
        )
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert name, entry
        assert memory, entry
        assert registers, entry
        found.setdefault(name[2], {})[name[1]] = Usage(
            *map(int, memory.groups()), int(registers[1]), int(shared[1]) if shared else 0
        )
    return found


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Usage]]:
    """Return usage of all kernels for every architecture that this nvcc supports."""
    known = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout.split()
    targets = [name for name in ARCHITECTURES if f"sm_{name}" in known]
    result = subprocess.run(
        [
            *(nvcc, "-std=c++20", "-O3", "-fmad=false", "-Xptxas", "-v", "--threads", "2"),
            *("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"),
            *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in targets),
            *("-c", str(SOURCE), "-o", str(tmp_path_factory.mktemp("cuda") / "select.o")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return usage_of_kernels(result.stdout + result.stderr)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_do_not_spill_and_are_within_limits(
    usage: dict[str, dict[str, Usage]], architecture: str
) -> None:
    if architecture not in usage:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    kernels = usage[architecture]
    # by a warp and by a block: hot or not, bounded or not, and two types of values
    assert sum("keep_best_rows" in name for name in kernels) == 8
    assert sum("choose_rows" in name for name in kernels) == 4
    for name, used in kernels.items():
        assert used[:3] == (0, 0, 0), (name, used)
        assert used.shared <= STATIC_SHARED, (name, used)
