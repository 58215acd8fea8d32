"""Tasks on the tokens of Python code, whose classes are exact: keywords, strings, calls ..."""

import ast
import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from saefast.evaluation.probing.tasks.labelled import FEWEST, LabelledTask, Span, drawn
from saefast.lm import builtin_corpus

CLASSES = (
    "keyword",
    "string",
    "comment",
    "number",
    "operator",
    "definition",
    "call",
    "import",
    "name",
    "docstring",
)
"""Classes of tokens, which exclude each other; "name" holds identifiers that are in no other"""

_WINDOW = 1200
"""Approximate number of characters of a window, which begins with a function or a class"""
_WINDOWS = 120
_EACH = 2  # windows of one module
_KINDS = {
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
    tokenize.NUMBER: "number",
    tokenize.OP: "operator",
}


class _Token(NamedTuple):
    start: int
    end: int
    kind: str


def code_tasks(
    names: Sequence[str] | None, limit: int | None, examples: int, seed: int
) -> list[LabelledTask]:
    """Build tasks on code, see `saefast.evaluation.probing.tasks.labelled_tasks`.

    The code is the held-out part of the built-in corpus.

    Returns:
        The tasks, without rows.
    """
    names = list(CLASSES if names is None else names)
    for name in names:
        if name not in CLASSES:
            raise ValueError(f"names must be of {', '.join(CLASSES)}, got {name!r}")
    texts: list[str] = []
    documents: list[int] = []
    found: dict[str, list[Span]] = defaultdict(list)
    for document, source in enumerate(_modules()):
        if len(texts) >= _WINDOWS:
            break
        try:
            tokens, starts = _tokens(source)
        except (SyntaxError, ValueError, tokenize.TokenError):
            continue  # a template, or incomplete because the corpus leaves out a piece
        for start in drawn(starts, _EACH, seed, "windows", document):
            end = min(start + _WINDOW, len(source))
            inside = [token for token in tokens if start <= token.start and token.end <= end]
            for token in inside:
                span = Span(len(texts), token.start - start, token.end - start)
                found[token.kind].append(span)
            texts.append(source[start:end])
            documents.append(document)
    return [_task(name, found, tuple(texts), documents, examples, seed) for name in names[:limit]]


def _task(
    name: str,
    found: dict[str, list[Span]],
    texts: tuple[str, ...],
    documents: Sequence[int],
    examples: int,
    seed: int,
) -> LabelledTask:
    """Draw equally many tokens of the class and of all others, the latter evenly by class."""
    others = [kind for kind in CLASSES if kind != name and found[kind]]
    each = min(examples // 2, len(found[name]))
    positive = drawn(found[name], each, seed, name)
    negative: list[Span] = []
    # Rarest class first, so that more frequent ones make up for missing tokens.
    for place, kind in enumerate(sorted(others, key=lambda kind: len(found[kind]))):
        share = -(-(each - len(negative)) // (len(others) - place))
        negative += drawn(found[kind], share, seed, name, kind)
    if min(len(positive), len(negative)) < FEWEST:
        raise ValueError(
            f"names must be classes with at least {FEWEST} tokens in the built-in code, got "
            f"{len(positive)} of {name!r}"
        )
    spans = (*positive, *negative)
    return LabelledTask(
        name=f"code {name}",
        texts=texts,
        labels=(True,) * len(positive) + (False,) * len(negative),
        spans=spans,
        documents=tuple(documents[span.text] for span in spans),
    )


def _modules() -> Iterator[str]:
    """Yield the source of each held-out module, with its pieces joined."""
    pieces: dict[str, list[str]] = defaultdict(list)
    for document in builtin_corpus(("code",)).held_out():
        pieces[document.group or ""].append(document.text)
    for its in pieces.values():
        yield "\n\n".join(its) + "\n"


def _tokens(source: str) -> tuple[list[_Token], list[int]]:
    """Return the tokens with their classes, and where functions and classes begin."""
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    tree = ast.parse(source)
    docstrings, imports = _docstrings(tree), _imports(tree)
    tokens: list[_Token] = []
    important = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    ]
    for place, token in enumerate(important[:-1]):
        kind = _kind(important, place)
        if kind == "string" and token.start in docstrings:
            kind = "docstring"
        if kind in ("call", "name") and any(a <= token.start < b for a, b in imports):
            kind = "import"
        if kind:
            start = begins[token.start[0] - 1] + token.start[1]
            tokens += _pieces(token.string, start, kind)
    starts = [
        begins[node.lineno - 1]
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.col_offset == 0
    ]
    return tokens, starts


def _kind(tokens: Sequence[tokenize.TokenInfo], place: int) -> str:
    token = tokens[place]
    if token.type in _KINDS:
        return _KINDS[token.type]
    if token.type != tokenize.NAME:
        return ""
    if keyword.iskeyword(token.string):
        return "keyword"
    before = tokens[place - 1].string if place else ""
    if before in ("def", "class"):
        return "definition"
    return "call" if tokens[place + 1].string == "(" else "name"


def _pieces(text: str, start: int, kind: str) -> Iterator[_Token]:
    """Yield the words of strings and comments; any other token as a whole."""
    if kind not in ("string", "comment", "docstring"):
        yield _Token(start, start + len(text), kind)
        return
    for found in re.finditer(r"\S+", text):
        yield _Token(start + found.start(), start + found.end(), kind)


_Place = tuple[int, int]  # line and column


def _imports(tree: ast.Module) -> list[tuple[_Place, _Place]]:
    """Return where import statements begin and end."""
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def _docstrings(tree: ast.Module) -> set[_Place]:
    """Return where docstrings begin."""
    places = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                places.add((value.lineno, value.col_offset))
    return places
