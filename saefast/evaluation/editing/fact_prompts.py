"""Tokenised prompts for facts, with the end of the entity and the first tokens of answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.evaluation.editing.facts import PLACE, Facts
from saefast.lm.packing import beginning

_OPENINGS = ("'", '"', "(", "[", "{", "`")
"""Ends of templates after which a value follows without a space"""


class Prompt(NamedTuple):
    """A template with an entity in it."""

    ids: list[int]
    position: int
    """position of the entity's last token"""


@dataclass(frozen=True)
class Answers:
    """Tokens of the values of an attribute after a template."""

    tokens: Tensor
    """[c] int64 first tokens of all values and aliases, ascending"""
    right: Tensor
    """[entities, c] bool whether the entity's value, or an alias, begins with the token"""
    continuations: tuple[tuple[tuple[int, ...], ...], ...]
    """for each entity, the tokens of its value and aliases"""

    def best(self, logits: Tensor) -> Tensor:
        """Return the index in `tokens` of the most likely answer [n], by logits [n, vocabulary]."""
        return logits[:, self.tokens.to(logits.device)].argmax(1).cpu()


def prompt(tokenizer: Any, template: str, entity: str) -> Prompt:
    """Return the prompt's tokens, with the entity's last token found by character offsets.

    Tokenising the text after the entity separately would miscount where a tokenizer adds BOS or
    merges across the entity's end.
    """
    before, after = template.split(PLACE)
    end = len(before) + len(entity)
    ids, spans = _with_spans(tokenizer, f"{before}{entity}{after}".rstrip())
    ending = [number for number, (start, stop) in enumerate(spans) if start < end and stop > start]
    begin = beginning(tokenizer)
    return Prompt(begin + ids, len(begin) + ending[-1])


def answers(tokenizer: Any, facts: Facts, attribute: str, template: str) -> Answers:
    """Return the tokens of an attribute's values after a template."""
    opened = template.endswith(_OPENINGS)
    carrier = template[-1] if opened else "is"
    between = "" if opened else " "
    known: dict[str, tuple[int, ...]] = {}

    def tokens(value: str) -> tuple[int, ...]:
        if value not in known:
            ids, spans = _with_spans(tokenizer, f"{carrier}{between}{value}")
            first = sum(start < len(carrier) for start, _ in spans)
            known[value] = tuple(ids[first:])
        return known[value]

    continuations = tuple(
        tuple(tokens(value) for value in values) for values in facts.values[attribute]
    )
    firsts = sorted({each[0] for its in continuations for each in its})
    right = torch.zeros(len(continuations), len(firsts), dtype=torch.bool)
    for entity, its in enumerate(continuations):
        for each in its:
            right[entity, firsts.index(each[0])] = True
    return Answers(torch.tensor(firsts, dtype=torch.int64), right, continuations)


def batches(
    sizes: Sequence[int] | Sequence[tuple[int, int]], batch_size: int
) -> Iterator[list[int]]:
    """Yield batches of indices of texts of similar size, the smallest first."""
    order = sorted(range(len(sizes)), key=lambda number: (sizes[number], number))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def padded(texts: Sequence[Sequence[int]]) -> Tensor:
    """Return texts as one tensor [contexts, length], padded on the right with zeros.

    In a causal model no token attends to its right, so no mask is needed.
    """
    ids = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    return ids


def _with_spans(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a text, and the characters [start, stop) of each."""
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"the model's tokenizer must be a fast tokenizer, which states the position of each "
            f"token in the text, got {type(tokenizer).__name__}; load it with use_fast=True"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]
