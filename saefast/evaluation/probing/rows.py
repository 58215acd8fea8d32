"""Activations of a language model on the texts of tasks, and pooled latents of their examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saefast.evaluation.probing.tasks.labelled import LabelledTask, Span
from saefast.lm.model import LanguageModel
from saefast.lm.packing import beginning, token_batch
from saefast.lm.padded import BatchCapture
from saefast.lm.sites import Site
from saefast.sae import SAE, code_of

POOLS = ("mean", "last", "max")

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TaskRows:
    """Activations of the tokens that represent a task's examples."""

    rows: Tensor
    """[rows, d], on the CPU"""
    example: Tensor
    """[rows] int64 example of each row, ascending"""
    labels: Tensor
    """[examples] bool"""
    used: Tensor
    """[examples] int64 indices of the examples in their task; spans without a token are left out"""
    bag: tuple[Tensor, Tensor]
    """example and token, both [n] int64, for the bag of tokens: all tokens of a text; for a span
    its token, and the token before as a separate kind"""

    @torch.no_grad()
    def pooled(self, sae: SAE, pool: str) -> Tensor:
        """Return the latents of each example, pooled over its rows: [examples, m] float32.

        Args:
            sae: the SAE.
            pool: "mean" or "max" over the rows of an example, or the "last" row. Of latents that
                may be negative, "max" takes the activation with the largest absolute value.
        """
        rows, example = self.rows, self.example
        if pool == "last":
            rows, example = rows[self._last()], torch.arange(len(self.labels))
        latents = torch.zeros(len(self.labels), sae.m)
        flat = latents.view(-1)
        least = torch.zeros_like(flat)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            code = code_of(sae, rows[part])
            place = (example[part, None] * sae.m + code.indices.cpu()).flatten()
            values = code.values.float().cpu().flatten()
            if pool == "max":
                flat.scatter_reduce_(0, place, values, "amax")
                least.scatter_reduce_(0, place, values, "amin")
            else:
                flat.index_add_(0, place, values)
        if pool == "mean":
            latents /= self._counts()[:, None]
        return torch.where(-least > flat, least, flat).view_as(latents)

    def pooled_rows(self, pool: str) -> Tensor:
        """Return the activations of each example, pooled over its rows: [examples, d] float32."""
        if pool == "last":
            return self.rows[self._last()].float()
        pooled = torch.zeros(len(self.labels), self.rows.shape[1])
        if pool == "max":
            index = self.example[:, None].expand_as(self.rows)
            return pooled.scatter_reduce(0, index, self.rows.float(), "amax", include_self=False)
        return pooled.index_add_(0, self.example, self.rows.float()) / self._counts()[:, None]

    def surface(self) -> Tensor:
        """Return the counts of tokens in each example: [examples, tokens that occur] float32."""
        examples, tokens = self.bag
        found, column = torch.unique(tokens, return_inverse=True)
        counts = torch.zeros(len(self.labels), len(found))
        ones = torch.ones(len(tokens))
        return counts.index_put_((examples, column), ones, accumulate=True)

    def _counts(self) -> Tensor:
        return torch.bincount(self.example, minlength=len(self.labels)).float()

    def _last(self) -> Tensor:
        return torch.bincount(self.example, minlength=len(self.labels)).cumsum(0) - 1


