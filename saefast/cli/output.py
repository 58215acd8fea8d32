"""Output of commands: text with the paths of written files, or one JSON object."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object instead of text.")]


def is_first() -> bool:
    """Return whether this is the only process, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def positional(name: str, default: str | None = None) -> Any:
    """Return the name and the default that the help shows for a positional argument."""
    return tyro.conf.arg(metavar=name, help_behavior_hint=default)


def print_result(
    sentence: str, facts: Mapping[str, Any], written: Iterable[Path], json_output: bool
) -> None:
    """Print the result of a command, as text or as one JSON object."""
    paths = [str(path) for path in written]
    if json_output:
        print(json.dumps({**facts, "written": paths}))
        return
    print(sentence)
    for path in paths:
        print(f"wrote {path}")
