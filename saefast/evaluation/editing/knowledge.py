"""Facts that a language model knows, measured by one forward pass for each prompt."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.disk.tables import read_table, table_of, write_table
from saefast.evaluation.editing.fact_prompts import (
    Answers,
    Prompt,
    answers,
    batches,
    padded,
    prompt,
)
from saefast.evaluation.editing.facts import PLACE, Facts
from saefast.lm.logits import Continuations, shared_length
from saefast.lm.model import LanguageModel, check_model
from saefast.progress import ProgressBar

if TYPE_CHECKING:
    import pyarrow as pa

NOT_ASKED = -1
"""Rank of a fact that was not asked: it has no value, or the entity is a template's example"""


@dataclass(frozen=True, kw_only=True)
class KnownFacts:
    """Facts about entities of one kind that a model knows."""

    facts: Facts
    rank: Mapping[str, Tensor]
    """by attribute, [entities, templates] int64 number of other values' first tokens that are more
    likely than the correct one; -1 where the model was not asked"""
    known: Mapping[str, Tensor]
    """by attribute, [entities, templates] bool whether the rank is 0 and the rest of the value
    follows greedily"""

    def count(self, attribute: str) -> int:
        """Return the number of entities whose value is known with some template."""
        return int(self.known[attribute].any(1).sum())

    def count_both(self, first: str, second: str) -> int:
        """Return the number of entities with both attributes known, each with some template."""
        return int((self.known[first].any(1) & self.known[second].any(1)).sum())


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Facts that a model knows."""

    model: str
    """name of the model"""
    kinds: tuple[KnownFacts, ...]
    """facts that the model knows, for each kind of entity"""

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each kind, attribute and template."""
        return table_of(
            [
                {
                    "kind": its.facts.kind,
                    "attribute": attribute,
                    "template": template,
                    "split": its.facts.template_splits[attribute][number],
                    "asked": int((its.rank[attribute][:, number] != NOT_ASKED).sum()),
                    "known": int(its.known[attribute][:, number].sum()),
                }
                for its in self.kinds
                for attribute in its.facts.attributes
                for number, template in enumerate(its.facts.templates[attribute])
            ]
        )

    def lines(self) -> list[str]:
        """Return sentences with the number of known facts of each kind and attribute."""
        lines = []
        for its in self.kinds:
            for attribute in its.facts.attributes:
                asked = (its.rank[attribute] != NOT_ASKED).any(1)
                known = its.known[attribute].sum(0).tolist()
                lines.append(
                    f"{self.model} knows the {attribute} of {its.count(attribute)} of "
                    f"{int(asked.sum())} entities of kind {its.facts.kind} with the best of "
                    f"{len(known)} templates, of {min(known)} with the worst alone and of "
                    f"{max(known)} with the best alone"
                )
        return lines


