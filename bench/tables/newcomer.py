"""Table of the time from a clone to a result."""

from bench.committed import load, markdown

_GOALS = {"quick": "a first result, `saefast demo --quick`", "demo": "the report of `make demo`"}


def table() -> str:
    """Return the seconds of each part, and of the two ways that they form."""
    rows = {row["part"]: row for row in load("newcomer")["rows"]}
    lines = [["from a clone to", "clone", "installation", "command", "in all", "processor time"]]
    lines.append(["---"] + ["---:"] * 5)
    for part, goal in _GOALS.items():
        parts = [rows[name] for name in ("clone", "install", part)]
        seconds = [row["seconds"] for row in parts]
        used = sum(row["processor_seconds"] for row in parts)
        lines.append([goal, *map(_duration, (*seconds, sum(seconds), used))])
    return markdown(lines)


def caption() -> str:
    """Return the caption: machine, other work beside it, and commit."""
    result = load("newcomer")
    machine = result["machine"]
    others = [max(row["processors_of_others"], 0.0) for row in result["rows"]]
    return (
        f"Packages from a nearby index, without pip's cache. {machine['cpu']}, {machine['cores']} "
        f"processors, of which other work used {min(others):.1f} to {max(others):.1f} meanwhile; "
        f"package and Makefile at commit {result['commit']}. In the run of the [demo's findings]"
        f"(../results/demo.md) the stages of the demo took {_duration(load('demo')['seconds'])}."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"
