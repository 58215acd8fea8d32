"""Table of the reliability campaigns."""

from bench.committed import load, markdown


def table() -> str:
    """Return the number of cases of each campaign, and how they ended."""
    lines = [
        ["campaign", "cases", "ended in", "time", "commit"],
        ["---", "---:", "---"] + ["---:"] * 2,
    ]
    for row in load("trust")["rows"]:
        ends = ", ".join(f"{name}: {count:,}" for name, count in row["outcomes"].items())
        minutes = row["seconds"] / 60
        time = f"{minutes:.0f} min" if minutes >= 2 else f"{row['seconds']:.0f} s"
        lines.append([row["campaign"], f"{row['cases']:,}", ends, time, row["commit"]])
    return markdown(lines)


def caption() -> str:
    """Return the machines on which the campaigns ran."""
    campaigns: dict[str, list[str]] = {}
    for row in load("trust")["rows"]:
        machine = f"{row['cpu']}, {row['cores']} cores"
        campaigns.setdefault(machine, []).append(row["campaign"])
    return " ".join(f"On {machine}: {'; '.join(names)}." for machine, names in campaigns.items())
