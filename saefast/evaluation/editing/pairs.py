"""Pairs of prompts for interchanges: known facts that an edit must change, or must preserve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.evaluation.editing.fact_prompts import Answers, Prompt, answers, prompt
from saefast.evaluation.editing.facts import SPLITS, TEST, TRAIN, VALIDATION
from saefast.evaluation.editing.knowledge import KnownFacts
from saefast.nulls.permutations import generator_of

LEAST_ENTITIES = 40
"""Minimum number of entities with two known attributes for a score"""

TEMPLATES = "held-out templates"
PARTS = {
    TRAIN: (TRAIN, TRAIN),
    VALIDATION: (VALIDATION, TRAIN),
    TEST: (TEST, TRAIN),
    TEMPLATES: (TEST, TEST),
}
"""Split of the entities and split of the templates of each part of the pairs"""

_SHARES = (0.5, 0.2, 0.3)  # of train, validation and test entities


class Question(NamedTuple):
    """A prompt whose answer the model knows."""

    entity: int
    prompt: Prompt
    answers: Answers

    @property
    def right(self) -> Tensor:
        """Mask of the first tokens of the correct value, [c] bool over all first tokens."""
        return self.answers.right[self.entity]

    @property
    def token(self) -> int:
        """First token of the correct value."""
        return self.answers.continuations[self.entity][0][0]


class Pair(NamedTuple):
    """A base prompt into which the entity of a source prompt is interchanged."""

    cause: bool
    """whether the base asks for the edited attribute and the source's value is wanted; otherwise
    it asks for another attribute and its own value is wanted"""
    base: int
    """index of the base prompt"""
    source: int
    """index of the source prompt"""


def prompts_of(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Return the indices of the base prompts and of the source prompts, [n] each."""
    return torch.tensor([pair.base for pair in pairs]), torch.tensor([p.source for p in pairs])


@dataclass(frozen=True, kw_only=True)
class Task:
    """The editing of one attribute of one kind of entity."""

    kind: str
    attribute: str
    pairs: dict[str, list[Pair]]
    """pairs by part, see `PARTS`"""

    @property
    def name(self) -> str:
        """Kind and attribute."""
        return f"{self.kind}: {self.attribute}"


class Questions:
    """All prompts of pairs, without repetitions."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._numbers: dict[tuple[str, str, int, int], int] = {}
        self._answers: dict[tuple[str, str, int], Answers] = {}
        self.listed: list[Question] = []

    def number(self, its: KnownFacts, attribute: str, entity: int, template: int) -> int:
        """Return the index of a prompt in `listed`."""
        key = (its.facts.kind, attribute, entity, template)
        if key not in self._numbers:
            text = its.facts.templates[attribute][template]
            begin = self.answers(its, attribute, template)
            tokens = prompt(self._tokenizer, text, its.facts.entities[entity])
            self._numbers[key] = len(self.listed)
            self.listed.append(Question(entity, tokens, begin))
        return self._numbers[key]

    def answers(self, its: KnownFacts, attribute: str, template: int) -> Answers:
        """Return the tokens of an attribute's values after a template."""
        key = (its.facts.kind, attribute, template)
        if key not in self._answers:
            text = its.facts.templates[attribute][template]
            self._answers[key] = answers(self._tokenizer, its.facts, attribute, text)
        return self._answers[key]


