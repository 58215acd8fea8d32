"""Interchanges at the entity's last token: their effect on activations and on answers."""

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
"""Function from indices of base and source prompts, [n] each, and activations h [n, d] of the base
to the activations [n, d] that replace them"""


class Swap:
    """Interchange of latents of one SAE between prompts."""

    def __init__(self, sae: SAE, rows: Tensor) -> None:
        self.sae = sae
        with torch.no_grad():
            self.rows = rows.to(sae.W_dec.device, sae.W_dec.dtype)
            self.code = code_of(sae, self.rows)

    def of(self, prompts: Tensor) -> SparseCode:
        """Return the codes of given prompts."""
        chosen = prompts.to(self.code.values.device)
        return SparseCode(self.code.values[chosen], self.code.indices[chosen])

    def joint(self, base: Tensor, source: Tensor) -> SparseCode:
        """Return the code that interchanges all latents: minus the base's code, plus the source's.

        A latent that is active in both occurs twice in its row [n, 2 width].
        """
        ours, theirs = self.of(base), self.of(source)
        return SparseCode(
            torch.cat([-ours.values, theirs.values], 1),
            torch.cat([ours.indices, theirs.indices], 1),
        )

    def decode(self, code: SparseCode, base: Tensor) -> Tensor:
        """Return reconstructions [n, d] at the scale of the base's activations."""
        return self.sae.decode(code, self.rows[base.to(self.rows.device)])

    def added(self, base: Tensor, source: Tensor, weights: Tensor) -> Tensor:
        """Return the change of h [n, d] by an interchange with a weight [m] for each latent."""
        joint = self.joint(base, source)
        values = joint.values * weights.to(joint.values)[joint.indices]
        nothing = SparseCode(torch.zeros_like(joint.values), joint.indices)
        return self.decode(SparseCode(values, joint.indices), base) - self.decode(nothing, base)

    def change(self, mask: Tensor, *, with_error: bool) -> Change:
        """Return the change of latents in a mask [m], with or without the error of the base."""

        def change(base: Tensor, source: Tensor, h: Tensor) -> Tensor:
            added = self.added(base, source, mask)
            if with_error:
                return h + added.to(h)
            return (self.decode(self.of(base), base) + added).to(h)

        return change


class Context(NamedTuple):
    """Prompts run up to the site, ready for changed activations."""

    activations: Tensor
    """[prompts, length, d] activations at the site"""
    place: Tensor
    """[prompts] position of the entity's last token"""
    columns: Tensor
    """[prompts] index of the prompt's last position among the positions of the logits"""
    logits: Tensor
    """[prompts, vocabulary] logits after the unmodified prompts"""

    @property
    def h(self) -> Tensor:
        """Activations at the entity's last token, [prompts, d]."""
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
        """Return the activations at the entities' last tokens, [prompts, d]."""
        rows: list[Tensor] = [torch.empty(0)] * len(self.questions)
        lengths = [len(question.prompt.ids) for question in self.questions]
        for batch in batches(lengths, self._batch_size):
            ids = padded([self.questions[number].prompt.ids for number in batch])
            (seen,) = capture(self._model.model, [self._site], ids)
            for row, number in enumerate(batch):
                rows[number] = seen[row, self.questions[number].prompt.position].float()
        return torch.stack(rows)

    def whole(self, _base: Tensor, source: Tensor, h: Tensor) -> Tensor:
        """Replace all of h by the source's, as a `Change`."""
        return self.rows[source].to(h)

    def begin(self, prompts: Sequence[int]) -> Context:
        """Run unmodified prompts to the site and on to the logits."""
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
        """Return the logits [n, vocabulary] of contexts [n] with given activations h [n, d]."""
        here = torch.arange(len(contexts))
        put = context.activations[contexts].index_put((here, context.place[contexts]), h)
        return self._rest.logits(put, contexts)[here, context.columns[contexts]]

    def gradients(self, pairs: Sequence[Pair], bar: ProgressBar) -> Tensor:
        """Return the gradients [pairs, d] of logit(source's value) - logit(base's value) by h."""
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
            [changes, pairs] bool, whether the wanted answer was given; and [pairs] bool, whether
            the unmodified model gives the base's value, without which a pair is uninformative.
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
        """Yield the change, index among the logits, row of `numbers` and logits of each result."""
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
        """Return the number of changed prompts with as many tokens to run as a whole batch.

        Tokens before the entity are not run again, if the model's cache keeps their keys.
        """
        if not self._rest.keeps_keys:
            return self._batch_size
        length = context.activations.shape[1]
        return self._batch_size * length // (length - int(context.place.min()))

    def _hit(self, pair: Pair, logits: Tensor) -> bool:
        base, source = self.questions[pair.base], self.questions[pair.source]
        return _right(base, source if pair.cause else base, logits)

    def _contexts(self, pairs: Sequence[Pair]) -> Iterator[tuple[Context, Tensor, list[int]]]:
        """Yield batches of base prompts, with the context [n] and index of each of their pairs.

        The prompts of a batch have one length, with the entity at one position. Tokens before it
        are run once for each prompt, and no unused token is run or logit computed.
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
    """Find the distinct activations, since several changes often give the same.

    Args:
        rows: [n, d] activations.
        contexts: [n] context of each row; equal rows of different contexts count as different.

    Returns:
        [u, d] distinct rows; [u] first index of each in `rows`; [n] index of the distinct row
        that each of `rows` equals.
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
    """Return whether the most likely answer to one question is the value of the other's entity."""
    best = int(asked.answers.best(logits[None])[0])
    return bool(wanted.right[best])
