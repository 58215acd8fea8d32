"""Families of predicates on the tokens of a text, with their wording.

A family of predicates depends on one attribute of a row, such as its token or its window. The
predicates that hold are therefore stored for each value of the attribute and not for each row.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from saefast.evaluation.explaining.contexts import Integers, TokenText
from saefast.evaluation.explaining.syntax import CLASSES, classes_of, is_code

KINDS = ("surface", "context", "syntax", "topic")
"""Kinds of explanations, the simplest first"""

UNCLEAR = "unclear"
"""Kind of latents that no rule explains"""

_AFFIX = range(2, 5)  # letters
_SHAPES = (
    "a number",
    "punctuation",
    "a token that begins with a capital letter",
    "a token in capital letters",
    "white space",
    "a piece inside a word",
)
_PLACES = ("a token that occurred before in the same passage", "the first token of a text")
_CLASS_WORDS = {
    "comment": "a comment in code",
    "string": "a string in code",
    "number": "a number in code",
    "keyword": "a keyword of code",
    "definition": "the name of a function or class where it is defined",
    "call": "the name of a function where it is called",
    "operator": "an operator or bracket in code",
}
_GENRES = ("code", "prose")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Family:
    """The predicates of one family on one text."""

    attribute: Integers
    """[n] value of each row"""
    values: int
    """number of values"""
    value: Integers
    """[pairs] values, paired with the predicates that hold for them, sorted by predicate"""
    predicate: Integers
    """[pairs] indices of predicates, ascending"""
    arguments: tuple[str, ...]
    """argument of each predicate"""


class FamilyKind(NamedTuple):
    """Construction and wording of a family."""

    kind: str
    """one of `KINDS`"""
    build: Callable[[TokenText], Family]
    words: Callable[[tuple[str, ...]], str]
    union: bool = False
    """whether a rule may join several of its predicates"""
    fewest: int = 1
    """minimum number of values for which a considered predicate holds"""
    largest: float = 1.0
    """largest share of the rows on which a considered predicate holds"""


def _tokens(text: TokenText) -> Family:
    names, folded = _folded(text.strings)
    return _identity(folded[text.token], names)


def _previous(text: TokenText) -> Family:
    names, folded = _folded(text.strings)
    return _identity(_shifted(text, folded[text.token], len(names)), names)


def _pairs(text: TokenText) -> Family:
    names, folded = _folded(text.strings)
    here = folded[text.token]
    before = _shifted(text, here, len(names))
    distinct, attribute = np.unique(before * len(names) + here, return_inverse=True)
    known = np.flatnonzero(distinct < len(names) ** 2)
    arguments = [
        f"{names[pair // len(names)]}\0{names[pair % len(names)]}" for pair in distinct[known]
    ]
    return Family(attribute, len(distinct), known, np.arange(len(known)), tuple(arguments))


def _affixes(text: TokenText) -> Family:
    names, folded = _folded(text.strings)
    holders: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if not name.isalpha():
            continue
        found = set()
        for length in _AFFIX:
            if length < len(name):
                found |= {f"{name[:length]}*", f"*{name[-length:]}"}
                found |= {f"*{name[i : i + length]}*" for i in range(1, len(name) - length)}
        for affix in found:
            holders.setdefault(affix, []).append(number)
    return _listed(folded[text.token], len(names), holders.items())


def _shapes(text: TokenText) -> Family:
    bits = np.array([_shape(string) for string in text.strings])
    attribute = bits[text.token]
    begins = np.array([string[:1].isalnum() for string in text.strings])[text.token]
    ends = np.array([string[-1:].isalnum() for string in text.strings])[text.token]
    inside = begins & ~text.after_gap
    inside[1:] &= ends[:-1]
    inside[:1] = False
    attribute = attribute | inside.astype(np.int64) << (len(_SHAPES) - 1)
    return _flags(attribute, _SHAPES)


def _places(text: TokenText) -> Family:
    names, folded = _folded(text.strings)
    key = text.window * len(names) + folded[text.token]
    _, first = np.unique(key, return_index=True)
    repeated = np.ones(text.rows, dtype=np.int64)
    repeated[first] = 0
    return _flags(repeated | (text.offset == 0).astype(np.int64) << 1, _PLACES)


def _classes(text: TokenText) -> Family:
    attribute = np.full(text.rows, len(CLASSES))
    starts = text.context_starts.tolist()
    for first, end in pairwise(starts):
        pieces = text.pieces(first, end)
        if is_code("".join(pieces)):
            found = np.array(classes_of(pieces))
            attribute[first:end] = np.where(found < 0, len(CLASSES), found)
    return _identity(attribute, CLASSES)


def _topics(text: TokenText) -> Family:
    starts = text.window_starts.tolist()
    holders: dict[str, list[int]] = {}
    for number, (first, end) in enumerate(pairwise(starts)):
        for word in set(_WORD.findall("".join(text.pieces(first, end)).casefold())):
            holders.setdefault(word, []).append(number)
    return _listed(text.window, len(starts) - 1, holders.items())


def _genres(text: TokenText) -> Family:
    starts = text.context_starts.tolist()
    spans = pairwise(starts)
    prose = [not is_code("".join(text.pieces(first, end))) for first, end in spans]
    return _identity(np.array(prose, dtype=np.int64)[text.context], _GENRES)


def _token_words(arguments: tuple[str, ...]) -> str:
    return f"the token {_any_of(arguments)}"


def _previous_words(arguments: tuple[str, ...]) -> str:
    return f"the token after {_any_of(arguments)}"


def _pair_words(arguments: tuple[str, ...]) -> str:
    before, here = arguments[0].split("\0")
    return f"the token {_quoted(here)} after {_quoted(before)}"


def _affix_words(arguments: tuple[str, ...]) -> str:
    affix = arguments[0]
    verb = {(True, True): "contains", (True, False): "ends with", (False, True): "begins with"}
    return f"a token that {verb[affix[0] == '*', affix[-1] == '*']} {_quoted(affix.strip('*'))}"


def _topic_words(arguments: tuple[str, ...]) -> str:
    return f"text that mentions {_any_of(arguments)}"


FAMILIES = {
    "token": FamilyKind("surface", _tokens, _token_words, union=True),
    "affix": FamilyKind("surface", _affixes, _affix_words, fewest=2),
    "shape": FamilyKind("surface", _shapes, lambda arguments: arguments[0]),
    "previous": FamilyKind("context", _previous, _previous_words, union=True),
    "pair": FamilyKind("context", _pairs, _pair_words),
    "place": FamilyKind("context", _places, lambda arguments: arguments[0]),
    "class": FamilyKind("syntax", _classes, lambda arguments: _CLASS_WORDS[arguments[0]]),
    "topic": FamilyKind("topic", _topics, _topic_words, union=True, fewest=3, largest=0.25),
    "genre": FamilyKind("topic", _genres, lambda arguments: arguments[0]),
}
"""Families by name, the simplest first"""


def fold(string: str) -> str:
    """Return a token's text without case and outer blanks; white space stays as it is."""
    return string.strip().casefold() or string


