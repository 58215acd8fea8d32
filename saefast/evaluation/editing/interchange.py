"""Interchanges at the entity's last token: what an edit does to activations, and to answers."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.evaluation.editing.fact_prompts import batches, padded
from saefast.evaluation.editing.pairs import Pair, Question
from saefast.lm.model import LanguageModel
from saefast.lm.sites import Site, capture
from saefast.lm.suffix import Suffix
from saefast.progress import ProgressBar
from saefast.sae import SAE, code_of
from saefast.types import SparseCode

Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From numbers of base and source prompts [n] and activations h [n, d] of the base: the activations
[n, d] to put in their place"""


class Swap:
    """Interchange of latents of one SAE between prompts."""

    def __init__(self, sae: SAE, rows: Tensor) -> None:
        self.sae = sae
        with torch.no_grad():
            self.rows = rows.to(sae.W_dec.device, sae.W_dec.dtype)
            self.code = code_of(sae, self.rows)

    def of(self, prompts: Tensor) -> SparseCode:
        """Return the codes of some prompts."""
        chosen = prompts.to(self.code.values.device)
        return SparseCode(self.code.values[chosen], self.code.indices[chosen])

    def joint(self, base: Tensor, source: Tensor) -> SparseCode:
        """Return what an interchange of all latents adds: minus the base's code, plus the source's.

        A latent that is active in both stands twice in its row [n, 2 width].
        """
        ours, theirs = self.of(base), self.of(source)
        return SparseCode(
            torch.cat([-ours.values, theirs.values], 1),
            torch.cat([ours.indices, theirs.indices], 1),
        )

    def decode(self, code: SparseCode, base: Tensor) -> Tensor:
        """Return reconstructions [n, d] at the level of the base's activations."""
        return self.sae.decode(code, self.rows[base.to(self.rows.device)])

    def added(self, base: Tensor, source: Tensor, weights: Tensor) -> Tensor:
        """Return what an interchange adds to h [n, d], with a weight [m] for each latent."""
        joint = self.joint(base, source)
        values = joint.values * weights.to(joint.values)[joint.indices]
        nothing = SparseCode(torch.zeros_like(joint.values), joint.indices)
        return self.decode(SparseCode(values, joint.indices), base) - self.decode(nothing, base)

    def change(self, mask: Tensor, *, with_error: bool) -> Change:
        """Return the change of latents in a mask [m]; the error of the base is kept or left out."""

        def change(base: Tensor, source: Tensor, h: Tensor) -> Tensor:
            added = self.added(base, source, mask)
            if with_error:
                return h + added.to(h)
            return (self.decode(self.of(base), base) + added).to(h)

        return change


class Context(NamedTuple):
    """Prompts after the layers up to the site, ready for changed activations."""

    activations: Tensor
    """[prompts, length, d]"""
    place: Tensor
    """[prompts] where the entity's last token is"""
    columns: Tensor
    """[prompts] which of the logits' positions is the prompt's last"""
    logits: Tensor
    """[prompts, vocabulary] after the undisturbed prompts"""

    @property
    def h(self) -> Tensor:
        """Activations [prompts, d] at the entity's last token."""
        return self.activations[torch.arange(len(self.place)), self.place]


