"""Mutated GGUF files, loaded as language models in a process with limits.

    python -m helpers.hostile_gguf FOLDER CASES

Half of the files are mutated byte by byte. In the others one number or text of the header is
replaced, such as the length of a key or the shape of a tensor. Limits and outcomes are those of
`helpers.hostile_files`; the cache of `load_model` is in the folder of the case.
"""

import functools
import itertools
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import gguf
from helpers.hostile_files import Target, mutated, run
from helpers.tiny_lm import write_gguf

from saefast.lm import load_model

_NUMBERS = (0, 1, 2, 3, 8, 9, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**40, 2**62, 2**64 - 1)


def _make(folder: Path) -> None:
    folder.mkdir()
    write_gguf(folder / "a.gguf")


def _load(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        os.environ["SAEFAST_CACHE"] = cache
        load_model(folder / "a.gguf", progress=False)


TARGETS = {"GGUF": Target(_make, _load)}


@functools.cache
def _fields(content: bytes, folder: Path) -> list[list[tuple[int, int]]]:
    """Return the begin and length of each number and text of each field of the header."""
    whole = folder / "fields.gguf"
    whole.write_bytes(content)
    reader = gguf.GGUFReader(whole)
    whole.unlink()
    found = []
    for field in (*reader.fields.values(), *(tensor.field for tensor in reader.tensors)):
        lengths = [part.nbytes for part in field.parts]
        ends = itertools.accumulate(lengths, initial=field.offset)
        found.append(list(zip(ends, lengths, strict=False)))
    return found


def changed(file: Path, draw: random.Random) -> bytes:
    """Return the content of a file after a random change."""
    content = file.read_bytes()
    if draw.random() < 0.5:
        return mutated(content, draw)
    begin, length = draw.choice(draw.choice(_fields(content, file.parent.parent)))
    if length in (1, 4, 8) and draw.random() < 0.9:
        new = (draw.choice(_NUMBERS) % 2 ** (8 * length)).to_bytes(length, "little")
    else:
        new = draw.randbytes(length)
    return content[:begin] + new + content[begin + length :]


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), TARGETS, changed)))