def _folded(strings: Sequence[str]) -> tuple[list[str], Integers]:
    """Return the distinct folded texts, and the index of each text's own."""
    names: dict[str, int] = {}
    numbers = [names.setdefault(fold(string), len(names)) for string in strings]
    return list(names), np.array(numbers, dtype=np.int64)


def _shifted(text: TokenText, values: Integers, unknown: int) -> Integers:
    """Return the value of the row before each row, `unknown` where there is none."""
    before = np.concatenate([[unknown], values[:-1]])
    before[text.after_gap] = unknown
    return before


def _identity(attribute: Integers, names: Sequence[str]) -> Family:
    """Build a family with a predicate for each named value; further values have none."""
    numbers = np.arange(len(names))
    values = max(len(names), int(attribute.max()) + 1)
    return Family(attribute, values, numbers, numbers, tuple(names))


def _listed(attribute: Integers, values: int, holders: Iterable[tuple[str, list[int]]]) -> Family:
    """Build a family from predicates by name with the values for which each holds."""
    each = sorted(holders)
    value = [number for _, numbers in each for number in numbers]
    counts = [len(numbers) for _, numbers in each]
    return Family(
        attribute,
        values,
        np.array(value, dtype=np.int64),
        np.repeat(np.arange(len(each)), counts),
        tuple(name for name, _ in each),
    )


def _flags(attribute: Integers, names: Sequence[str]) -> Family:
    """Build a family of predicates that hold where their bit of the value is set."""
    every = np.arange(1 << len(names))
    holders = ((name, np.flatnonzero(every >> bit & 1).tolist()) for bit, name in enumerate(names))
    return _listed(attribute, len(every), holders)


def _shape(string: str) -> int:
    """Return the bits of the `_SHAPES` that depend on the token alone."""
    bare = string.strip()
    held = (
        any(letter.isdigit() for letter in bare) and not any(map(str.isalpha, bare)),
        bool(bare) and not any(letter.isalnum() for letter in bare),
        bare[:1].isupper(),
        len(bare) > 1 and bare.isupper(),
        not bare,
    )
    return sum(1 << bit for bit, holds in enumerate(held) if holds)


def _any_of(arguments: Sequence[str]) -> str:
    quoted = [_quoted(argument) for argument in arguments]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _quoted(argument: str) -> str:
    visible = argument.encode("unicode_escape").decode() if not argument.isprintable() else argument
    return f'"{visible}"'
