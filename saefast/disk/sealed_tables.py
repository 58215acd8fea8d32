"""Checksums of Parquet files, in the metadata of the file.

    saefast.xxh64       XXH64 of the file, in which the digits of this value are zeros
    saefast.xxh64.of    "file", so that damage to one of the two keys is noticed

In addition, each page has Parquet's own checksum, by which the damaged column is found.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from saefast.disk.checksums import BLANK, KEY, checksum, damaged, verifying

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_OWN = {KEY.encode(): BLANK.encode(), f"{KEY}.of".encode(): b"file"}
# Keys and values as the footer holds them: a byte of the type, the length, the text. They are found
# without reading the footer, which may be damaged.
_DIGITS = re.compile(rb"\x18\x0d" + re.escape(KEY.encode()) + rb"\x18\x10([0-9a-f]{16})")
_END = b"PAR1"
_MOST_GROWN, _MOST_GROWTH = 1 << 30, 1000  # bytes in memory, and how many for one in the file
_MARK = b"\x18\x10" + KEY.encode() + b".of\x18\x04file"


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
    place = _DIGITS.search(content)
    if place is None or _MARK not in content:
        raise RuntimeError(
            "this version of pyarrow writes no place for the checksum of a file; update it"
        )
    content[slice(*place.span(1))] = checksum(content).encode()
    return bytes(content)


def read_sealed(path: Path) -> "pa.Table":
    """Read a Parquet file, after comparing it with its checksum if it has one.

    Returns:
        Table without the metadata of the checksum.

    Raises:
        ValueError: the file is damaged.
        pa.ArrowException, OSError: it is truncated or not Parquet.
    """
    content = path.read_bytes()
    if verifying() and content.endswith(_END):  # pyarrow describes truncated files better
        part = damaged_part(content)
        if part is not None:
            raise damaged(f"{path}: {part}")
    file = open_table(content)
    _check_growth(path, file.metadata, len(content))
    table = file.read()
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key not in _OWN}
    return table.replace_schema_metadata(kept or None)


def open_table(content: bytes, *, verify_pages: bool = False) -> "pq.ParquetFile":
    """Open the contents of a Parquet file, of which Arrow gets a copy of its own.

    The threads of Arrow release the contents some time after a table is read. If these were a
    Python object and Python were ending, the process would abort.

    Args:
        content: bytes of the file.
        verify_pages: whether reading compares Parquet's own checksums.

    Returns:
        The open file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = pa.BufferOutputStream()
    copy.write(content)
    return pq.ParquetFile(pa.BufferReader(copy.getvalue()), page_checksum_verification=verify_pages)


def _check_growth(path: Path, facts: "pq.FileMetaData", size: int) -> None:
    """Refuse a file that would fill the memory: a column of equal values takes a few bytes."""
    groups = (facts.row_group(i) for i in range(facts.num_row_groups))
    grown = 8 * facts.num_rows * facts.num_columns + sum(each.total_byte_size for each in groups)
    if grown > max(_MOST_GROWN, _MOST_GROWTH * size):
        raise ValueError(f"{path} would grow from {size} to {grown} bytes")


def has_checksum(content: bytes) -> bool:
    """Return whether a file was written with a checksum, even if one of its keys is damaged."""
    return _MARK in content or _DIGITS.search(content) is not None


def damaged_part(content: bytes) -> str | None:
    """Name the column or the footer that is damaged; None for an intact or unchecked file."""
    if not has_checksum(content):
        return None
    place = _DIGITS.search(content)
    if place is not None and _MARK in content:
        begin, end = place.span(1)
        if checksum(content[:begin] + BLANK.encode() + content[end:]) == place[1].decode():
            return None
    return _damaged_column(content) or "the footer"


def _damaged_column(content: bytes) -> str | None:
    """Name the first column whose pages differ from Parquet's own checksums."""
    import pyarrow as pa

    try:
        columns = open_table(content).schema_arrow.names
    except (pa.ArrowException, OSError, ValueError):
        return None
    for name in columns:
        try:
            open_table(content, verify_pages=True).read(columns=[name])
        except (pa.ArrowException, OSError, ValueError):
            return f"column {name}"
    return None
