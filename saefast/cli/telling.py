"""What commands print: a sentence and what was written, or one JSON object."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object instead of text.")]


def called(name: str, default: str | None = None) -> Any:
    """What the help calls an argument that is known by its place, and says of its default."""
    return tyro.conf.arg(metavar=name, help_behavior_hint=default)


def tell(
    sentence: str, facts: Mapping[str, Any], written: Iterable[Path], json_output: bool
) -> None:
    """The result of a command."""
    paths = [str(path) for path in written]
    if json_output:
        print(json.dumps({**facts, "written": paths}))
        return
    print(sentence)
    for path in paths:
        print(f"wrote {path}")
