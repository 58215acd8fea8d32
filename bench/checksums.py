"""checksums: reads from the page cache with and without a comparison of checksums.

A row of n is a row of a store of bfloat16. Reads from a disk are slower, and the comparison is not.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import saefast
from bench.cases import Shape
from bench.measure import Contestant, gemm, time_rounds
from saefast.activations import StoreActivations, StoreWriter

SHAPES = (Shape(1024, 16384, 32, 131072),)
_BATCH = 2048


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time loads of an SAE in two formats, and a pass over a store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sae = saefast.SAE(shape.d, shape.m, k=shape.k, seed=0)
        for format in ("sae_lens", "dictionary_learning"):
            saefast.save_sae(sae, folder / format, format=format)
        generator = torch.Generator().manual_seed(0)
        with StoreWriter(folder / "store", shape.d) as writer:
            for begin in range(0, shape.n, _BATCH):
                count = min(_BATCH, shape.n - begin)
                writer.append(torch.randn(count, shape.d, generator=generator))
        contestants = [
            Contestant("saefast", f"{what}, {how}", partial(run, verify), True)
            for what, run in _reads(folder).items()
            for how, verify in (("compared", True), ("not compared", False))
        ]
        unit = gemm(torch.randn(256, shape.d, generator=generator), sae.W_dec.detach())
        return time_rounds("checksums", shape, unit, contestants, rounds)


def _reads(folder: Path) -> dict[str, Callable[[bool], object]]:
    """Return reads by name, each with the argument whether to compare checksums."""

    def safetensors(verify: bool) -> object:
        return saefast.load_sae(folder / "sae_lens", verify=verify)

    def archive(verify: bool) -> object:
        return saefast.load_sae(folder / "dictionary_learning", verify=verify)

    def batches(verify: bool) -> object:
        source = StoreActivations(folder / "store", verify_reads=verify)
        stream = source.batches(min(_BATCH, source.rows), seed=0)
        return sum(len(batch.x) for batch in islice(stream, max(1, source.rows // _BATCH)))

    return {"SAE in safetensors": safetensors, "SAE in .pt": archive, "batches of a store": batches}
