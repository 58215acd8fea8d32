"""Checksums of bytes on disk: XXH64 with seed 0, as 16 hexadecimal digits.

A changed bit changes one of the four running sums, whose steps are bijections; that the result is
equal nevertheless has a probability of about 2^-64, as for any other change of content or order.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

try:
    from saefast import _native as native
except ImportError as error:
    if find_spec("saefast._native") is not None:
        raise
    raise ImportError(
        f"{Path(__file__).parents[1]} holds no compiled module: Python found a checkout before the "
        f"installed package; run pip install . in the checkout, and start Python in another folder "
        f"or with -P"
    ) from error

Piece = bytes | bytearray | memoryview
"""Contiguous bytes."""
KEY = "saefast.xxh64"
"""Key of a checksum in the metadata of a file, and prefix of further such keys."""
BLANK = "0" * 16
"""Digits in place of a checksum while the bytes that contain it are summed."""
ENVIRONMENT = "SAEFAST_VERIFY"
"""Environment variable; 0 switches off all comparisons of files that are loaded."""

_SMALL = 1 << 26  # bytes that one thread sums before several have started


def verifying() -> bool:
    """Return whether files that are loaded are compared with their checksums."""
    return os.environ.get(ENVIRONMENT) != "0"


def numbers(pieces: Sequence[Piece], threads: int | None = None) -> list[int]:
    """Compute the checksum of each piece of bytes; by torch's number of threads if None."""
    if threads is None:
        total = sum(len(memoryview(piece)) for piece in pieces)
        threads = torch.get_num_threads() if total > _SMALL else 1
    return native.xxh64(pieces, threads)


class RunningSum:
    """Checksum of bytes that come in pieces."""

    def __init__(self) -> None:
        self._sum = native.Xxh64()

    def add(self, piece: Piece) -> None:
        """Add the bytes of the next piece."""
        self._sum.add(piece)

    @property
    def digits(self) -> str:
        """The checksum of all bytes so far as 16 hexadecimal digits."""
        return f"{self._sum.value():016x}"


def checksum(content: Piece) -> str:
    """Return the checksum of bytes as 16 hexadecimal digits."""
    return f"{numbers([content])[0]:016x}"


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def damaged(what: str, argument: str | None = None) -> ValueError:
    """Return the error for content that differs from its checksum.

    Args:
        what: path of the file, and name of the part of it.
        argument: argument of the caller that skips the comparison, if it has one.
    """
    setting = f"{ENVIRONMENT}=0" if argument is None else f"{argument} or {ENVIRONMENT}=0"
    return ValueError(
        f"{what} is damaged: it differs from the checksum that was saved with it; restore or write "
        f"the file again, or read it nevertheless with {setting}"
    )
