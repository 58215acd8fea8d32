"""Zip archives in which torch and numpy keep tensors, and the CRC-32 of their members."""

import zipfile
from pathlib import Path
from typing import NamedTuple

_MOST_INFLATION = 100  # weights never compress better than that
_AT_ONCE = 1 << 20  # bytes of a member that are read at once


class Archive(NamedTuple):
    """Members of an archive."""

    members: list[zipfile.ZipInfo]
    pickled: bytes | None
    """the pickle of a file of torch; None in a file of numpy"""
    has_checksums: bool
    """whether members have a CRC-32, which torch.save can leave out"""


def may_allocate(path: Path, archive: Archive | None) -> bool:
    """Return whether the pickle of a file may allocate unlimited memory, which tensors never do.

    torch.load allows `bytearray`, whose argument is its length.

    Args:
        path: file of torch.
        archive: its archive; None for a file of torch before version 1.6, which is none.
    """
    pickled = path.read_bytes() if archive is None else archive.pickled or b""
    return b"bytearray" in pickled


def read_archive(path: Path) -> Archive:
    """Read the list of an archive's members, and its pickle.

    Returns:
        Members of the archive, and its pickle.

    Raises:
        ValueError: the file is truncated, not an archive, or would grow too much when read.
    """
    pickled = None
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            has_checksums = any(member.CRC for member in members)
            for member in members if not has_checksums else ():
                del member.CRC  # zipfile then compares nothing
            total = sum(member.file_size for member in members)
            small = total <= _MOST_INFLATION * path.stat().st_size
            pickles = [member for member in members if member.filename.endswith("data.pkl")]
            if small and pickles:
                pickled = archive.read(pickles[0])
    except Exception as error:  # the errors of zlib and zipfile have no common base
        raise ValueError(f"{path} is truncated or not a file of tensors: {error}") from error
    if not small:
        raise ValueError(f"{path} would grow from {path.stat().st_size} to {total} bytes")
    return Archive(members, pickled, has_checksums)


def differing_member(path: Path, archive: Archive) -> str | None:
    """Return the name of the first member that differs from its CRC-32; None if none does."""
    with zipfile.ZipFile(path) as opened:
        for member in archive.members:
            try:
                with opened.open(member) as file:
                    while file.read(_AT_ONCE):
                        pass
            except Exception:  # see above; a damaged local header raises others than BadZipFile
                return member.filename
    return None
