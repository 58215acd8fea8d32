"""Read and write tensors in safetensors, torch and numpy files.

Files are mapped into memory when read, and never unpickled unless asked for; they are written
completely or not at all.
"""

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.disk import sealed_tensors
from saefast.disk.archives import Archive, differing_member, may_allocate, read_archive
from saefast.disk.atomic import write_with
from saefast.disk.checksums import damaged, verifying

_OTHER_FILES = {
    b"\x93NUMPY": "a single NumPy array",
    b"PAR1": "a Parquet table",
    b"GGUF": "a GGUF file",
    b"{\n": "a JSON file",
    b"{ ": "a JSON file",
    b'{"': "a JSON file",
}
"""Kinds of files that are not read here, by their first bytes."""


class Contents(NamedTuple):
    """Contents of a file by name."""

    kind: str
    """safetensors, torch or numpy"""
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_tensors(path: Path, allow_pickle: bool, verify: bool = True) -> Contents:
    """Return the tensors of a file, whose kind is detected from its first bytes.

    If the file can be mapped into memory, it is read only to compare it with its checksums. A
    tensor may claim to be larger than its storage in the file; `SourceFile.take` rejects those.

    Args:
        path: safetensors, torch or numpy file.
        allow_pickle: whether to unpickle a file that holds more than tensors.
        verify: whether to compare the file with checksums that it contains.

    Raises:
        ValueError: the file is truncated, damaged or of another kind.
    """
    verify = verify and verifying()
    with path.open("rb") as file:
        start = file.read(10)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path, allow_pickle, verify)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[2:8] != b"\0" * 6:
        return _read_torch(path, allow_pickle, None)
    return Contents("safetensors", _read_safetensors(path, verify), {})


def _read_safetensors(path: Path, verify: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    header = int.from_bytes(start, "little")
    if not 0 < header <= min(size - 8, sealed_tensors.LONGEST_HEADER):
        for beginning, kind in _OTHER_FILES.items():
            if start.startswith(beginning):
                raise ValueError(
                    f"{path} is {kind}; expected a .safetensors, .pt or .npz file of named tensors"
                )
        raise ValueError(
            f"{path} is truncated or not a safetensors file: its header would be {header} bytes "
            f"long, and the file has {size}; get or write it again"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: {error}; get or write it again"
        ) from error
    if verify:
        sealed_tensors.check(path, tensors, "verify=False")
    return tensors


def examine_archive(path: Path) -> tuple[bool, str | None]:
    """Compare a file of torch or numpy with the CRC-32 of its members.

    Returns:
        Whether it has checksums, and the name of the part that differs, None if none does.

    Raises:
        ValueError: the file is truncated or not an archive.
    """
    archive = read_archive(path)
    member = differing_member(path, archive)
    part = None if member is None else _part_of(path, member, archive)
    return archive.has_checksums, part


def _read_zip(path: Path, allow_pickle: bool, verify: bool) -> Contents:
    archive = read_archive(path)
    member = differing_member(path, archive) if verify else None
    if member is not None:
        raise damaged(f"{path}: {_part_of(path, member, archive)}", "verify=False")
    if archive.pickled is not None:
        return _read_torch(path, allow_pickle, archive)
    return Contents("numpy", _read_npz(path, archive.members), {})


def _part_of(path: Path, member: str, archive: Archive) -> str:
    """Return the name of the tensor that a member of an archive holds, or the member's name."""
    if archive.pickled is None:
        return member.removesuffix(".npy")
    number = re.fullmatch(r".*/data/(\d+)", member)
    if number is None:
        return member
    try:
        names = list(_read_torch(path, False, archive).tensors)
    except ValueError:
        return member
    # torch.save numbers storages in the order of the tensors; names are known if each has its own.
    storages = sum("/data/" in each.filename for each in archive.members)
    return names[int(number[1])] if len(names) == storages else member


def _read_npz(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, Tensor]:
    tensors = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        try:
            tensors[name] = _read_npy(path, member)
        except Exception as error:  # nor have those of tokenize, with which numpy reads headers
            raise ValueError(f"{path}: {name} cannot be read: {error}") from error
    return tensors


def _read_npy(path: Path, member: zipfile.ZipInfo) -> Tensor:
    """Read one array of the archive, mapped if it is not compressed."""
    import numpy as np

    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are not read")
        header = file.tell()
        if math.prod(shape) * dtype.itemsize != member.file_size - header:
            raise ValueError(f"shape {shape} does not fit {member.file_size - header} bytes")
        if member.compress_type != zipfile.ZIP_STORED:
            array = np.frombuffer(bytearray(file.read()), dtype)
            return torch.from_numpy(array.reshape(shape, order="F" if fortran else "C"))
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # lengths of the name and of the extra field
        name_size, extra_size = (int.from_bytes(raw.read(2), "little") for _ in range(2))
    begin = member.header_offset + 30 + name_size + extra_size + header
    order = "F" if fortran else "C"
    if not math.prod(shape):
        return torch.from_numpy(np.empty(shape, dtype))
    return torch.from_numpy(np.memmap(path, dtype, "c", begin, shape, order))  # type: ignore[call-overload]


def _read_torch(path: Path, allow_pickle: bool, archive: Archive | None) -> Contents:
    """Read a file of torch.save; `archive` is None if it is no zip archive."""
    mapped = archive is not None
    if not allow_pickle and may_allocate(path, archive):
        raise ValueError(_not_unasked(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # corrupt bytes may raise any exception
        message = str(error)
        objects = "add_safe_globals" in message or "unsupported global" in message.lower()
        if not (isinstance(error, pickle.UnpicklingError) and objects):
            raise ValueError(
                f"{path} is truncated or not a torch file: {error}; get or write it again"
            ) from error
        if not allow_pickle:
            raise ValueError(_not_unasked(path)) from error
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)
        except Exception as failure:  # raised by the file's own code
            raise ValueError(f"{path} cannot be unpickled: {failure!r}") from failure
    if isinstance(loaded, torch.nn.Module):
        loaded = loaded.state_dict()
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(f"{path} must hold tensors by name, got {type(loaded).__name__}")
    tensors = {n: v.detach() for n, v in loaded.items() if isinstance(v, Tensor)}
    values = {n: v for n, v in loaded.items() if not isinstance(v, Tensor)}
    return Contents("torch", tensors, values)


def _not_unasked(path: Path) -> str:
    return (
        f"{path} holds Python objects beside tensors; reading them runs code stored in the file. "
        f"If you trust its origin, load it with allow_pickle=True"
    )


def write_torch(path: Path, contents: Mapping[str, Any]) -> None:
    """Write tensors and plain values as a file that torch.load(weights_only=True) reads."""
    own = {
        name: value.detach().contiguous().clone() if isinstance(value, Tensor) else value
        for name, value in contents.items()
    }

    def write(part: Path) -> None:
        # torch's own writer would not state why a write has failed.
        with part.open("wb") as file:
            try:
                torch.save(own, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    write_with(path, write)


def write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write arrays without compression, so that they can be mapped into memory."""
    import numpy as np

    def write(part: Path) -> None:
        with part.open("wb") as file:  # np.savez would append .npz to a path
            arrays: dict[str, Any] = {name: v.detach().numpy() for name, v in tensors.items()}
            np.savez(file, **arrays)

    write_with(path, write)
