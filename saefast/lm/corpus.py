"""Corpora of documents from memory, files, JSON lines or Hugging Face, with a held-out part."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from saefast.hub.download import is_repository
from saefast.hub.reachable import require_hub
from saefast.lm.requirements import needed

HELD_OUT_SHARE = 0.1


class Document(NamedTuple):
    """Text and its origin."""

    text: str
    """the text itself"""
    source: str = ""
    """origin in words: a file and a line, a module, a row of a data set"""
    group: str | None = None
    """documents of a group are held out together; None: documents with the same text are"""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read repeatedly, in the same order.

    `as_corpus` makes a corpus of a list of strings.

    Args:
        read: function that returns the documents from the first one on, at every call.
        description: JSON values that describe the origin.
    """

    read: Callable[[], Iterable[Document | str]]
    description: dict[str, Any] = field(default_factory=dict)
    """JSON values that describe the origin of the text; stores of activations keep them"""

    def __iter__(self) -> Iterator[Document]:
        for each in self.read():
            document = each if isinstance(each, Document) else Document(each)
            yield document._replace(text=_in_unicode(document.text))

    def train(self, share: float = HELD_OUT_SHARE) -> "Corpus":
        """Return the corpus without the documents that are held out.

        Args:
            share: share of the groups that is held out.

        Returns:
            Complement of `held_out(share)`.
        """
        return self._part("train", share)

    def held_out(self, share: float = HELD_OUT_SHARE) -> "Corpus":
        """Return the corpus of the documents that are held out.

        Args:
            share: approximate share of the groups of documents; a hash decides, so that the choice
                is always the same.

        Returns:
            Complement of `train(share)`.
        """
        return self._part("held out", share)

    def _part(self, part: str, share: float) -> "Corpus":
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share}")
        if "part" in self.description:
            raise ValueError(
                f"this corpus is already the {self.description['part']} part of another corpus; "
                f"split the original corpus"
            )

        def read() -> Iterator[Document]:
            for document in self:
                if (_place(document) < share) == (part == "held out"):
                    yield document

        described = {**self.description, "part": part, "held_out_share": share}
        return replace(self, read=read, description=described)


Texts = Corpus | Sequence[Document | str]


def _in_unicode(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD, since no tokenizer takes them.

    JSON may have them: texts that were cut after a number of UTF-16 units end with such a half.

    Returns:
        Text that can be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def as_corpus(texts: Texts) -> Corpus:
    """Return a corpus, or make one of a list.

    Args:
        texts: a `Corpus`, or a list of strings or documents.

    Returns:
        Corpus of the texts.
    """
    if isinstance(texts, Corpus):
        return texts
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(
            f"corpus must be a saefast.lm.Corpus or a list of strings, got "
            f"{type(texts).__name__}; files are read by text_files(path)"
        )
    if isinstance(texts, Iterator):
        raise TypeError(
            "corpus must be readable more than once, got an iterator; pass list(...) or "
            "Corpus(function), whose function starts a new iteration at each call"
        )
    return Corpus(lambda: texts, {"corpus": "given in memory"})


def _place(document: Document) -> float:
    """Return the hash of the document's group as a number in [0, 1)."""
    group = document.text if document.group is None else document.group
    digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def text_files(path: str | Path, pattern: str = "**/*.txt") -> Corpus:
    """Return a corpus of text files in UTF-8.

    Args:
        path: a file, which becomes one document, or a folder.
        pattern: glob pattern of the files in the folder, which are read in order of their names.

    Returns:
        Corpus with a document for each file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    if path.is_dir() and not any(file.is_file() for file in path.glob(pattern)):
        raise ValueError(f"{path} holds no file {pattern}; give text_files(path, pattern='**/*')")

    def read() -> Iterator[Document]:
        files = [path] if path.is_file() else sorted(f for f in path.glob(pattern) if f.is_file())
        for file in files:
            try:
                yield Document(file.read_text(encoding="utf-8-sig"), str(file))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not text in UTF-8: {error}; convert it") from error

    return Corpus(read, {"corpus": "files", "path": str(path), "pattern": pattern})


def json_lines(path: str | Path, field: str = "text") -> Corpus:
    """Return a corpus of the lines of a file with JSON objects.

    Args:
        path: file with an object in each line; empty lines are skipped.
        field: key of the text in each object.

    Returns:
        Corpus with a document for each object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the path")

    def read() -> Iterator[Document]:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise ValueError(
                        f"{where} is not JSON in UTF-8: {error}; correct it"
                    ) from error
                yield Document(_field(row, field, where), where)

    return Corpus(read, {"corpus": "lines of JSON", "path": str(path), "field": field})


def hugging_face(
    dataset: Any, field: str = "text", *, split: str = "train", **options: Any
) -> Corpus:
    """Return a corpus of the rows of a Hugging Face data set.

    Args:
        dataset: name of a data set of the hub, a folder that `datasets` loads, or a data set that
            is loaded already.
        field: column of the text.
        split: split to load.
        **options: arguments of `datasets.load_dataset`, such as `name="wikitext-103-raw-v1"`, the
            configuration, or `streaming=True`, which reads only as many rows as are used.

    Returns:
        Corpus with a document for each row.
    """
    name = dataset if isinstance(dataset, str) else str(getattr(dataset, "builder_name", "rows"))
    if isinstance(dataset, str):
        dataset = _load_dataset(dataset, split, options)
    if not isinstance(dataset, Iterable) or isinstance(dataset, Iterator):
        raise TypeError(
            f"dataset must be a name or an iterable of rows that is readable more than once, got "
            f"{type(dataset).__name__}"
        )
    rows: Iterable[Any] = dataset

    def read() -> Iterator[Document]:
        for number, row in enumerate(rows):
            where = f"{name}, row {number}"
            yield Document(_field(row, field, where), where)

    return Corpus(read, {"corpus": "Hugging Face", "name": name, "split": split, "field": field})


def _load_dataset(name: str, split: str, options: dict[str, Any]) -> Any:
    """Load a data set; errors say in one sentence what to do."""
    load = needed("datasets", "datasets").load_dataset
    try:
        # Without streaming, `datasets` may find the rows in its own cache.
        if options.get("streaming") and is_repository(name) and not Path(name).exists():
            require_hub(name, "dataset")
        return load(name, split=split, **options)
    except FileNotFoundError as error:  # datasets.exceptions.DatasetNotFoundError is one, too
        raise FileNotFoundError(
            f"dataset {name!r} is neither a folder here nor a data set that you can read on the "
            f"hub: check the spelling; for a private or gated one, log in with `hf auth login` or "
            f"set HF_TOKEN ({_one_line(error)})"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"dataset {name!r} is not in the cache, and the hub cannot be reached: check the "
            f"connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a folder of files "
            f"({_one_line(error)})"
        ) from error
    except ValueError as error:  # an unknown split, or a configuration that must be chosen
        raise ValueError(
            f"dataset {name!r} cannot be loaded with split={split!r} and {options}: "
            f"{_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where} must have a text under {field!r}, but it holds {held}")
    return str(row[field])
