"""Speeds of machines on which a training is planned: measured ones, and GPUs as models."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from saefast import checks
from saefast.ops.sparse_decode import sparse_decode_op
from saefast.sae import SAE
from saefast.train.packed_encoder import PackedEncoder
from saefast.train.planning.volumes import UPDATE_BYTES, gathered_bytes
from saefast.train.step import FusedStep

_ROWS, _LATENTS, _K, _ROUNDS = 512, 8192, 32, 4
_LEAST_REST = 0.1
"""Smallest share of a measured step that is taken for its update."""


@dataclass(frozen=True)
class Machine:
    """Speeds of one rank, with its share of a network."""

    name: str
    """name in tables"""
    products: float
    """floating-point operations of an encode per second"""
    gather: float
    """bytes per second of rows that are gathered by latent or by entry of a code"""
    update: float
    """bytes per second of weights and moments that an update reads and writes"""
    network: float
    """bytes per second that a rank receives"""
    latency: float
    """seconds of a collective without data"""
    memory: int
    """bytes of memory of a rank"""
    entry: int = 4
    """bytes of a number in gathered rows"""
    sort: float | None = None
    """entries of a code per second that are sorted by latent; None: the update includes it"""
    modelled: bool = False
    """whether the speeds are modelled rather than measured"""

    def __post_init__(self) -> None:
        for name in ("products", "gather", "update", "network", "memory", "entry"):
            checks.at_least(name, getattr(self, name), 1)
        if self.sort is not None:
            checks.at_least("sort", self.sort, 1)
        checks.at_least("latency", self.latency, 0)


def _h100(name: str, network: float, latency: float) -> Machine:
    # Floors of an H100: dense bfloat16 products, memory, and gathers that the cache serves in part.
    return Machine(
        f"H100, {name}",
        products=8e14,
        gather=4.3e12,
        update=3e12,
        network=network,
        latency=latency,
        memory=80 * 10**9,
        entry=2,
        sort=5.2e9,
        modelled=True,
    )


MACHINES = {
    "h100-nvlink": _h100("NVLink", 4e11, 1.5e-5),
    "h100-400g": _h100("400 Gbit/s", 5e10, 3e-5),
    "h100-25g": _h100("25 Gbit/s", 3.1e9, 5e-5),
}
"""Models of GPUs by name, on which ranks cannot train yet."""


def machine_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measured_machine(
    d: int, precision: str = "exact", *, network: float = 1.25e9, latency: float = 1e-4
) -> Machine:
    """Measure the speeds of this process by steps of a small SAE, in a few seconds.

    Args:
        d: width of the rows.
        precision: as in `TrainConfig`.
        network: bytes per second that a rank receives, which is not measured.
        latency: seconds of a collective without data, which is not measured.

    Returns:
        The machine, whose ranks have as many threads as this process.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(_ROWS, d, generator=generator, dtype=torch.float32, device="cpu")
    sae = SAE(d, _LATENTS, k=_K, seed=0)
    encoder = PackedEncoder(sae, "bf16" if precision == "bf16_weights" else precision)
    code = encoder.largest(x, _K)
    step = FusedStep(sae, precision=precision)
    encode = _seconds(lambda: encoder.largest(x, _K))
    decode = _seconds(lambda: sparse_decode_op(*code, sae.W_dec.detach(), None))
    whole = _seconds(lambda: step(x))
    gather = _ROWS * _K * d * 4 / decode
    rest = whole - encode - gathered_bytes(_ROWS * _K, d, d, 4) / gather
    return Machine(
        "this machine",
        products=2.0 * _ROWS * d * _LATENTS / encode,
        gather=gather,
        update=UPDATE_BYTES * 2 * _LATENTS * d / max(rest, _LEAST_REST * whole),
        network=network,
        latency=latency,
        memory=machine_memory(),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the least time of a few calls after a first one."""
    work()
    times = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
