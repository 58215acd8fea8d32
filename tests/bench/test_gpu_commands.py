"""The documented commands of sessions on a GPU fit into their budgets."""

import re
import shlex
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT

from bench.committed import gpus, load
from bench.gpu import parts, session

DOCUMENTED = [CHECKOUT / "bench" / "on_gpu.sh", CHECKOUT / "docs" / "developing" / "gpu.md"]
EARLIER = {
    "profile": 51.8,
    "memcheck": 127.5,
    "tiles": 21.3,
    "ncu": 64.4,
    "peers:C2": 39.2,
    "peers:C1": 63.4,
}
"""Seconds of parts on an H100 by bench/results/gpu.json of 0e52c29 and e122586."""


def commands(file: Path) -> list[str]:
    return re.findall(r"^[# ]*bash bench/on_gpu\.sh (.+)$", file.read_text(), re.MULTILINE)


def longest(part: str) -> float:
    """Return the committed seconds of a part, the longest if there are several."""
    ran = [row for name in gpus() for row in load(name)["parts"] if row["part"] == part]
    return max((row["seconds"] for row in ran), default=None) or EARLIER[part]


def test_script_and_documentation_have_the_same_commands() -> None:
    script, page = map(commands, DOCUMENTED)
    assert script == page
    assert len(script) == 4


@pytest.mark.parametrize("command", commands(DOCUMENTED[0]))
def test_documented_parts_take_less_than_their_budget(command: str) -> None:
    options = session._parser().parse_args(shlex.split(command))
    assert options.commit == "$HASH"
    assert options.parts[0] == "install"
    for text in options.parts:
        assert parts.part(text, {}).name == text
    assert sum(map(longest, options.parts)) < 0.85 * options.budget
