"""Definition of labelled tasks: texts, or spans of texts, in two classes."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.activations.order import permutation
from saefast.types import brief

FEWEST = 20
"""Minimum number of examples of each class"""
EXAMPLES = 600
"""Default of the maximum number of examples of a task"""

_TEST_SHARE = 1 / 3

Item = TypeVar("Item")


class Span(NamedTuple):
    """A range of characters of a text."""

    text: int
    """index of the text"""
    start: int
    """first character"""
    end: int
    """character after the last"""


@dataclass(frozen=True, kw_only=True)
class LabelledTask:
    """Examples of two classes; `labelled_task` drops repetitions and balances the classes."""

    name: str
    """name of the task in scores"""
    texts: tuple[str, ...] = field(repr=False)
    """texts to run through a language model"""
    labels: tuple[bool, ...] = field(repr=False)
    """class of each example"""
    spans: tuple[Span, ...] | None = field(default=None, repr=False)
    """span of each example, whose first token is the example's row; None: each text is an
    example"""
    documents: tuple[int, ...] | None = field(default=None, repr=False)
    """document of each example; examples of one document are never split. None: each example is
    its own document"""
    notes: tuple[str, ...] = ()
    """sentences on omissions"""

    __repr__ = brief

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty str, got {self.name!r}")
        expected = len(self.texts if self.spans is None else self.spans)
        for name, values in (("labels", self.labels), ("documents", self.documents)):
            if values is not None and len(values) != expected:
                raise ValueError(
                    f"task {self.name!r}: {name} must have one entry for each of the {expected} "
                    f"examples, got {len(values)}"
                )
        for number, text in enumerate(self.texts):
            if not isinstance(text, str) or not text.strip():
                got = "an empty str" if isinstance(text, str) else type(text).__name__
                raise ValueError(
                    f"task {self.name!r}: texts[{number}] must be a str with text, got {got}"
                )
        positive = sum(map(bool, self.labels))
        if min(positive, expected - positive) < FEWEST:
            raise ValueError(
                f"task {self.name!r} must have at least {FEWEST} examples of each class, got "
                f"{positive} of one and {expected - positive} of the other"
            )

    def test_examples(self, seed: int, repeat: int = 0) -> Tensor:
        """Choose a third of the examples, or of the documents, as the test part.

        Args:
            seed: seed of the choice.
            repeat: number of the split; splits are chosen independently.

        Returns:
            [examples] bool.
        """
        key = (_key(self.name), repeat)
        labels = np.array(self.labels, dtype=bool)
        test = np.zeros(len(labels), dtype=bool)
        if self.documents is not None:
            names = np.array(self.documents)
            found = np.unique(names)
            order = found[permutation(len(found), seed, *key)]
            test = np.isin(names, order[: round(len(found) * _TEST_SHARE)])
        else:
            for value in (False, True):
                places = np.flatnonzero(labels == value)
                order = places[permutation(len(places), seed, *key, int(value))]
                test[order[: round(len(places) * _TEST_SHARE)]] = True
        for part, its in (("test", labels[test]), ("training", labels[~test])):
            if len(set(its.tolist())) < 2:
                raise ValueError(
                    f"task {self.name!r}: the {part} part has only one class; give more documents "
                    f"that contain both"
                )
        return torch.from_numpy(test)


def labelled_task(
    name: str,
    texts: Sequence[str],
    labels: Sequence[bool],
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> LabelledTask:
    """Build a task from texts: drop repeated texts, then draw equally many of each class.

    Texts that differ only in white space count as repeated; texts that occur with both labels are
    dropped altogether.

    Args:
        name: name of the task.
        texts: texts of the examples.
        labels: class of each text.
        examples: maximum number of texts.
        seed: seed of the draw.
        notes: further notes, beside those on omissions.

    Returns:
        The task, with as many positive as negative examples.
    """
    if len(texts) != len(labels):
        raise ValueError(
            f"task {name!r}: labels must have one entry for each of the {len(texts)} texts, got "
            f"{len(labels)}"
        )
    checks.whole("examples", examples)
    checks.at_least("examples", examples, 2 * FEWEST)
    label_of: dict[str, bool | None] = {}
    text_of: dict[str, str] = {}
    for text, label in zip(texts, labels, strict=True):
        same = " ".join(text.split())
        text_of.setdefault(same, text)
        label_of[same] = bool(label) if label_of.setdefault(same, bool(label)) == label else None
    found = {same: label for same, label in label_of.items() if label is not None and same}
    dropped = [f"{name}: {len(texts) - len(found)} of {len(texts)} texts dropped as repeated"]
    classes = [[text_of[s] for s, its in found.items() if its == value] for value in (False, True)]
    each = min(examples // 2, *map(len, classes))
    chosen = [
        (text, bool(value))
        for value, its in enumerate(classes)
        for text in drawn(its, each, seed, name, value)
    ]
    return LabelledTask(
        name=name,
        texts=tuple(text for text, _ in chosen),
        labels=tuple(label for _, label in chosen),
        notes=(*notes, *(dropped if len(found) < len(texts) else ())),
    )


def drawn(items: Sequence[Item], count: int, seed: int, *key: str | int) -> list[Item]:
    """Draw up to `count` items at random, determined by the seed and the key."""
    numbers = [_key(part) if isinstance(part, str) else part for part in key]
    return [items[place] for place in permutation(len(items), seed, *numbers)[:count]]


def one_against_rest(
    name: str, classes: Mapping[str, Sequence[str]], *, examples: int, seed: int
) -> list[LabelledTask]:
    """Build a task for each class against equally many texts of each other class."""
    tasks = []
    for positive, texts in classes.items():
        others = {other: its for other, its in classes.items() if other != positive}
        each = -(-len(texts) // len(others))
        negative = [
            text for other, its in others.items() for text in drawn(its, each, seed, name, other)
        ]
        tasks.append(
            labelled_task(
                f"{name} {positive}",
                [*texts, *negative],
                [True] * len(texts) + [False] * len(negative),
                examples=examples,
                seed=seed,
            )
        )
    return tasks


def _key(name: str) -> int:
    return zlib.crc32(name.encode())
