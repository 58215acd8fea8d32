"""Checksums of Parquet files, in the metadata of the file.

    saefast.xxh64       XXH64 of the file, in which the digits of this value are zeros
    saefast.xxh64.of    "file", so that damage to one of the two keys is noticed

Beside, each page has Parquet's own checksum, by which the damaged column is found.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saefast.disk.checksums import BLANK, KEY, checksum, damaged, verifying

if TYPE_CHECKING:
    import pyarrow as pa

_OWN = {KEY.encode(): BLANK.encode(), f"{KEY}.of".encode(): b"file"}


def sealed_table(table: "pa.Table") -> bytes:
    """Return a Parquet file of the table, with checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), **_OWN}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True
    )
    content = bytearray(sink.getvalue())
    begin = _digits_in(content)
    content[begin : begin + len(BLANK)] = checksum(content).encode()
    return bytes(content)


def read_sealed(path: Path) -> "pa.Table":
    """Read a Parquet file, after comparing it with its checksum if it has one.

    Raises:
        ValueError: the file is damaged.
        pa.ArrowException, OSError: it is truncated or not Parquet.
    """
    import pyarrow.parquet as pq

    content = path.read_bytes()
    file = pq.ParquetFile(io.BytesIO(content))
    if verifying() and not is_intact(content, file.metadata.metadata or {}):
        raise damaged(f"{path}: {damaged_part(content, file.schema_arrow.names)}")
    table = file.read()
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key not in _OWN}
    return table.replace_schema_metadata(kept or None)


def is_intact(content: bytes, metadata: Mapping[bytes, bytes]) -> bool:
    """Return whether a file has the checksum in its metadata, or no checksum."""
    if not has_checksum(metadata):
        return True
    if not metadata.keys() >= _OWN.keys():
        return False
    found = metadata[KEY.encode()]
    begin = content.rfind(found)
    blank = content[:begin] + BLANK.encode() + content[begin + len(BLANK) :]
    return begin >= 0 and len(found) == len(BLANK) and checksum(blank).encode() == found


def has_checksum(metadata: Mapping[bytes, bytes]) -> bool:
    """Return whether a file was written with a checksum, even if its keys are damaged."""
    return not metadata.keys().isdisjoint(_OWN)


def damaged_part(content: bytes, columns: list[str]) -> str:
    """Name the column whose pages are damaged, otherwise the footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in columns:
        try:
            pq.read_table(io.BytesIO(content), columns=[name], page_checksum_verification=True)
        except (pa.ArrowException, OSError):
            return f"column {name}"
    return "the footer"


def _digits_in(content: bytearray) -> int:
    """Return the position of the blank checksum: after its key, and the length of the value."""
    key = content.rfind(KEY.encode() + b"\x18\x10" + BLANK.encode())
    if key < 0:
        raise RuntimeError("the Parquet file has no place for its checksum")
    return key + len(KEY) + 2