class Interchange:
    """A model with prompts whose activations at one site can be changed."""

    def __init__(
        self, model: LanguageModel, site: Site, questions: Sequence[Question], batch_size: int
    ) -> None:
        self._model, self._site, self.questions = model, site, questions
        self._batch_size = batch_size
        self._rest = Suffix(model.model, site)
        self.rows = self._capture()

    def _capture(self) -> Tensor:
        """Activations [prompts, d] at the entities' last tokens."""
        rows: list[Tensor] = [torch.empty(0)] * len(self.questions)
        lengths = [len(question.prompt.ids) for question in self.questions]
        for batch in batches(lengths, self._batch_size):
            ids = padded([self.questions[number].prompt.ids for number in batch])
            (seen,) = capture(self._model.model, [self._site], ids)
            for row, number in enumerate(batch):
                rows[number] = seen[row, self.questions[number].prompt.position].float()
        return torch.stack(rows)

    def whole(self, _base: Tensor, source: Tensor, h: Tensor) -> Tensor:
        """Change all of h into that of the source: a `Change`."""
        return self.rows[source].to(h)

    def begin(self, prompts: Sequence[int]) -> Context:
        """Run prompts to the site and on, undisturbed."""
        texts = [self.questions[number].prompt for number in prompts]
        last = torch.tensor([len(text.ids) - 1 for text in texts])
        positions = torch.unique(last)
        columns = torch.searchsorted(positions, last)
        place = torch.tensor([text.position for text in texts])
        ids = padded([text.ids for text in texts])
        activations, logits = self._rest.begin(ids, positions, first=int(place.min()))
        at_end = logits[torch.arange(len(texts)), columns]
        return Context(activations, place, columns, at_end)

    def logits(self, context: Context, contexts: Tensor, h: Tensor) -> Tensor:
        """Return the logits [n, vocabulary] of contexts [n] with other activations h [n, d]."""
        here = torch.arange(len(contexts))
        put = context.activations[contexts].index_put((here, context.place[contexts]), h)
        return self._rest.logits(put, contexts)[here, context.columns[contexts]]

    def gradients(self, pairs: Sequence[Pair], bar: ProgressBar) -> Tensor:
        """Return the derivatives [pairs, d] by h of logit(source's value) - logit(base's)."""
        found = torch.zeros(len(pairs), self.rows.shape[1])
        for context, contexts, numbers in self._contexts(pairs):
            for some in torch.split(torch.arange(len(numbers)), self._at_once(context)):
                chosen = contexts[some]
                h = context.h[chosen].requires_grad_()
                logits = self.logits(context, chosen, h)
                its = [pairs[numbers[place]] for place in some.tolist()]
                wanted = torch.tensor([self.questions[pair.source].token for pair in its])
                given = torch.tensor([self.questions[pair.base].token for pair in its])
                row = torch.arange(len(its))
                gap = logits[row, wanted] - logits[row, given]
                (slope,) = torch.autograd.grad(gap.float().sum(), h)
                found[[numbers[place] for place in some.tolist()]] = slope.float().cpu()
            bar.update(len(numbers))
        return found

    @torch.no_grad()
    def outcomes(
        self, pairs: Sequence[Pair], changes: Sequence[Change], bar: ProgressBar
    ) -> tuple[Tensor, Tensor]:
        """Apply changes to pairs and read the answers.

        Returns:
            [changes, pairs] bool: whether the wanted answer came; [pairs] bool: whether the
            undisturbed model gives the base's value here, too, without which a pair says nothing.
        """
        hits = torch.zeros(len(changes), len(pairs), dtype=torch.bool)
        valid = torch.zeros(len(pairs), dtype=torch.bool)
        for context, contexts, numbers in self._contexts(pairs):
            before = context.logits[contexts]
            for row, number in enumerate(numbers):
                base = self.questions[pairs[number].base]
                valid[number] = _right(base, base, before[row])
                hits[:, number] = self._hit(pairs[number], before[row])
            for change, place, row, logits in self._changed(
                context, contexts, numbers, pairs, changes
            ):
                hits[change, numbers[row]] = self._hit(pairs[numbers[row]], logits[place])
            bar.update(len(numbers))
        return hits, valid

    def _changed(
        self,
        context: Context,
        contexts: Tensor,
        numbers: list[int],
        pairs: Sequence[Pair],
        changes: Sequence[Change],
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        """Yield change, place among the logits, row of `numbers` and logits of what changed."""
        h = context.h[contexts]
        base = torch.tensor([pairs[number].base for number in numbers])
        source = torch.tensor([pairs[number].source for number in numbers])
        which, where, new = [], [], []
        for number, apply in enumerate(changes):
            rows = apply(base, source, h)
            differ = (rows != h).any(1).nonzero()[:, 0]
            which.append(torch.full((len(differ),), number))
            where.append(differ.cpu())
            new.append(rows[differ])
        every, row = torch.cat(which).tolist(), torch.cat(where)
        rows, first, places = _different(torch.cat(new), contexts[row])
        owners: list[list[int]] = [[] for _ in rows]
        for place, owner in enumerate(places.tolist()):
            owners[owner].append(place)
        chosen = contexts[row[first]]
        size = self._at_once(context)
        for begin in range(0, len(rows), size):
            some = slice(begin, begin + size)
            logits = self.logits(context, chosen[some], rows[some])
            for place, owned in enumerate(owners[some]):
                for one in owned:
                    yield every[one], place, int(row[one]), logits

    def _at_once(self, context: Context) -> int:
        """How many changed prompts have as many tokens from the change on as a whole batch."""
        length = context.activations.shape[1]
        return self._batch_size * length // (length - int(context.place.min()))

    def _hit(self, pair: Pair, logits: Tensor) -> bool:
        base, source = self.questions[pair.base], self.questions[pair.source]
        return _right(base, source if pair.cause else base, logits)

    def _contexts(self, pairs: Sequence[Pair]) -> Iterator[tuple[Context, Tensor, list[int]]]:
        """Yield base prompts in batches, with context [n] and number of each of their pairs.

        The prompts of a batch are of one length, with the entity at one place: tokens before it run
        once for a prompt, and no token is run, and no logit computed, that no pair asks for.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for base in sorted({pair.base for pair in pairs}):
            asked = self.questions[base].prompt
            alike.setdefault((asked.position, len(asked.ids)), []).append(base)
        batches_of_prompts = (
            bases[first : first + self._batch_size]
            for _, bases in sorted(alike.items())
            for first in range(0, len(bases), self._batch_size)
        )
        for prompts in batches_of_prompts:
            numbers = [number for number, pair in enumerate(pairs) if pair.base in set(prompts)]
            contexts = torch.tensor([prompts.index(pairs[number].base) for number in numbers])
            yield self.begin(prompts), contexts, numbers


def _different(rows: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the activations that differ, as several changes often make the same.

    Args:
        rows: [n, d].
        contexts: [n] where each stands; equal rows of other contexts count as different.

    Returns:
        [u, d] rows that differ; [u] the first place of each in `rows`; [n] for each of `rows` which
        of them it equals.
    """
    seen: dict[tuple[int, bytes], int] = {}
    first: list[int] = []
    places = []
    for place, (row, context) in enumerate(
        zip(rows.contiguous().cpu().view(torch.uint8).numpy(), contexts.tolist(), strict=True)
    ):
        key = (context, row.tobytes())
        if key not in seen:
            seen[key] = len(seen)
            first.append(place)
        places.append(seen[key])
    places_of_first = torch.tensor(first, dtype=torch.int64)
    return rows[places_of_first], places_of_first, torch.tensor(places, dtype=torch.int64)


def _right(asked: Question, wanted: Question, logits: Tensor) -> bool:
    """Whether the likeliest answer to one question is the value of the other's entity."""
    best = int(asked.answers.best(logits[None])[0])
    return bool(wanted.right[best])