def task_rows(
    model: LanguageModel,
    site: Site,
    tasks: Sequence[LabelledTask],
    *,
    pool: str,
    context: int,
    batch_size: int,
    drop_bos: bool,
) -> list[TaskRows]:
    """Run the texts shared by several tasks through the model once.

    Args:
        model: language model.
        site: site of the activations.
        tasks: tasks of the same texts.
        pool: with "last" the end of a text longer than `context` is read, else its beginning.
        context: maximum number of tokens of a text.
        batch_size: number of texts in one forward pass; texts are sorted by length to save padding.
        drop_bos: leave out first positions and BOS, unless a text has nothing else.

    Returns:
        Rows of each task, in their order.
    """
    tokens, offsets = _tokens(model, tasks[0], context, from_end=pool == "last")
    order = sorted(range(len(tokens)), key=lambda text: (len(tokens[text]), text))
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    kept = torch.zeros(len(tokens), max(map(len, tokens)), dtype=torch.bool)
    for texts in batches:
        its = token_batch([tokens[text] for text in texts], model.tokenizer, drop_bos)
        kept[texts, : its.kept.shape[1]] = its.kept
    last = torch.tensor([len(its) - 1 for its in tokens])
    empty = ~kept.any(1)
    kept[empty, last[empty]] = True
    places = [_places(task, kept, offsets) for task in tasks]
    rows: list[Tensor] = [torch.zeros(0)] * len(tasks)
    captured = BatchCapture(model, [site])
    for texts in batches:
        (seen,) = captured(token_batch([tokens[text] for text in texts], model.tokenizer, drop_bos))
        slot = torch.full((len(tokens),), -1)
        slot[texts] = torch.arange(len(texts))
        for number, (_, text, position) in enumerate(places):
            if not len(rows[number]):
                rows[number] = torch.zeros(len(text), seen.shape[2], dtype=seen.dtype)
            here = slot[text] >= 0
            at = slot[text[here]].to(seen.device), position[here].to(seen.device)
            rows[number][here] = seen[at].cpu()
    return [
        _task_rows(task, its, *place, tokens=tokens)
        for task, its, place in zip(tasks, rows, places, strict=True)
    ]


def _task_rows(
    task: LabelledTask,
    rows: Tensor,
    example: Tensor,
    text: Tensor,
    position: Tensor,
    *,
    tokens: Sequence[Sequence[int]],
) -> TaskRows:
    used, example_of_row = torch.unique(example, return_inverse=True)
    labels = torch.tensor(task.labels)[used]
    if task.spans is None:
        pairs = [(number, token) for number, its in enumerate(tokens) for token in its]
    else:
        # The token before counts as a separate kind, which has the odd numbers.
        pairs = []
        for number, (where, at) in enumerate(zip(text.tolist(), position.tolist(), strict=True)):
            pairs.append((number, 2 * tokens[where][at]))
            if at:
                pairs.append((number, 2 * tokens[where][at - 1] + 1))
    examples, found = torch.tensor(pairs).T
    return TaskRows(rows, example_of_row, labels, used, (examples, found))


def _places(
    task: LabelledTask, kept: Tensor, offsets: Sequence[Sequence[tuple[int, int]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the example, text and position of each row of a task, sorted by example."""
    if task.spans is None:
        text, position = kept.nonzero().T
        return text, text, position
    found = []
    for number, span in enumerate(task.spans):
        at = _first_within(offsets[span.text], span, task.texts[span.text])
        if at is not None and kept[span.text, at]:
            found.append((number, span.text, at))
    if not found:
        raise ValueError(
            f"task {task.name!r} has no span that contains a token of the model; give longer spans"
        )
    example, text, position = torch.tensor(found).T
    return example, text, position


def _first_within(offsets: Sequence[tuple[int, int]], span: Span, text: str) -> int | None:
    """Return the first token whose characters, apart from white space, lie within the span."""
    for at, (start, end) in enumerate(offsets):
        if start >= span.end:
            return None
        written = text[start:end]
        first = start + len(written) - len(written.lstrip())
        last = start + len(written.rstrip())
        if span.start <= first < last <= span.end:
            return at
    return None


def _tokens(
    model: LanguageModel, task: LabelledTask, context: int, *, from_end: bool
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """Return the tokens of each text, and their character offsets if the task has spans."""
    tokenizer: Any = model.tokenizer
    begin = beginning(tokenizer)
    spans = task.spans is not None
    room = context - len(begin)
    tokens, offsets = [], []
    for text in task.texts:
        found = tokenizer(
            text, add_special_tokens=False, verbose=False, return_offsets_mapping=spans
        )
        ids = list(found["input_ids"])
        cut = slice(max(len(ids) - room, 0), None) if from_end else slice(room)
        tokens.append(begin + ids[cut])
        if spans:
            where = [tuple(pair) for pair in found["offset_mapping"]]
            offsets.append([(0, 0)] * len(begin) + where[cut])
    return tokens, offsets


def sharing_texts(tasks: Sequence[LabelledTask]) -> Iterator[list[LabelledTask]]:
    """Yield runs of consecutive tasks that have the same texts."""
    run: list[LabelledTask] = []
    for task in tasks:
        if run and (
            task.texts is not run[0].texts or (task.spans is None) != (run[0].spans is None)
        ):
            yield run
            run = []
        run.append(task)
    if run:
        yield run
