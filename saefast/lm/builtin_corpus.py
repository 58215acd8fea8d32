"""Prose and code from every Python installation, a corpus that needs no network.

Prose is the docstrings of the standard library, the topics of `pydoc` and the licence; code is the
modules of the standard library. Its tests, which contain unusual text on purpose, and tables of
characters are left out.
"""

import ast
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from saefast import checks
from saefast.lm.corpus import Corpus, Document, Texts, as_corpus

KINDS = ("prose", "code")

_PIECE = 8192
"""Approximate number of characters of a document, so that no module fills a small harvest."""
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}

Read = Callable[[], str]


def builtin_corpus(kinds: tuple[str, ...] = KINDS) -> Corpus:
    """Return a corpus of about 2 million characters of prose and 10 million of code.

    The same version of Python gives the same documents in the same order, in which the kinds have
    equal shares while both last. Duplicates are dropped, and all documents of a module are held out
    together.

    Args:
        kinds: kinds of documents: "prose", "code" or both.

    Returns:
        Corpus with documents of about 8192 characters.
    """
    for kind in kinds:
        checks.one_of("kinds", kind, KINDS)
    if not kinds:
        raise ValueError(f"kinds must name at least one of {', '.join(KINDS)}")
    described = {"corpus": "built in", "kinds": list(kinds), "python": platform.python_version()}
    return Corpus(lambda: _documents(kinds), described)


def or_builtin(corpus: Texts | None, *, held_out: bool = False) -> Corpus:
    """Return the given corpus, or that part of the built-in one."""
    if corpus is not None:
        return as_corpus(corpus)
    return builtin_corpus().held_out() if held_out else builtin_corpus().train()


def _documents(kinds: tuple[str, ...]) -> Iterator[Document]:
    """Yield documents of alternating kinds with equal numbers of characters, while they last."""
    streams = {kind: _pieces(kind) for kind in kinds}
    given = dict.fromkeys(kinds, 0)
    seen = set()
    while streams:
        kind = min(streams, key=lambda kind: given[kind])
        document = next(streams[kind], None)
        if document is None:
            del streams[kind]
        elif (digest := hashlib.sha256(document.text.encode()).digest()) not in seen:
            seen.add(digest)
            given[kind] += len(document.text)
            yield document


def _pieces(kind: str) -> Iterator[Document]:
    """Yield the first piece of every source, then the second, and so on, to mix the sources."""
    sources = _prose() if kind == "prose" else _code()
    order = sorted(sources, key=lambda name: hashlib.sha256(f"{kind} {name}".encode()).digest())
    left: dict[str, list[str]] = {}
    for name in order:
        left[name] = _cut(sources[name]())
        if left[name]:
            yield Document(left[name].pop(0), f"{kind}: {name}", name)
    while left := {name: texts for name, texts in left.items() if texts}:
        for name, texts in left.items():
            yield Document(texts.pop(0), f"{kind}: {name}", name)


def _cut(text: str) -> list[str]:
    """Return pieces that end with a paragraph or, where that is too long, with a line."""
    pieces: list[str] = []
    begin = 0
    while len(text) - begin > _PIECE:
        end = max(text.rfind(mark, begin, begin + _PIECE) + 1 for mark in ("\n\n", "\n"))
        paragraph = text.rfind("\n\n", begin + _PIECE // 2, begin + _PIECE) + 1
        end = max(paragraph or end, begin + 1)
        pieces.append(text[begin:end].strip("\n"))
        begin = end
    pieces.append(text[begin:].strip("\n"))
    return [piece for piece in pieces if piece.strip()]


def _prose() -> dict[str, Read]:
    from pydoc_data.topics import topics

    found = {name: _docstrings(path) for name, path in _modules().items()}
    found |= {f"topic {name}": _constant(topics[name]) for name in topics}
    licence = _library() / "LICENSE.txt"
    return found | ({"licence": licence.read_text} if licence.is_file() else {})


def _code() -> dict[str, Read]:
    return {name: _source(path) for name, path in _modules().items()}


def _modules() -> dict[str, Path]:
    """Return the files of the standard library by their paths in it."""
    library = _library()
    found = {}
    for folder, folders, files in os.walk(library):
        # Not even listed: site-packages can hold many times as many files.
        folders[:] = [name for name in folders if not _is_left_out(name)]
        for name in files:
            if name.endswith(".py") and not _is_left_out(name):
                path = Path(folder, name)
                found[path.relative_to(library).as_posix()] = path
    return found


def _is_left_out(name: str) -> bool:
    # The last two depend on the machine, not on the version.
    return name in _LEFT_OUT or name.startswith(("config-", "_sysconfigdata"))


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _constant(text: str) -> Read:
    return lambda: text


def _source(path: Path) -> Read:
    return lambda: path.read_text(encoding="utf-8", errors="replace")


def _docstrings(path: Path) -> Read:
    """Return a function that reads all docstrings of a module, one after the other."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

    def read() -> str:
        try:
            tree = ast.parse(_source(path)())
        except (SyntaxError, ValueError):
            return ""  # templates of modules are not Python
        texts = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, documented)]
        return "\n\n".join(text for text in texts if text)

    return read
