"""Outcomes of steering: measures of whether texts show the steered latent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.lm.generation import Opening
from saefast.sae import SAE, code_of

Rule = Callable[[Tensor], Tensor]
"""Executable explanation: takes tokens [n, length], returns bool [n, length]"""
Embedding = Callable[[Sequence[str]], Tensor]
"""Function that returns vectors [n, width] of texts"""
SELF = "self"
"""Name of the outcome that is defined for every latent"""


class Member(NamedTuple):
    """Direction of one latent."""

    sae: SAE
    """SAE of the latent"""
    latent: int
    """number of the latent"""
    sign: int = 1
    """sign of the values with which it fires; -1 for a match in the opposite direction"""


class Rater(Protocol):
    """Judge of texts; `saefast.evaluation.TextRater` builds one from a judge of explanations."""

    @property
    def name(self) -> str:
        """Name of the judge."""

    def rate(
        self, explanations: Sequence[str], texts: Sequence[str]
    ) -> Sequence[float] | Tensor | NDArray[np.float64]:
        """Rate how well explanations fit texts.

        Args:
            explanations: [n] explanation for each text.
            texts: [n] texts; those to compare are adjacent.

        Returns:
            Probability [n] that each explanation fits its text, or NaN.
        """


class Continuations:
    """Texts that continue one prompt; the first is unsteered.

    Args:
        opening: prompt.
        tokens: [n, length] int64 new tokens.
        tokenizer: tokenizer of the model.
        activations: [n, length, d] activations of the new tokens, if known from `Opening.sample`.
    """

    def __init__(
        self,
        opening: Opening,
        tokens: Tensor,
        tokenizer: Any,
        activations: Tensor | None = None,
    ) -> None:
        readings = list(opening.read(tokens, activations))
        self.tokens = tokens
        self.loss = torch.cat([reading.loss for reading in readings]).double().mean(1).cpu()
        """[n] float64 mean loss of a new token under the unmodified model, in nats"""
        self.activations = torch.cat([reading.activations for reading in readings])
        """[n, length, d] activations of the new tokens in the unmodified model"""
        self._prompt, self._tokenizer = opening.prompt, tokenizer

    @cached_property
    def whole(self) -> Tensor:
        """Tokens of the prompt and the text, [n, prompt + length] int64 on the CPU."""
        prompt = self._prompt.expand(len(self.tokens), -1)
        return torch.cat([prompt, self.tokens], 1).cpu()

    @cached_property
    def texts(self) -> list[str]:
        """New tokens as text, [n]."""
        return [str(self._tokenizer.decode(ids)) for ids in self.tokens.tolist()]

    @property
    def distinct_bigrams(self) -> Tensor:
        """Number of distinct pairs of adjacent tokens, as a share of all pairs, [n] float64."""
        pairs = [list(pairwise(ids)) for ids in self.tokens.tolist()]
        return torch.tensor([len(set(each)) / max(len(each), 1) for each in pairs]).double()


class Outcome(Protocol):
    """Measure of whether a text shows a latent."""

    name: str
    known: Tensor
    """[items] bool, the latents for which it is defined"""

    def compare(self, texts: Continuations, text: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Compare texts with the unsteered one.

        Args:
            texts: continuations of a prompt.
            text: [p] int64 indices of texts.
            item: [p] int64 index of the latent to look for in each; the outcome must be defined
                for it.

        Returns:
            Values [p] float64, and gains [p] float64 over the value of the unsteered text.
        """


