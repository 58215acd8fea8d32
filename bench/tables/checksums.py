"""Table of the time that comparing checksums adds to reads."""

from bench.committed import load, markdown


def table() -> str:
    """Return the time of each read, and its ratio to the same read without the comparison."""
    found: dict[str, dict[str, float]] = {}
    for row in load("checksums")["rows"]:
        what, _, how = row["mode"].partition(", ")
        if how:
            found.setdefault(what, {})[how] = row["ms"]
    lines = [["read", "compared", "not compared", "ratio"], ["---"] + ["---:"] * 3]
    for what, ms in found.items():
        ratio = ms["compared"] / ms["not compared"]
        lines.append([what, *(f"{ms[how]:.0f} ms" for how in ms), f"{ratio:.2f}"])
    return markdown(lines)


def caption() -> str:
    """Return the caption: sizes, machine and commit."""
    result = load("checksums")
    machine, row = result["machine"], result["rows"][0]
    sae = 2 * 4 * row["shape"]["d"] * row["shape"]["m"] / 1e6
    store = 2 * row["shape"]["d"] * row["shape"]["n"] / 1e6
    return (
        f"From the page cache: an SAE of {sae:.0f} MB, and all batches of a store of {store:.0f} "
        f"MB; medians of {row['rounds']} interleaved rounds. {machine['cpu']}, "
        f"{machine['threads']} threads, at commit {result['commit']}."
    )
