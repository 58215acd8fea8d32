"""Table of the time from a clone to a result."""

from bench.committed import load, markdown

_GOALS = {"quick": "a first result, `saefast demo --quick`", "demo": "the report of `make demo`"}


def table() -> str:
    """Return the seconds of each part, and of the two ways that they form."""
    seconds = {row["part"]: row["seconds"] for row in load("newcomer")["rows"]}
    lines = [["from a clone to", "clone", "installation", "command", "in all"]]
    lines.append(["---"] + ["---:"] * 4)
    for part, goal in _GOALS.items():
        parts = (seconds["clone"], seconds["install"], seconds[part])
        lines.append([goal, *(f"{each:.0f} s" for each in (*parts, sum(parts)))])
    return markdown(lines)


def caption() -> str:
    """Return the caption: machine, other work beside it, and commit."""
    result = load("newcomer")
    machine = result["machine"]
    others = [row["processors_of_others"] for row in result["rows"]]
    return (
        f"Packages from a nearby index, without pip's cache. {machine['cpu']}, {machine['cores']} "
        f"processors, of which other work used {min(others):.1f} to {max(others):.1f} meanwhile; "
        f"at commit {result['commit']}."
    )