def tasks_of(
    its: KnownFacts,
    questions: Questions,
    *,
    pairs: dict[str, int],
    least: int,
    seed: int,
) -> tuple[list[Task], list[str]]:
    """Draw the pairs of all attributes of one kind.

    Args:
        its: facts that the model knows.
        questions: collection to which prompts are added.
        pairs: number of cause pairs, and of isolation pairs, of each part.
        least: minimum number of entities for which both attributes of a pair are known.
        seed: seed of splits and draws.

    Returns:
        A task for each attribute, and sentences on attributes that cannot be measured.
    """
    kind, attributes = its.facts.kind, its.facts.attributes
    beside = {
        name: [
            other for other in attributes if other != name and its.count_both(name, other) >= least
        ]
        for name in attributes
    }
    notes = [
        f"{kind}: {name} is not measured: the model knows it together with another attribute for "
        f"at most {max((its.count_both(name, o) for o in attributes if o != name), default=0)} "
        f"entities, and {least} are needed"
        for name in attributes
        if not beside[name]
    ]
    usable = [name for name in attributes if beside[name]]
    split = _splits(its, usable, seed)
    tasks = []
    for name in usable:
        drawn = {
            part: _draw(
                its,
                questions,
                name,
                beside[name],
                split == SPLITS.index(of_entity),
                of_template,
                number,
                generator_of(seed, kind, name, part),
            )
            for part, number in pairs.items()
            for of_entity, of_template in [PARTS[part]]
        }
        lacking = [
            part for part, its_pairs in drawn.items() if len({p.cause for p in its_pairs}) < 2
        ]
        if lacking:
            notes.append(
                f"{kind}: {name} is not measured: too few facts are known for pairs of the part "
                f"{lacking[0]}"
            )
        else:
            tasks.append(Task(kind=kind, attribute=name, pairs=drawn))
    return tasks, notes


def _splits(its: KnownFacts, attributes: Sequence[str], seed: int) -> Tensor:
    """Return the split of each entity as index in `SPLITS`, [entities] int64.

    It is -1 for entities with fewer than two known attributes.
    """
    known = torch.zeros(len(its.facts.entities), dtype=torch.int64)
    for name in attributes:
        known += its.known[name].any(1)
    if its.facts.entity_splits:
        split = torch.tensor([SPLITS.index(each) for each in its.facts.entity_splits])
        return torch.where(known >= 2, split, -1)
    there = (known >= 2).nonzero()[:, 0]
    order = torch.randperm(len(there), generator=generator_of(seed, its.facts.kind, "split"))
    first, second, _ = (round(share * len(there)) for share in _SHARES)
    split = torch.full_like(known, -1)
    split[there[order]] = torch.tensor(
        [(place >= first) + (place >= first + second) for place in range(len(there))],
        dtype=torch.int64,
    )
    return split


def _draw(
    its: KnownFacts,
    questions: Questions,
    attribute: str,
    others: Sequence[str],
    entities: Tensor,
    of_template: str,
    number: int,
    generator: torch.Generator,
) -> list[Pair]:
    """Draw cause pairs of the attribute and isolation pairs of the others, equally many of each."""
    found = _drawn(its, questions, attribute, True, entities, of_template, number, generator)
    for place, other in enumerate(others):
        share = number // len(others) + (place < number % len(others))
        found += _drawn(its, questions, other, False, entities, of_template, share, generator)
    return found


def _drawn(
    its: KnownFacts,
    questions: Questions,
    asked: str,
    cause: bool,
    entities: Tensor,
    of_template: str,
    number: int,
    generator: torch.Generator,
) -> list[Pair]:
    """Draw pairs that ask for one attribute with the same template, whose values differ.

    Values with equal first tokens do not count as different, since answers are first tokens.

    Returns:
        At most `number` pairs.
    """
    candidates = []
    for template, split in enumerate(its.facts.template_splits[asked]):
        if split != of_template:
            continue
        known = its.known[asked][:, template] & entities
        right = questions.answers(its, asked, template).right.float()
        differ = (right @ right.T == 0) & known[:, None] & known[None]
        base, source = differ.nonzero(as_tuple=True)
        candidates.append(torch.stack([base, source, torch.full_like(base, template)], 1))
    if not candidates:
        return []
    every = torch.cat(candidates)
    order = torch.randperm(len(every), generator=generator)[:number]
    return [
        Pair(
            cause,
            questions.number(its, asked, base, template),
            questions.number(its, asked, source, template),
        )
        for base, source, template in every[order].tolist()
    ]
