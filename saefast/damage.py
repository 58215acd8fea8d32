"""Damage to files: compare all files below a path with the checksums in them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from saefast.activations.store import INDEX, check_shard, read_index
from saefast.disk.atomic import PART
from saefast.disk.sealed_tables import damaged_part as damaged_column
from saefast.disk.sealed_tables import has_checksum, open_table
from saefast.disk.sealed_tensors import Sealed
from saefast.formats.source import weights_in
from saefast.formats.tensor_files import examine_archive, read_tensors
from saefast.progress import ProgressBar
from saefast.train.checkpoint import RUN, TRAINING, RunFile
from saefast.train.ranks.files import whole_file, written

DIFFERS = "differs from its checksum"


class Damage(NamedTuple):
    """Damaged or missing file, or a part of one."""

    path: Path
    part: str
    """name of the tensor, of the column ("column NAME"), or of another part; "" for the file"""
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.part} {self.reason}" if self.part else f"{self.path} {self.reason}"
        )


class Examined(NamedTuple):
    """Result for one file."""

    path: Path
    has_checksums: bool
    """whether the file has checksums; otherwise only its structure was read"""
    damages: list[Damage]


def verify(path: str | Path, *, progress: bool = False) -> list[Damage]:
    """Find damaged files by the checksums that are saved with them.

    Every file is read once, shards of stores twice. Files of other libraries, which have no
    checksums, are checked for their structure. Nothing is unpickled.

    Args:
        path: an SAE, a store, a run, a sweep or any other folder, or a file.
        progress: show a progress bar on stderr.

    Returns:
        The damaged and missing files and parts; empty if everything is intact.

    Raises:
        FileNotFoundError: the path does not exist, or holds no file of a known kind.
    """
    return [damage for each in examine(path, progress=progress) for damage in each.damages]


def examine(path: str | Path, *, progress: bool = False) -> list[Examined]:
    """Compare each file with its checksums; see `verify`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder or file that was saved")
    files = list(_files(path))
    if not files:
        held = "is" if path.is_file() else "holds"
        raise FileNotFoundError(
            f"{path} {held} none of the files that can be verified: {', '.join(_KINDS)}"
        )
    found: list[Examined] = []
    known: set[Path] = set()
    size = sum(file.stat().st_size for file in files)
    with ProgressBar("verifying", total=size, unit="bytes", progress=progress) as bar:
        for file in files:
            each = _examined(file)
            # An index comes after the shards, whose own checksums also tell which tensor differs.
            new = [damage for damage in each.damages if damage.path not in known]
            known |= {damage.path for damage in new}
            found.append(each._replace(damages=new))
            bar.update(file.stat().st_size)
    return found


def _files(path: Path) -> Iterator[Path]:
    """Yield the files below a path in the order of names, without those being written."""
    if path.is_file():
        if path.suffix in ("", *_KINDS):  # the hub's cache has safetensors without a suffix
            yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.endswith(PART))
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix in _KINDS and file.is_file():
                yield file


def _examined(path: Path) -> Examined:
    kind = _KINDS[path.suffix or ".safetensors"]
    try:
        has_checksums, damages = kind(path)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).removeprefix(str(path)).removeprefix(":").split())
        return Examined(path, False, [Damage(path, "", reason)])
    return Examined(path, has_checksums, damages)


_Found = tuple[bool, list[Damage]]


def _safetensors(path: Path) -> _Found:
    tensors = read_tensors(path, False, verify=False).tensors
    sealed = Sealed.read(path)
    return sealed.has_checksums, [Damage(path, part, DIFFERS) for part in sealed.damages(tensors)]


def _archive(path: Path) -> _Found:
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False, []  # files of torch before version 1.6 have no checksums
    has_checksums, part = examine_archive(path)
    return has_checksums, [] if part is None else [Damage(path, part, DIFFERS)]


def _parquet(path: Path) -> _Found:
    import pyarrow as pa

    content = path.read_bytes()
    part = damaged_column(content)
    if part is not None:
        return True, [Damage(path, part, DIFFERS)]
    try:
        open_table(content).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"is truncated or not Parquet: {error}") from error
    return has_checksum(content), []


def _json(path: Path) -> _Found:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if path.name == INDEX and isinstance(content, dict) and "shards" in content:
        return True, list(_of_store(path.parent))
    if path.name == RUN and isinstance(content, dict) and "checkpoint" in content:
        return False, list(_of_training(path.parent))
    return False, []


def _of_store(folder: Path) -> Iterator[Damage]:
    """Compare the shards with the sizes and checksums in the index."""
    for shard in read_index(folder).shards:
        path = folder / shard.name
        try:
            check_shard(path, shard, lambda _: None)
        except (ValueError, FileNotFoundError) as error:
            yield Damage(path, "", str(error).removeprefix(f"{path} "))


def _of_training(folder: Path) -> Iterator[Damage]:
    """Find the SAEs and checkpoints that run.json names."""
    run = RunFile.read(folder)
    assert run is not None  # its file was read above
    try:
        labels, step, finished = run.labels, run.step, run.finished
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is not the file of a training run: {error!r}") from error
    for label in labels:
        sae, state = folder / label, folder / label / TRAINING
        if finished and not (sae.is_dir() and weights_in(sae)):
            yield Damage(sae, "", f"holds no weights, although {RUN} says that it is trained")
        if step > 0 and (not finished or state.is_dir()) and not written(state, step):
            missing = f"is missing or incomplete, although {RUN} names it"
            yield Damage(whole_file(state, step), "", missing)


_KINDS: dict[str, Callable[[Path], _Found]] = {
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".pt": _archive,
    ".pth": _archive,
    ".npz": _archive,
    ".json": _json,
}
