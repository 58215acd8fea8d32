"""Continuations of prompts by a language model whose activations at a site are edited."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saefast import checks
from saefast.lm.logits import for_contexts, logits_and_cache
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.nucleus import drawn_tokens, ends_of_text
from saefast.lm.packing import prompt_tokens
from saefast.lm.sites import capture, find_site, main_tensor, with_main_tensor
from saefast.lm.suffix import Suffix

Edit = Callable[[Tensor, Tensor], Tensor]
"""Function of activations [r, d] and the number [r] int64 of each one's sequence.

It returns replacements [r, d].
"""

_LOGITS = 1 << 25  # logits that are held at once when texts are read again


class Sample(NamedTuple):
    """New tokens after a prompt, with their activations."""

    tokens: Tensor
    """[sequences, tokens] int64"""
    activations: Tensor | None
    """[sequences, tokens, d] at the site, before they were edited: in a causal model those of the
    unedited model on the same text; None if they are not known"""


class Reading(NamedTuple):
    """Texts read by the unedited model."""

    sequences: Tensor
    """[b] int64, indices of the texts"""
    loss: Tensor
    """[b, tokens] loss of each token, in nats"""
    activations: Tensor
    """[b, tokens, d] activations at the site"""


class Opening:
    """Prompt that any number of sequences continue, each with edited activations at a site.

    Activations are edited at the last position of the prompt and at every new one. The rest of the
    prompt is read once, for all sequences. Every forward pass that generates tokens has
    `batch_size` rows, padded where fewer sequences are left, so that no sequence depends on the
    others.

    Args:
        model: model from `load_model`. One that keeps no keys and values from step to step reads
            the whole text for every token.
        site: site as in `find_site`.
        prompt: text of the prompt, or its tokens.
        batch_size: number of sequences in a forward pass.
    """

    def __init__(
        self,
        model: LanguageModel,
        site: int | str,
        prompt: str | Sequence[int],
        *,
        batch_size: int = 128,
    ) -> None:
        check_model(model)
        checks.whole("batch_size", batch_size)
        checks.at_least("batch_size", batch_size, 1)
        ids = prompt_tokens(model.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ValueError(f"prompt must hold at least one token, got {prompt!r}")
        self.model, self.site = model.model, find_site(model.model, site)
        self.prompt = torch.tensor(ids, device=model.device)
        """[length] int64 tokens of the prompt"""
        self._batch_size, self._ends = batch_size, ends_of_text(model)
        (seen,) = capture(self.model, [self.site], self.prompt[None])
        self.activations = seen[0]
        """[length, d] activations of the prompt at the site"""
        self.memory = self._keys_and_values()
        """keys and values of the prompt without its last token; None if the model has none"""
        self._rest = self._behind_site()

    @torch.no_grad()
    def next_logits(self, edit: Edit, sequences: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers [b] of sequences and the logits [b, vocabulary] of their first token.

        Args:
            edit: function that returns replacements of activations.
            sequences: number of sequences.
        """
        for numbers, count in _batches(sequences, self._batch_size, self.prompt.device):
            logits = _Run(self, numbers, _editing(edit, numbers)).advance(self._last(numbers))
            yield numbers[:count], logits[:count, -1]

    @torch.no_grad()
    def sample(
        self,
        edit: Edit,
        noise: Tensor,
        *,
        temperature: float = 0.7,
        top_p: float = 0.9,
        on_progress: Callable[[int], object] = lambda _count: None,
    ) -> Sample:
        """Continue the prompt, and return the new tokens with their activations at the site.

        Tokens are drawn from the smallest set of most probable tokens with a joint probability of
        `top_p`. Sequences with the same noise and the same edits are equal. Ends of text are never
        drawn, so that all sequences have the same length.

        Args:
            edit: function that returns replacements of activations.
            noise: [sequences, tokens] float64 in [0, 1), such as from `sampling_noise`: position in
                the distribution at which each token is drawn, with the most probable token at 0.
            temperature: divisor of the logits.
            top_p: probability above 0, at most 1.
            on_progress: function called with the number of sequences finished since its last call.

        Returns:
            Tokens [sequences, tokens] and their activations [sequences, tokens, d].
        """
        if noise.ndim != 2 or not bool(((noise >= 0) & (noise < 1)).all()):
            raise ValueError("noise must be [sequences, tokens] with values in [0, 1)")
        checks.at_least("temperature", temperature, 1e-3)
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
        device = self.prompt.device
        noise = noise.to(device, torch.float64)
        written = torch.zeros(noise.shape, dtype=torch.int64, device=device)
        activations: list[Tensor] = []
        for numbers, count in _batches(len(noise), self._batch_size, device):
            seen: list[Tensor] = []
            run, column = _Run(self, numbers, _editing(edit, numbers, seen)), self._last(numbers)
            for step in range(noise.shape[1]):
                logits = run.advance(column)[:, -1].float()
                logits[:, self._ends] = -torch.inf
                column = drawn_tokens(logits / temperature, noise[numbers, step], top_p)[:, None]
                written[numbers[:count], step] = column[:count, 0]
            if self._rest is not None:
                seen.append(run.unedited(column))
                activations.append(torch.cat(seen[1:], 1)[:count])
            on_progress(count)
        return Sample(written, torch.cat(activations) if activations else None)

    @torch.no_grad()
    def read(self, tokens: Tensor, activations: Tensor | None = None) -> Iterator[Reading]:
        """Read texts after the prompt with the unedited model.

        Args:
            tokens: [sequences, length] int64 that follow the prompt.
            activations: result of `sample` for them, so that only the layers after the site run;
                None: all layers run.

        Yields:
            Losses and activations of some of the sequences, until all were read.
        """
        checks.indices("tokens", tokens, "[sequences, length]")
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        rows = max(1, min(self._batch_size, _LOGITS // (vocabulary * (tokens.shape[1] + 1))))
        tokens = tokens.to(self.prompt.device)
        for numbers, count in _batches(len(tokens), rows, tokens.device):
            seen: list[Tensor] = []

            def keep(activations: Tensor, into: list[Tensor] = seen) -> Tensor:
                into.append(activations.clone())
                return activations

            now = tokens[numbers]
            if activations is not None and self._rest is not None:
                its = activations[numbers]
                first = self.activations[-1].expand(len(numbers), 1, -1)
                logits = self._rest.continuations(
                    torch.cat([self._last(numbers), now[:, :-1]], 1),
                    torch.cat([first, its[:, :-1]], 1),
                )
                yield Reading(numbers[:count], _losses(logits, now)[:count], its[:count])
                continue
            logits = _Run(self, numbers, keep).advance(torch.cat([self._last(numbers), now], 1))
            loss = _losses(logits[:, :-1], now)
            yield Reading(numbers[:count], loss[:count], seen[0][:count, 1:])

    def _last(self, numbers: Tensor) -> Tensor:
        """Return the last token of the prompt for each sequence, [b, 1]."""
        return self.prompt[-1].expand(len(numbers), 1)

    @torch.no_grad()
    def _keys_and_values(self) -> Any:
        if len(self.prompt) < 2:
            return None
        before = self.prompt[None, :-1]
        return logits_and_cache(self.model, before, torch.tensor([before.shape[1] - 1]))[1]

    def _behind_site(self) -> Suffix | None:
        """Return the layers after the site; None if the site is not a whole layer."""
        if self.memory is None or self.site.module not in self.site.layers:
            return None
        rest, last = Suffix(self.model, self.site), len(self.prompt) - 1
        rest.begin(self.prompt[None], torch.tensor([last]), first=last)
        return rest if rest.keeps_keys else None


def sampling_noise(seed: int, opening: int, sample: int, tokens: int) -> Tensor:
    """Return uniform numbers [tokens] float64 for one sample of the continuations of a prompt.

    Args:
        seed: seed of the evaluation.
        opening: number of the prompt.
        sample: number of the sample.
        tokens: number of new tokens.
    """
    return torch.from_numpy(np.random.default_rng([seed, opening, sample]).random(tokens))


def added(vectors: Tensor) -> Edit:
    """Return the edit that adds vector i of `vectors` [n, d] to the activations of sequence i."""

    def edit(rows: Tensor, sequences: Tensor) -> Tensor:
        return rows + vectors[sequences].to(rows)

    return edit


def unedited(rows: Tensor, _sequences: Tensor) -> Tensor:
    """Return the activations unchanged."""
    return rows


class _Run:
    """Batch of sequences that continue the prompt token by token."""

    def __init__(
        self, opening: Opening, numbers: Tensor, at_site: Callable[[Tensor], Tensor]
    ) -> None:
        self._opening, self._at_site = opening, at_site
        self._ids = opening.prompt[:-1].expand(len(numbers), -1)
        self._memory: Any = None
        if opening.memory is not None:
            self._memory = for_contexts(opening.memory, torch.zeros_like(numbers))

    def advance(self, ids: Tensor) -> Tensor:
        """Append tokens [b, t], and return the logits [b, t, vocabulary] after each."""
        before = self._ids.shape[1]
        self._ids = torch.cat([self._ids, ids], 1)
        opening = self._opening
        if self._memory is not None:
            with self._hooked(ids, 0):
                output = opening.model(input_ids=ids, past_key_values=self._memory, use_cache=True)
            self._memory = output.past_key_values
        else:
            with self._hooked(self._ids, len(opening.prompt) - 1):
                output = opening.model(input_ids=self._ids, use_cache=False)
        logits: Tensor = output.logits
        return logits if self._memory is not None else logits[:, before:]

    def unedited(self, ids: Tensor) -> Tensor:
        """Return the activations [b, 1, d] at the site of tokens [b, 1] that end the texts."""
        memory, site = self._memory, self._opening.site
        (seen,) = capture(self._opening.model, [site], ids, past_key_values=memory, use_cache=True)
        return seen

    def _hooked(self, ids: Tensor, first: int) -> Any:
        """Register `at_site` as the edit of activations from position `first` on."""
        site = self._opening.site

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            activations = main_tensor(output, site, ids)
            changed = self._at_site(activations[:, first:]).to(activations.dtype)
            return with_main_tensor(output, torch.cat([activations[:, :first], changed], 1))

        return site.module.register_forward_hook(hook)


def _editing(
    edit: Edit, numbers: Tensor, seen: list[Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """Edit activations; `seen` gets the last position's as they were before."""

    def at_site(activations: Tensor) -> Tensor:
        positions, d = activations.shape[1:]
        if seen is not None:
            seen.append(activations[:, -1:].clone())
        rows = edit(activations.reshape(-1, d), numbers.repeat_interleave(positions))
        return rows.view_as(activations)

    return at_site


def _batches(count: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """Yield the numbers [size] of the sequences of each batch, and how many are not padding."""
    for first in range(0, count, size):
        numbers = torch.arange(first, first + size, device=device).clamp(max=count - 1)
        yield numbers, min(size, count - first)


def _losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the loss [b, length] of each token in nats, from logits [b, length, vocabulary]."""
    logits = logits.float()
    return logits.logsumexp(2) - logits.gather(2, tokens[:, :, None])[:, :, 0]