class _Valued(ABC):
    """Outcome with a value for every single text."""

    def compare(self, texts: Continuations, text: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Compare texts with the unsteered one, see `Outcome`."""
        value = self.value(texts, text, item)
        items, of_item = torch.unique(item, return_inverse=True)
        return value, value - self.value(texts, torch.zeros_like(items), items)[of_item]

    @abstractmethod
    def value(self, texts: Continuations, text: Tensor, item: Tensor) -> Tensor:
        """Return the value of each text for its latent, [p] float64."""


class RuleShare(_Valued):
    """Share of the new tokens on which an explanation holds.

    Args:
        rules: rule of each item, or None.
    """

    name = "rule"

    def __init__(self, rules: Sequence[Rule | None]) -> None:
        self._rules = rules
        self.known = torch.tensor([rule is not None for rule in rules], dtype=torch.bool)

    def value(self, texts: Continuations, text: Tensor, item: Tensor) -> Tensor:
        """Return the share [p] float64, see `_Valued`."""
        values = torch.zeros(len(item), dtype=torch.float64)
        for one in torch.unique(item).tolist():
            rule, mine = self._rules[one], item == one
            assert rule is not None
            ids = texts.whole[text[mine]]
            holds = rule(ids)
            is_tensor = isinstance(holds, Tensor)
            if not is_tensor or holds.shape != ids.shape or holds.dtype != torch.bool:
                got = f"{tuple(holds.shape)} of {holds.dtype}" if is_tensor else type(holds)
                raise ValueError(
                    f"rules must return a bool tensor {tuple(ids.shape)}, the shape of the tokens, "
                    f"got {got}"
                )
            new = holds[:, -texts.tokens.shape[1] :]
            values[mine] = new.double().mean(1).cpu()
        return values


class Firing(_Valued):
    """Share of the new tokens on which latents fire when the unmodified model reads the text.

    Args:
        name: name of the outcome.
        members: latents of each item, whose shares are averaged.
    """

    def __init__(self, name: str, members: Sequence[Sequence[Member]]) -> None:
        self.name, self._members = name, members
        self.known = torch.tensor([bool(each) for each in members], dtype=torch.bool)

    def value(self, texts: Continuations, text: Tensor, item: Tensor) -> Tensor:
        """Return the share [p] float64, see `_Valued`."""
        values = torch.zeros(len(item), dtype=torch.float64)
        looked_at: dict[int, tuple[SAE, list[tuple[int, int, int]]]] = {}
        for place, one in enumerate(item.tolist()):
            for sae, latent, sign in self._members[one]:
                looked_at.setdefault(id(sae), (sae, []))[1].append((place, latent, sign))
        for sae, found in looked_at.values():
            place, latent, sign = torch.tensor(found).T
            wanted, of_text = torch.unique(text[place], return_inverse=True)
            activations = texts.activations[wanted]
            values.index_add_(0, place, _shares(sae, activations, of_text, latent, sign))
        return values / torch.tensor([len(self._members[one]) for one in item.tolist()])


class Closeness(_Valued):
    """Cosine of the vectors of a text and of an explanation.

    Args:
        embedding: callable that returns vectors.
        explanations: explanation of each item, or None.
    """

    name = "embedding"

    def __init__(self, embedding: Embedding, explanations: Sequence[str | None]) -> None:
        self._embedding = embedding
        self.known = torch.tensor([bool(each) for each in explanations], dtype=torch.bool)
        self._vectors = self._unit([each or "" for each in explanations])
        self._seen: tuple[Continuations, Tensor] | None = None

    def value(self, texts: Continuations, text: Tensor, item: Tensor) -> Tensor:
        """Return the cosine [p] float64, see `_Valued`."""
        if self._seen is None or self._seen[0] is not texts:
            self._seen = texts, self._unit(texts.texts)
        return (self._seen[1][text] * self._vectors[item]).sum(1)

    def _unit(self, texts: Sequence[str]) -> Tensor:
        vectors = torch.as_tensor(self._embedding(texts)).double().cpu()
        unit: Tensor = torch.nn.functional.normalize(vectors, dim=1)
        return unit


class Preference:
    """Preference of a judge, in both orders, for a text over the unsteered one.

    The value is 1 if by both answers the explanation fits the text better than the unsteered one,
    else 0; the gain is -1 if it fits the unsteered one better by both.

    Args:
        judge: rater of texts.
        explanations: explanation of each item, or None.
    """

    name = "judge"

    def __init__(self, judge: Rater, explanations: Sequence[str | None]) -> None:
        self.judge, self._explanations = judge, explanations
        self.known = torch.tensor([bool(each) for each in explanations], dtype=torch.bool)
        self.asked = self.unread = 0
        """numbers of ratings requested, and of those that were NaN"""

    def compare(self, texts: Continuations, text: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Compare texts with the unsteered one, see `Outcome`."""
        pairs = [(texts.texts[one], texts.texts[0]) for one in text.tolist()]
        words = [self._explanations[one] or "" for one in item.tolist()]
        steered, plain = self._rated(words, pairs)
        plain_first, steered_second = self._rated(words, [pair[::-1] for pair in pairs])
        for_it = (steered > plain) & (steered_second > plain_first)
        against_it = (steered < plain) & (steered_second < plain_first)
        gain = for_it.double() - against_it.double()
        return gain.clamp(min=0), gain

    def _rated(self, words: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Return the ratings of both texts of each pair, [2, p] float64."""
        texts = [text for pair in pairs for text in pair]
        ratings = self.judge.rate([each for each in words for _ in range(2)], texts)
        found = torch.as_tensor(ratings, dtype=torch.float64).cpu()
        if found.shape != (len(texts),):
            raise ValueError(
                f"judge must rate each of {len(texts)} texts, got ratings of shape "
                f"{tuple(found.shape)}"
            )
        self.asked += len(texts)
        self.unread += int(found.isnan().sum())
        return found.view(-1, 2).T


def chosen_outcomes(
    members: Sequence[Member],
    *,
    rules: Sequence[Rule | None],
    explanations: Sequence[str | None],
    partners: Sequence[Sequence[Member]],
    embedding: Embedding | None,
    judge: Rater | None,
) -> Mapping[str, Outcome]:
    """Return by name the outcomes that are defined for any item, the most informative first.

    Args:
        members: latent of each item.
        rules: executable explanation of each item.
        explanations: explanation of each item in words.
        partners: matches of each item in other SAEs.
        embedding: callable that returns vectors of texts.
        judge: rater of texts.
    """
    found: list[Outcome] = [RuleShare(rules), Firing("other seed", partners)]
    if judge is not None:
        found.append(Preference(judge, explanations))
    found.append(Firing(SELF, [[member] for member in members]))
    if embedding is not None and any(explanations):
        found.append(Closeness(embedding, explanations))
    return {outcome.name: outcome for outcome in found if bool(outcome.known.any())}


def _shares(sae: SAE, activations: Tensor, text: Tensor, latent: Tensor, sign: Tensor) -> Tensor:
    """Return the share of each text's positions [t, length, d] where its latent fires, [p]."""
    count, length, d = activations.shape
    code = code_of(sae, activations.reshape(-1, d))
    indices = code.indices.cpu().view(count, length, -1)
    values = code.values.detach().cpu().view(count, length, -1)
    shares = [
        ((its_sign * values[its_text] > 0) & (indices[its_text] == its)).any(1).double().mean()
        for its_text, its, its_sign in zip(
            text.tolist(), latent.tolist(), sign.tolist(), strict=True
        )
    ]
    return torch.stack(shares)
