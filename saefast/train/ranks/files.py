"""Files of a training's state: one for a whole SAE, or one for each rank that has a share of it.

A checkpoint written by any number of ranks can be read by any other number: the file of rank r of
R holds the rows of its latents, and the columns i of W_dec with i % R == r; the file of a whole SAE
is the file of rank 0 of 1. State that is on all ranks is in the file of rank 0.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.disk import sealed_tensors
from saefast.disk.atomic import make_folder, write_tensors
from saefast.disk.checksums import verifying
from saefast.train.ranks.share import Share, kind_of

_PART = re.compile(r"rank-(\d+)-of-(\d+)\.safetensors")
_CHUNK = 65_536  # rows of W_dec read at a time, of which a rank keeps some columns


def whole_file(folder: Path, step: int) -> Path:
    """Return the path of the state of a whole SAE after `step` steps."""
    return folder / f"step-{step}.safetensors"


def parts_folder(folder: Path, step: int) -> Path:
    """Return the folder of the states of ranks after `step` steps."""
    return folder / f"step-{step}"


def write_state(folder: Path, step: int, state: Mapping[str, Tensor], share: Share | None) -> None:
    """Write the state of an SAE, or this rank's share of it."""
    make_folder(folder)
    if share is None:
        write_tensors(whole_file(folder, step), state)
        return
    ranks, rows = share.ranks, share.rows
    place = parts_folder(folder, step)
    make_folder(place)
    own = {
        name: tensor
        for name, tensor in state.items()
        if ranks.rank == 0 or kind_of(name) != "everywhere"
    }
    metadata = {
        "rows": f"{rows.start}:{rows.stop} of {share.latents}",
        "columns": f"{ranks.rank} of {ranks.size} of {share.width}",
    }
    write_tensors(place / f"rank-{ranks.rank}-of-{ranks.size}.safetensors", own, metadata)


def written(folder: Path, step: int) -> list[Path]:
    """Return the complete set of files of a step, in the order of ranks; empty if there is none."""
    if whole_file(folder, step).exists():
        return [whole_file(folder, step)]
    sets: dict[int, dict[int, Path]] = {}
    place = parts_folder(folder, step)
    for path in place.iterdir() if place.is_dir() else ():
        match = _PART.fullmatch(path.name)
        if match:
            sets.setdefault(int(match[2]), {})[int(match[1])] = path
    for size, files in sets.items():
        if len(files) == size:
            return [files[rank] for rank in range(size)]
    return []


def read_state(
    paths: list[Path], like: Mapping[str, Tensor], share: Share | None
) -> dict[str, Tensor]:
    """Read the state of an SAE, or this rank's share of it, from the files of any number of ranks.

    Args:
        paths: files in the order of ranks.
        like: state whose shapes and dtypes the result has.
        share: the share of this rank; None: the whole.

    Returns:
        Tensors of the state by name, with the shapes of `like`.

    Raises:
        ValueError: the files hold another number of latents, or one is truncated or damaged.
    """
    latents = len(like["W_enc"]) if share is None else share.latents
    found: dict[str, Tensor] = {}
    start = 0
    for writer, path in enumerate(paths):
        with _opened(path) as file:
            names = set(file.keys())
            if verifying():
                sealed_tensors.check(path, {name: file.get_tensor(name) for name in names})
            if writer == 0:
                found = {
                    name: file.get_tensor(name) for name in names if kind_of(name) == "everywhere"
                }
            count = file.get_slice("W_enc").get_shape()[0]
            of_writer = _Written(file, start, count, writer, len(paths))
            for name, wanted in like.items():
                if name in names and kind_of(name) != "everywhere":
                    into = found.setdefault(name, torch.empty_like(wanted))
                    of_writer.read(name, into, share)
            start += count
    if start != latents:
        raise ValueError(f"{paths[0].parent} must hold {latents} latents, got {start}")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; errors while it is read name its path."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


class _Written(NamedTuple):
    """Open file of one rank."""

    file: Any
    start: int
    """first of its latents"""
    latents: int
    """number of its latents"""
    rank: int
    size: int

    def read(self, name: str, into: Tensor, share: Share | None) -> None:
        """Copy the part of a share's parameter that this file holds."""
        stored = self.file.get_slice(name)
        if kind_of(name) == "rows":
            first = 0 if share is None else share.rows.start
            low = max(first, self.start)
            high = min(first + len(into), self.start + self.latents)
            if low < high:
                into[low - first : high - first] = stored[low - self.start : high - self.start]
            return
        rank, size = (0, 1) if share is None else (share.ranks.rank, share.ranks.size)
        columns = rank + size * torch.arange(into.shape[1], device="cpu")
        here = columns % self.size == self.rank
        if not bool(here.any()):
            return
        theirs = (columns[here] - self.rank) // self.size
        for row in range(0, len(into), _CHUNK):
            into[row : row + _CHUNK, here] = stored[row : row + _CHUNK][:, theirs]
