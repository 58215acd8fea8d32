"""The command line: a thin door to one function for each command."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from saefast.cli import evaluate, files, runs, stages, sweep

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": runs.demo,
    "run": runs.run,
    "harvest": files.harvest,
    "train": runs.train,
    "match": stages.match,
    "stability": stages.stability,
    "subspace": stages.subspace,
    "pool": stages.pool,
    "evaluate": evaluate.evaluate,
    "report": stages.report,
    "sweep": sweep.sweep,
    "convert": files.convert,
    "bench": files.bench,
    "info": files.info,
}

_DESCRIPTION = """Fast sparse autoencoders, and which of their features to trust.

Begin with `saefast demo`. Every command says what it wrote and can be interrupted with Ctrl-C;
repeated, it resumes what is in its folder. Any command takes --debug, to see where an error came
from."""


INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `saefast`: 0 if it did what was asked, 1 with a sentence if it could not."""
    import tyro

    for command in COMMANDS.values():
        command.__doc__ = _flowing(command.__doc__ or "")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="saefast",
            description=_DESCRIPTION,
            args=[argument for argument in given if argument != "--debug"],
            sort_subcommands=False,
        )
    except KeyboardInterrupt:
        print("\nsaefast: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"saefast: {_line(error)}", file=sys.stderr)
        return 1
    return 0


def _flowing(doc: str) -> str:
    """A docstring with each paragraph and each argument on one line: the terminal breaks them."""
    said, _, arguments = inspect.cleandoc(doc).partition("\n\nArgs:\n")
    said = re.sub(r"(?<!\n)\n(?!\n)", " ", said)
    arguments = re.sub(r"\n {8}", " ", arguments)
    return f"{said}\n\nArgs:\n{arguments}" if arguments else said


def _line(error: Exception) -> str:
    """One line; of what nobody foresaw the kind as well, and how to learn more."""
    said = " ".join(str(error).split())
    if isinstance(error, ValueError | TypeError | OSError | ImportError) and said:
        return said
    return f"{type(error).__name__}: {said} (--debug shows where)"
