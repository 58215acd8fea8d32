"""Text from files, lines of JSON, and Hugging Face data sets."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saefast.lm.corpus import Corpus, Document
from saefast.lm.extra import needed


def text_files(path: str | Path, pattern: str = "**/*.txt") -> Corpus:
    """A file as one document, or the files in a folder that fit the pattern, in order of names."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir() and not any(file.is_file() for file in path.glob(pattern)):
        raise ValueError(f"{path} holds no file {pattern}; give text_files(path, pattern='**/*')")

    def read() -> Iterator[Document]:
        files = [path] if path.is_file() else sorted(f for f in path.glob(pattern) if f.is_file())
        for file in files:
            try:
                yield Document(file.read_text(encoding="utf-8"), str(file))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not text in UTF-8: {error}") from error

    return Corpus(read, {"corpus": "files", "path": str(path), "pattern": pattern})


def json_lines(path: str | Path, field: str = "text") -> Corpus:
    """Each line of the file is an object of JSON whose `field` is a document."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")

    def read() -> Iterator[Document]:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where} is not JSON: {error}") from error
                yield Document(_field(row, field, where), where)

    return Corpus(read, {"corpus": "lines of JSON", "path": str(path), "field": field})


def hugging_face(
    dataset: Any, field: str = "text", *, split: str = "train", **options: Any
) -> Corpus:
    """A data set of the hub by its name, or one that is loaded already; its rows have `field`.

    `options` go to `datasets.load_dataset`, `streaming=True` for example.
    """
    name = dataset if isinstance(dataset, str) else str(getattr(dataset, "builder_name", "rows"))
    if isinstance(dataset, str):
        load = needed("datasets", "datasets").load_dataset
        dataset = load(dataset, split=split, **options)
    if not isinstance(dataset, Iterable) or isinstance(dataset, Iterator):
        raise TypeError(
            f"dataset must be a name or rows that can be read again, got {type(dataset).__name__}"
        )
    rows: Iterable[Any] = dataset

    def read() -> Iterator[Document]:
        for number, row in enumerate(rows):
            where = f"{name}, row {number}"
            yield Document(_field(row, field, where), where)

    return Corpus(read, {"corpus": "Hugging Face", "name": name, "split": split, "field": field})


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where} must have a text under {field!r}, but it holds {held}")
    return str(row[field])
