"""Classes of Python's lexemes, also in fragments of code, independent of the Python version."""

import re
from bisect import bisect_right
from collections.abc import Sequence

CLASSES = ("comment", "string", "number", "keyword", "definition", "call", "operator")
"""Classes of tokens of code; a name that is neither defined nor called has no class"""

_KEYWORDS = frozenset(
    (
        *("False", "None", "True", "and", "as", "assert", "async", "await", "break", "class"),
        *("continue", "def", "del", "elif", "else", "except", "finally", "for", "from", "global"),
        *("if", "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise"),
        *("return", "try", "while", "with", "yield"),
    )
)
_PREFIX = r"(?:[rbuf]|rb|br|fr|rf)?"
_LEXEME = re.compile(
    rf"""(?P<comment>\#[^\n]*)
    |(?P<string>{_PREFIX}\"\"\"(?:[^\\]|\\.)*?(?:\"\"\"|\Z)
        |{_PREFIX}'''(?:[^\\]|\\.)*?(?:'''|\Z)
        |{_PREFIX}\"(?:[^\\\n\"]|\\.)*(?:\"|$)
        |{_PREFIX}'(?:[^\\\n']|\\.)*(?:'|$))
    |(?P<number>(?:0[xob][0-9a-f_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d+)?)j?)
    |(?P<name>[^\W\d]\w*)
    |(?P<operator>[-+*/%@&|^~<>=!:;,.()\[\]{{}}]+)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_CODE_LINE = re.compile(
    r"^\s*(?:(?:def|class)\s+\w+.*[:(]|(?:from\s+\S+\s+)?import\s+\S+|(?:if|elif|for|while|with|try"
    r"|else|except|finally)\b.*:|return\b.*|raise\s+\w+.*|[\w.\[\]'\",\s]+\s[-+|]?=\s\S.*"
    r"|[\w.]+\(.*\)?|[\])}]+,?|@\w[\w.]*.*|\#.*)\s*$"
)
_CODE_SHARE = 0.4


def is_code(text: str) -> bool:
    """Return whether at least two fifths of a text's lines look like statements of Python."""
    lines = [line for line in text.split("\n")[1:-1] if line.strip()]  # the outer lines may be cut
    return len(lines) >= 3 and sum(map(bool, map(_CODE_LINE.match, lines))) >= (
        _CODE_SHARE * len(lines)
    )


def classes_of(pieces: Sequence[str]) -> list[int]:
    """Return the class of each piece of a text of code, by its first letter; -1 for none.

    A string without a closing quotation mark ends with the line, or with the text if it is
    triple-quoted.

    Args:
        pieces: consecutive parts of the text, such as its tokens.
    """
    text = "".join(pieces)
    begins, found = [], []
    for lexeme, kind in _lexemes(text):
        begins.append(lexeme)
        found.append(kind)
    classes = []
    place = 0
    for piece in pieces:
        letter = place + len(piece) - len(piece.lstrip())
        place += len(piece)
        number = bisect_right(begins, (letter, len(text))) - 1
        inside = number >= 0 and letter < begins[number][1] and letter < place
        classes.append(found[number] if inside else -1)
    return classes


def _lexemes(text: str) -> list[tuple[tuple[int, int], int]]:
    """Return the spans of the lexemes with their classes."""
    lexemes = []
    before = ""
    for match in _LEXEME.finditer(text):
        kind, word = str(match.lastgroup), match.group()
        if kind == "name":
            if word in _KEYWORDS:
                kind = "keyword"
            elif before in ("def", "class"):
                kind = "definition"
            elif text[match.end() : match.end() + 1] == "(":
                kind = "call"
        before = word
        lexemes.append((match.span(), CLASSES.index(kind) if kind in CLASSES else -1))
    return lexemes
