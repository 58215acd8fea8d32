"""Report the capabilities of this build on this machine, and steps that make it faster."""

import importlib.metadata
import importlib.util
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saefast.ops import gpu, gpu_screens
from saefast.ops.backends import why_not_live
from saefast.ops.cpu import LEVEL_ENVIRONMENT, native, threads
from saefast.ops.screens import ENVIRONMENT, best_screen, measure_screens


def build_info() -> dict[str, Any]:
    """Report version, instruction sets, screening engine and the state of every backend.

    Measures the screening engines if no encode has done so yet, which takes a fraction of a second.

    Returns:
        A dict that can be written as JSON. `backends` states for each backend whether it is usable,
        and if not, why; `faster` lists steps that would make this machine faster, the greatest gain
        first.
    """
    return {
        "version": importlib.metadata.version("saefast"),
        "torch": torch.__version__,
        "isa": {
            "compiled": native.compiled_levels(),
            "usable": native.usable_levels(),
            "active": native.level(),
        },
        "openmp": native.openmp,
        "threads": threads(),
        "screen": {
            "chosen": str(best_screen()),
            "by": "measurement" if os.environ.get(ENVIRONMENT, "auto") == "auto" else ENVIRONMENT,
            "measured_ms": measure_screens().milliseconds,
        },
        "gpu_screen": {
            "by": "measurement" if gpu_screens.asked_for() is None else gpu_screens.ENVIRONMENT,
            "skipped": dict(gpu_screens.skipped),
        },
        "backends": {
            "reference": {"live": True},
            "cpp": {"live": True},
            **{impl: _state(why_not_live(impl)) for impl in ("triton", "cuda")},
        },
        "faster": hints(this_machine()),
    }


def _state(reason: str | None) -> dict[str, Any]:
    return {"live": True} if reason is None else {"live": False, "why": reason}


class Machine(NamedTuple):
    """Facts about a machine and its installation that decide the speed of saefast."""

    nvidia: bool
    """whether there is an NVIDIA GPU, whether or not torch can use it"""
    torch_cuda: str | None
    """version of CUDA that torch was built for"""
    sees_gpu: bool
    """whether torch can use a CUDA GPU"""
    triton: bool
    """whether Triton is installed"""
    cuda_kernels: bool
    """whether saefast was built with its CUDA C++ kernels"""
    openmp: bool
    """whether saefast was built with OpenMP"""
    threads: int
    """number of threads that torch and saefast use"""
    cores: int
    """number of processor cores that this process may use"""
    usable_levels: tuple[str, ...]
    """instruction sets that this processor can run, the best last"""
    level: str
    """instruction set in use"""
    screen: str
    """screen in use"""
    screen_ms: dict[str, float]
    """measured milliseconds by screen"""
    faiss: bool
    """whether FAISS is installed"""


def this_machine() -> Machine:
    """Return the facts about this machine; the screens are measured if they have not been."""
    return Machine(
        nvidia=Path("/proc/driver/nvidia/gpus").is_dir() or Path("/dev/nvidia0").exists(),
        torch_cuda=torch.version.cuda,
        sees_gpu=torch.cuda.is_available(),
        triton=importlib.util.find_spec("triton") is not None,
        cuda_kernels=gpu.has_cuda(),
        openmp=native.openmp,
        threads=threads(),
        cores=_cores(),
        usable_levels=tuple(native.usable_levels()),
        level=native.level(),
        screen=str(best_screen()),
        screen_ms=measure_screens().milliseconds,
        faiss=importlib.util.find_spec("faiss") is not None,
    )


def hints(machine: Machine) -> list[str]:
    """Return changes that would make the machine faster, the greatest gain first."""
    fastest = min(machine.screen_ms, key=lambda name: machine.screen_ms[name])
    on_gpu = machine.sees_gpu
    limit = next((n for n in _THREAD_LIMITS if os.environ.get(n)), None)
    remedy = f"unset {limit}" if limit else f"call torch.set_num_threads({machine.cores})"
    possible = [
        (
            machine.nvidia and machine.torch_cuda is None,
            "the NVIDIA GPU is idle, since torch was built without CUDA: install a CUDA build of "
            "torch",
        ),
        (
            machine.nvidia and machine.torch_cuda is not None and not on_gpu,
            f"the NVIDIA GPU is idle, since torch cannot use it: update its driver for CUDA "
            f"{machine.torch_cuda}, and check CUDA_VISIBLE_DEVICES",
        ),
        (
            on_gpu and not machine.triton,
            "the GPU computes in plain torch: pip install 'saefast[gpu]' for the Triton kernels",
        ),
        (
            on_gpu and machine.triton and not machine.cuda_kernels,
            "the selection on the GPU runs in Triton: build saefast from source with "
            "-C cmake.define.SAEFAST_CUDA=ON, which needs nvcc, for its CUDA C++",
        ),
        (
            not machine.openmp,
            "saefast's C++ runs on one thread, since it was built without OpenMP: build it from "
            "source with a compiler that has OpenMP",
        ),
        (
            machine.openmp and machine.threads < machine.cores,
            f"torch uses {machine.threads} of {machine.cores} processor cores: {remedy}",
        ),
        (
            machine.level != machine.usable_levels[-1],
            f"the processor could run {machine.usable_levels[-1]} instead of {machine.level}: "
            f"unset {LEVEL_ENVIRONMENT}",
        ),
        (
            machine.screen_ms[machine.screen] > machine.screen_ms[fastest],
            f"the screen {machine.screen} is slower than {fastest} here: unset {ENVIRONMENT}",
        ),
        (
            not machine.faiss,
            f"matching of large dictionaries cannot choose FAISS where that is faster: pip install "
            f"'saefast[{'gpu' if on_gpu else 'cpu'}]'",
        ),
    ]
    return [hint for applies, hint in possible if applies]


_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _cores() -> int:
    """Return the number of cores that this process may use; two threads of a core count as one."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_text(siblings.format(number)) or str(number) for number in allowed}
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Return the number of processors that the container grants, a large number if all."""
    granted = _text("/sys/fs/cgroup/cpu.max").split()
    if len(granted) != 2 or not granted[0].isdecimal():
        return 1 << 20
    return math.ceil(int(granted[0]) / int(granted[1]))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
