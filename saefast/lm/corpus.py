"""Text, document by document, and which of it is held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

HELD_OUT_SHARE = 0.1


class Document(NamedTuple):
    """A text and where it comes from."""

    text: str
    source: str = ""
    """For a reader: a file and a line, a module, a row of a data set."""
    group: str | None = None
    """Documents of one group are held out together; of None, those of the same text."""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, in the same order.

    `Corpus(read)` takes a function that begins anew at each call; `as_corpus` a list of strings.
    """

    read: Callable[[], Iterable[Document | str]]
    description: dict[str, Any] = field(default_factory=dict)
    """Where the text comes from, in words JSON can say; harvested activations keep it."""

    def __iter__(self) -> Iterator[Document]:
        for document in self.read():
            yield document if isinstance(document, Document) else Document(document)

    def train(self, share: float = HELD_OUT_SHARE) -> "Corpus":
        """The documents that are not held out."""
        return self._part("train", share)

    def held_out(self, share: float = HELD_OUT_SHARE) -> "Corpus":
        """About this share of the groups of documents, chosen by a hash: always the same ones."""
        return self._part("held out", share)

    def _part(self, part: str, share: float) -> "Corpus":
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share}")
        if "part" in self.description:
            raise ValueError(
                f"this corpus is the {self.description['part']} part of another; split the whole"
            )

        def read() -> Iterator[Document]:
            for document in self:
                if (_place(document) < share) == (part == "held out"):
                    yield document

        described = {**self.description, "part": part, "held_out_share": share}
        return replace(self, read=read, description=described)


Texts = Corpus | Sequence[Document | str]


def as_corpus(texts: Texts) -> Corpus:
    """A corpus, or a list of strings or documents as one."""
    if isinstance(texts, Corpus):
        return texts
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(
            f"corpus must be a saefast.lm.Corpus or a list of strings, got "
            f"{type(texts).__name__}; files are read by text_files(path)"
        )
    if isinstance(texts, Iterator):
        raise TypeError(
            "corpus must be something that can be read again, got an iterator; pass list(...) or "
            "Corpus(function that begins anew)"
        )
    return Corpus(lambda: texts, {"corpus": "given in memory"})


def _place(document: Document) -> float:
    """Where in [0, 1) the hash of its group falls."""
    group = document.text if document.group is None else document.group
    digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64
