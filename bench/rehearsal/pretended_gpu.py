"""Pretended GPU, on which CUDA programs run at production sizes without memory and results.

Tensors on torch's `meta` device have shapes, dtypes and alignments, but no data. Inside `on` they
pass for CUDA tensors: the ops of saefast take their GPU path, and Triton, which asks a driver for
the architecture to compile for, gets the pretended GPU's.
"""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.fx.experimental._config as fx_config
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from saefast import checks
from saefast.ops import encode_gpu, gpu, index_range
from saefast.train.step import FusedStep

DEVICE = "meta"
"""Device of the tensors of a pretended GPU."""


class Gpu(NamedTuple):
    """One architecture, represented by its most common GPU."""

    architecture: int
    """ten times the compute capability, such as 90"""
    name: str
    processors: int
    shared_bytes: int
    """largest shared memory that a block can request"""
    cache_bytes: int
    """bytes of the L2 cache"""
    memory_bytes: int


GPUS = {
    gpu.architecture: gpu
    for gpu in (
        Gpu(80, "A100", 108, 163 << 10, 40 << 20, 80 << 30),
        Gpu(86, "RTX 3090", 82, 99 << 10, 6 << 20, 24 << 30),
        Gpu(89, "RTX 4090", 128, 99 << 10, 72 << 20, 24 << 30),
        Gpu(90, "H100", 132, 227 << 10, 50 << 20, 80 << 30),
        Gpu(100, "B200", 148, 227 << 10, 126 << 20, 180 << 30),
        Gpu(120, "RTX 5090", 170, 99 << 10, 96 << 20, 32 << 30),
    )
}


_numbers = count()


class Driver:
    """Triton driver whose only device is a pretended GPU."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture
        # Triton keeps compiled kernels by the number of their device; every launch on a new device
        # reaches the hook that records it.
        self._number = next(_numbers)

    def get_current_device(self) -> int:
        """Return the number of the device."""
        return self._number

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return the target of Triton's compilation."""
        return GPUTarget("cuda", self._architecture, 32)


@contextmanager
def triton_driver(chosen: Any) -> Iterator[None]:
    """Make Triton use the given driver."""
    with mock.patch.object(driver, "_active", chosen):
        yield


@contextmanager
def on(pretended: Gpu, *, reads: int = 1) -> Iterator[None]:
    """Make meta tensors pass for tensors on the pretended GPU, and their kernels for launchable.

    `reads` is the number that the host gets wherever it reads one from the device. Truth values
    that it reads are true, masks select everything, and vectors are zero: no codes are dense.
    """
    properties = SimpleNamespace(
        name=pretended.name,
        major=pretended.architecture // 10,
        minor=pretended.architecture % 10,
        multi_processor_count=pretended.processors,
        shared_memory_per_block_optin=pretended.shared_bytes,
        L2_cache_size=pretended.cache_bytes,
        total_memory=pretended.memory_bytes,
        warp_size=32,
    )
    of_cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_properties": lambda device=None: properties,
        "is_current_stream_capturing": lambda: False,
        "device_of": lambda tensor: nullcontext(),
        "mem_get_info": lambda device=None: (pretended.memory_bytes, pretended.memory_bytes),
        "synchronize": lambda device=None: None,
        "Event": _Event,
        "CUDAGraph": _Graph,
        "graph": lambda *arguments, **settings: nullcontext(),
    }
    with ExitStack() as stack:
        enter = stack.enter_context
        for name, replacement in of_cuda.items():
            enter(mock.patch.object(torch.cuda, name, replacement))
        enter(mock.patch.object(torch.Tensor, "is_cuda", property(lambda tensor: tensor.is_meta)))
        # The CUDA C++ kernels take addresses, which meta tensors do not have.
        enter(mock.patch.object(gpu, "has_cuda", return_value=False))
        for name in ("finite", "in_range"):  # there is no data to check
            enter(mock.patch.object(checks, name))
        enter(mock.patch.object(index_range, "_extremes_in_range", return_value=True))
        # Take the path of an SAE with thresholds whose codes are sparse.
        enter(mock.patch.object(FusedStep, "_is_dense", return_value=False))
        enter(mock.patch.object(fx_config, "meta_nonzero_assume_all_nonzero", True))
        enter(mock.patch.dict(encode_gpu._measured, clear=True))
        enter(triton_driver(Driver(pretended.architecture)))
        enter(_device_forgotten())
        enter(_GpuOps(reads))
        yield


@contextmanager
def _device_forgotten() -> Iterator[None]:
    """Clear the facts that are cached about a device, before and after."""
    module = importlib.import_module("saefast.kernels.device")
    remembering = [f for f in vars(module).values() if hasattr(f, "cache_clear")]
    remembering.append(gpu._live)
    for function in remembering:
        function.cache_clear()
    try:
        yield
    finally:
        for function in remembering:
            function.cache_clear()


class _GpuOps(TorchDispatchMode):
    """Mode that runs saefast's ops by their CUDA kernels, and answers reads by the host."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "saefast":
            with self:  # a mode is off during its own dispatch
                return func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        if func._opname in ("is_nonzero", "equal"):
            if args[0].is_meta:
                return True
        elif func._opname in ("item", "_local_scalar_dense") and args[0].is_meta:
            return (
                args[0].dtype == torch.bool or args[0].new_tensor(self._reads, device="cpu").item()
            )
        elif func._opname == "_to_copy" and args[0].is_meta and _host(kwargs.get("device")):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype"), device="cpu")
        return func(*args, **kwargs)


def _host(device: torch.device | None) -> bool:
    return device is not None and device.type == "cpu"


class _Event:
    """Event of a stream on which nothing takes time."""

    def __init__(self, **settings: object) -> None:
        pass

    def record(self, stream: object = None) -> None:
        """Do nothing: there is nothing to wait for."""

    def synchronize(self) -> None:
        """Do nothing: there is nothing to wait for."""

    def elapsed_time(self, end: "_Event") -> float:
        """Return a millisecond for any two events."""
        return 1.0


class _Graph:
    """CUDA graph, whose launches are recorded while it is captured."""

    def pool(self) -> object:
        """Return a handle that is never used."""
        return None

    def replay(self) -> None:
        """Do nothing: a replay launches no new kernels."""