def known_facts(
    model: LanguageModel,
    facts: Facts | Sequence[Facts],
    *,
    out: str | Path | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Knowledge:
    """Test which facts a model knows, with every template.

    A fact is known with a template if, after the prompt, the first token of its value (or of an
    alias) is more likely than the first token of every other value of the attribute, and every
    further token of the value is the most likely of all tokens. No text is generated: the value is
    appended to the prompt, and the logits of one forward pass answer both questions.

    Args:
        model: language model from `load_model`, with a fast tokenizer.
        facts: facts from `places` or `ravel_facts`, or others of that form.
        out: folder for the answers, with a file for each kind and model; existing answers are read
            instead of asking again. None: nothing is stored.
        batch_size: number of prompts in one forward pass.
        progress: show a progress bar on stderr.

    Returns:
        Ranks and known facts by kind, attribute, entity and template.
    """
    check_model(model)
    each = [facts] if isinstance(facts, Facts) else list(facts)
    for number, one in enumerate(each):
        if not isinstance(one, Facts):
            raise TypeError(f"facts[{number}] must be a Facts record, got {type(one).__name__}")
    checks.whole("batch_size", batch_size)
    checks.at_least("batch_size", batch_size, 1)
    kinds = []
    for one in each:
        path = None if out is None else _path(Path(out), model, one)
        found = None if path is None else _read(path, one)
        if found is None:
            found = _ask(model, one, batch_size, progress)
            if path is not None:
                _write(path, found)
        kinds.append(found)
    return Knowledge(model=model.name, kinds=tuple(kinds))


class _Question(NamedTuple):
    """One prompt with its possible answers."""

    attribute: str
    entity: int
    template: int
    prompt: Prompt
    answers: Answers


def _ask(model: LanguageModel, facts: Facts, batch_size: int, progress: bool) -> KnownFacts:
    shape = {name: (len(facts.entities), len(its)) for name, its in facts.templates.items()}
    rank = {name: torch.full(size, NOT_ASKED) for name, size in shape.items()}
    known = {name: torch.zeros(size, dtype=torch.bool) for name, size in shape.items()}
    questions = _questions(model, facts)
    what = f"facts of kind {facts.kind}"
    with ProgressBar(what, total=len(questions), unit="prompts", progress=progress) as bar:
        first = [its.answers.continuations[its.entity][0] for its in questions]
        ranks, best, greedy = _run(model, questions, first, batch_size, bar)
        # Where another alias is the answer, that alias has to follow greedily.
        again = [
            (number, alias)
            for number, its in enumerate(questions)
            if ranks[number] == 0 and not (greedy[number] and best[number] == first[number][0])
            for alias in its.answers.continuations[its.entity][1:]
            if alias[0] == best[number]
        ]
        good = [
            ranks[number] == 0 and greedy[number] and best[number] == first[number][0]
            for number in range(len(questions))
        ]
        others = [questions[number] for number, _ in again]
        _, _, follows = _run(model, others, [alias for _, alias in again], batch_size, None)
        for (number, _), right in zip(again, follows, strict=True):
            good[number] |= right
    for its, place, right in zip(questions, ranks, good, strict=True):
        rank[its.attribute][its.entity, its.template] = place
        known[its.attribute][its.entity, its.template] = right
    return KnownFacts(facts=facts, rank=rank, known=known)


def _questions(model: LanguageModel, facts: Facts) -> list[_Question]:
    found = []
    for attribute, templates in facts.templates.items():
        for number, template in enumerate(templates):
            begin = answers(model.tokenizer, facts, attribute, template)
            for entity, name in enumerate(facts.entities):
                if facts.values[attribute][entity] and name not in template.replace(PLACE, ""):
                    tokens = prompt(model.tokenizer, template, name)
                    found.append(_Question(attribute, entity, number, tokens, begin))
    return found


def _run(
    model: LanguageModel,
    questions: Sequence[_Question],
    continuations: Sequence[tuple[int, ...]],
    batch_size: int,
    bar: ProgressBar | None,
) -> tuple[list[int], list[int], list[bool]]:
    """Return ranks of correct values, most likely first tokens, and whether values are greedy."""
    ranks, best, greedy = [0] * len(questions), [0] * len(questions), [False] * len(questions)
    by_template: dict[tuple[str, int], list[int]] = {}
    for number, its in enumerate(questions):
        by_template.setdefault((its.attribute, its.template), []).append(number)
    for numbers in by_template.values():
        # The tokens before the entity are run once for a template.
        shared = shared_length([questions[number].prompt.ids for number in numbers])
        reader = Continuations(model.model, questions[numbers[0]].prompt.ids[:shared])
        ends = {number: len(questions[number].prompt.ids) - 1 - shared for number in numbers}
        texts = {
            number: [*questions[number].prompt.ids[shared:], *continuations[number][:-1]]
            for number in numbers
        }
        for batch in batches([len(texts[number]) for number in numbers], batch_size):
            chosen = [numbers[place] for place in batch]
            first = min(ends[number] for number in chosen)
            stop = max(ends[number] + len(continuations[number]) for number in chosen)
            ids = padded([texts[number] for number in chosen])
            logits = reader.logits(ids, torch.arange(first, stop)).cpu()
            for row, number in enumerate(chosen):
                here, rest = logits[row, ends[number] - first :], continuations[number]
                its = questions[number]
                values = here[0, its.answers.tokens]
                right = its.answers.right[its.entity]
                ranks[number] = int((values[~right] >= values[right].max()).sum())
                best[number] = int(its.answers.tokens[values.argmax()])
                greedy[number] = here[1 : len(rest)].argmax(1).tolist() == list(rest[1:])
            if bar is not None:
                bar.update(len(batch))
    return ranks, best, greedy


def _path(folder: Path, model: LanguageModel, facts: Facts) -> Path:
    asked = json.dumps([model.description, asdict(facts)], sort_keys=True)
    return folder / f"{facts.kind}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.parquet"


def _write(path: Path, found: KnownFacts) -> None:
    columns: dict[str, list[object]] = {"attribute": [], "rank": [], "known": []}
    for attribute in found.facts.attributes:
        count = found.rank[attribute].numel()
        columns["attribute"] += [attribute] * count
        columns["rank"] += found.rank[attribute].flatten().tolist()
        columns["known"] += found.known[attribute].flatten().tolist()
    write_table(path, columns)


def _read(path: Path, facts: Facts) -> KnownFacts | None:
    table = read_table(path)
    if table is None:
        return None
    rank, known = {}, {}
    first = 0
    for attribute, templates in facts.templates.items():
        shape = (len(facts.entities), len(templates))
        rows = table.slice(first, shape[0] * shape[1])
        rank[attribute] = torch.tensor(rows["rank"].to_pylist()).view(shape)
        known[attribute] = torch.tensor(rows["known"].to_pylist(), dtype=torch.bool).view(shape)
        first += shape[0] * shape[1]
    return KnownFacts(facts=facts, rank=rank, known=known)
