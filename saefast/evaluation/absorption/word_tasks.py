"""Words of one token each, their classes, and the prompt that asks a model for a word's class."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.order import permutation
from saefast.lm.packing import prompt_tokens

FIRST_LETTER = "first letter"

_TEMPLATES = {FIRST_LETTER: "{word} has the first letter: {label}"}
_TEMPLATE = "{word} is of the kind: {label}"


@dataclass(frozen=True)
class Words:
    """Words of a task, of one token each."""

    words: tuple[str, ...]
    """texts of the words, with their leading space"""
    tokens: Tensor
    """[n] int64 token of each word"""
    labels: Tensor
    """[n] int64 position of each word's class in `classes`, -1 for none"""
    classes: tuple[str, ...]
    left_out: int = 0
    """number of words that are not one token"""

    def families(self) -> Tensor:
        """Return one number for all words that differ only in case and space, [n] int64."""
        first: dict[str, int] = {}
        folded = [first.setdefault(word.strip().casefold(), len(first)) for word in self.words]
        return torch.tensor(folded, dtype=torch.int64)

    def chosen(self, places: Tensor) -> "Words":
        """Return the words at `places` [n] int64."""
        words = tuple(self.words[place] for place in places.tolist())
        return Words(words, self.tokens[places], self.labels[places], self.classes, self.left_out)


def words_of(task: str | Mapping[str, str | None], tokenizer: Any) -> Words:
    """Return the words of a task.

    Args:
        task: "first letter" for all tokens of the vocabulary that consist of ASCII letters, with
            one leading space or none, by their first letter; or {word: class}, with None for a word
            without a class.
        tokenizer: tokenizer of the model.
    """
    if isinstance(task, Mapping):
        return _given_words(task, tokenizer)
    if not isinstance(task, str):
        raise TypeError(
            f"task must be {FIRST_LETTER!r} or a dict {{word: class}}, got {type(task).__name__}"
        )
    checks.one_of("task", task, (FIRST_LETTER,))
    return _first_letters(tokenizer)


def _first_letters(tokenizer: Any) -> Words:
    special = set(tokenizer.all_special_ids)
    found = {}
    for token in sorted(tokenizer.get_vocab().values()):
        word = tokenizer.decode([token])
        letters = word.removeprefix(" ")
        if token not in special and letters.isascii() and letters.isalpha():
            found[token] = word
    labels = [string.ascii_lowercase.index(word.strip()[0].lower()) for word in found.values()]
    return Words(
        tuple(found.values()),
        torch.tensor(list(found), dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int64),
        tuple(string.ascii_lowercase),
    )


def _given_words(task: Mapping[str, str | None], tokenizer: Any) -> Words:
    classes = tuple(sorted({label for label in task.values() if label is not None}))
    words, tokens, labels = [], [], []
    for word, label in task.items():
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            words.append(word)
            tokens.append(ids[0])
            labels.append(-1 if label is None else classes.index(label))
    if not classes or not words:
        raise ValueError(
            f"task must hold words that are one token each, and classes for them, got "
            f"{len(task)} words, of which {len(words)} are one token; a leading space can help"
        )
    return Words(
        tuple(words),
        torch.tensor(tokens, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int64),
        classes,
        len(task) - len(words),
    )


def prefix_of(
    words: Words, task: object, tokenizer: Any, *, examples: int, template: str | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the text before every word, and the words used in it as examples.

    Args:
        words: words of the task.
        task: task, as in `words_of`.
        tokenizer: tokenizer of the model.
        examples: number of solved examples in the text, of different classes as far as possible.
        template: template of an example, with {word} and {label}; None: the task's default.
        seed: seed of the choice of examples.

    Returns:
        [length] int64 tokens, and [used] int64 indices of the examples among the words.
    """
    if template is None:
        template = _TEMPLATES.get(str(task), _TEMPLATE)
    if template.count("{word}") != 1 or template.count("{label}") != 1:
        raise ValueError(f"template must hold {{word}} and {{label}} once each, got {template!r}")
    order = permutation(len(words.words), seed, 0)
    order = order[words.labels.numpy()[order] >= 0]
    used: list[int] = []
    waiting = [int(place) for place in order]
    while waiting and len(used) < examples:
        seen: set[int] = set()
        later: list[int] = []
        for place in waiting:
            label = int(words.labels[place])
            fresh = label not in seen and len(used) < examples
            (used if fresh else later).append(place)
            seen.add(label)
        waiting = later
    lines = [
        template.replace("{word}", words.words[place]).replace(
            "{label}", words.classes[int(words.labels[place])]
        )
        for place in used
    ]
    text = "\n".join([*lines, template.partition("{word}")[0]])
    ids = prompt_tokens(tokenizer, text)
    bos = tokenizer.bos_token_id
    if not ids:
        ids = [0 if bos is None else bos]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(used, dtype=torch.int64)
