"""Command line, in which each command calls one function of the library."""

import functools
import inspect
import io
import os
import re
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from saefast.cli import evaluate, files, plan, runs, stages, sweep
from saefast.cli.output import is_first
from saefast.train.ranks.group import RankFailure

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
    "dashboards": stages.dashboards,
    "sweep": sweep.sweep,
    "plan": plan.plan,
    "convert": files.convert,
    "push": files.push,
    "verify": files.verify,
    "bench": files.bench,
    "info": files.info,
}

_DESCRIPTION = """Train sparse autoencoders fast, and measure which of their features to trust.

Start with `saefast demo`; `saefast COMMAND --help` shows the options of a command. Every command
prints the paths that it wrote. After Ctrl-C, the same command resumes from the files in its folder.
--debug shows the traceback of an error, --version the version of saefast."""


INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of `saefast`, the entry point.

    Args:
        arguments: command line without the program's name; None: `sys.argv`.

    Returns:
        Exit code: 0 after success, 1 after an error, which is printed in one line, or if
        `verify` finds damage, and `INTERRUPTED` after Ctrl-C.
    """
    for command in COMMANDS.values():
        command.__doc__ = _flowing(command.__doc__ or "")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"saefast {version('saefast')}")
        return 0
    _escape_what_cannot_be_encoded()
    debug = "--debug" in given
    try:
        code = call(
            _summarised(COMMANDS) if given[:1] in (["-h"], ["--help"]) else COMMANDS,
            [argument for argument in given if argument != "--debug"],
        )
    except KeyboardInterrupt:
        if is_first():
            print("\nsaefast: interrupted; run the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _discard_unread_output():
            return 1
        if debug:
            raise
        # Of several processes, only the first that still runs prints the reason.
        if error.first if isinstance(error, RankFailure) else is_first():
            print(f"saefast: {_line(error)}", file=sys.stderr)
        return 1
    finally:
        _discard_unread_output()
    return int(code or 0)


def call(commands: dict[str, Callable[..., Any]], arguments: Sequence[str]) -> Any:
    """Call the command that the arguments name.

    An option without a value is --name if it is off by default, and --no-name if it is on.

    Args:
        commands: functions by the name of their command.
        arguments: name of a command, and its own arguments.

    Returns:
        Result of the command.
    """
    import tyro

    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="saefast",
        description=_DESCRIPTION,
        args=arguments,
        sort_subcommands=False,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _escape_what_cannot_be_encoded() -> None:
    """Let stdout escape characters that its encoding lacks, as stderr does.

    Otherwise a finished command would fail while it prints its result.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_unread_output() -> bool:
    """Discard buffered output if the reader has closed the pipe, as `saefast --help | head` does.

    Otherwise the interpreter fails to write it when it exits, and prints a traceback.

    Returns:
        Whether output was discarded.
    """
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, closed, or replaced by an object
        return False
    poll = select.poll()
    poll.register(output, 0)  # errors are reported without being asked for
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    discarded = os.open(os.devnull, os.O_WRONLY)
    os.dup2(discarded, output)
    os.close(discarded)
    return True


def _summarised(commands: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the commands with the first sentence of their help, for the list of all of them."""

    def summarised(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def same(*given: Any, **named: Any) -> Any:
            return command(*given, **named)

        same.__doc__ = (command.__doc__ or "").partition("\n\n")[0]
        return same

    return {name: summarised(command) for name, command in commands.items()}


def _flowing(doc: str) -> str:
    """Join the lines of each paragraph and argument of a docstring; the terminal wraps them."""
    text, _, arguments = inspect.cleandoc(doc).partition("\n\nArgs:\n")
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    arguments = re.sub(r"\n {8}", " ", arguments)
    return f"{text}\n\nArgs:\n{arguments}" if arguments else text


def _line(error: Exception) -> str:
    """Return an error in one line; unexpected ones also show their class and mention --debug."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"  # without the number of the error
    if isinstance(error, ValueError | TypeError | OSError | ImportError) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"
