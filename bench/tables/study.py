"""Tables and sentences of docs/results, from the rows of `bench studies` and `bench demo`."""

from collections.abc import Sequence
from typing import Any

from bench.committed import load, markdown
from saefast.report import Finding, printed

_SECONDS_PER_MINUTE = 60


def lowrank() -> str:
    """Return the table of the low-rank study, with a row for each world and least firing rate."""
    heads = [
        "rare features in the subspace",
        "latents that count",
        "EV",
        "recur, outside / inside (.7) / inside (.9)",
        "true features found, outside / inside",
        "overlap of two seeds' subspaces",
        "with the true one",
        "by chance, random / covariance",
        "EV kept, stable / unstable",
    ]
    lines = [heads, ["---:"] * len(heads)]
    for row in _study("lowrank")["rows"]:
        often = f"fire on {row['least_rate']:g} of rows" if row["least_rate"] else "fire at all"
        lines.append(
            [
                f"{row['rare']:,}",
                f"{row['alive']:.0f} that {often}",
                _two(row["explained"]),
                _several(row, "stable_back", "subspace_back", "subspace_back_close"),
                _several(row, "stable_recovered", "subspace_recovered"),
                _two(row["overlap"]),
                _two(row["overlap_truth"]),
                _several(row, "overlap_null", "overlap_covariance"),
                _several(row, "keep_stable", "keep_unstable"),
            ]
        )
    return markdown(lines)


def lowrank_caption() -> str:
    """Return the caption of the low-rank study."""
    return f"Four seeds, 128 dimensions, a subspace of 32, 384 latents, k = 6. {_where('lowrank')}"


def recovery() -> str:
    """Return the table of the recovery study, with a row for each SAE."""
    rows = _study("recovery")["rows"]
    firings = list(dict.fromkeys(row["firing"] for row in rows))
    sizes = sorted({row["tokens"] for row in rows})
    heads = ["", *(f"{kind.replace('_', ' ')}, {n:,} rows" for kind in firings for n in sizes)]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    cells = {(row["variant"], row["rules"], row["firing"], row["tokens"]): row for row in rows}
    for variant, rules in dict.fromkeys((row["variant"], row["rules"]) for row in rows):
        each = [cells[variant, rules, kind, n] for kind in firings for n in sizes]
        name = variant if rules == "trained" else f"{variant}, {rules}"
        lines.append(
            [name, *(f"{row['explained']:.2f}, {100 * row['recovered']:.1f} %" for row in each)]
        )
    return markdown(lines)


def recovery_caption() -> str:
    """Return the caption of the recovery study."""
    return (
        "Variance explained, and the share of the 800 true features that some latent has with a "
        f"cosine above 0.8; 800 latents in 50 dimensions. {_where('recovery')}"
    )


def digits() -> str:
    """Return the table of the study of digits, with a row for each start, norm and penalty."""
    heads = ["start", "decoder rows", "penalty", "EV", "MMCS (random)", "paired"]
    heads += ["shared by all three", "alive"]
    lines = [heads, ["---"] * 3 + ["---:"] * 5]
    for row in _study("digits")["rows"]:
        lines.append(
            [
                "tied" if row["tied"] else "free",
                "unit norm" if row["unit_norm"] else "free",
                "none" if row["penalty"] == "none" else f"{row['penalty']} {row['weight']:g}",
                _two(row["explained"]),
                f"{row['mmcs']:.2f} ({row['mmcs_null']:.2f})",
                _two(row["paired"]),
                _two(row["shared"]),
                f"{row['alive']:.0f}",
            ]
        )
    return markdown(lines)


def digits_caption() -> str:
    """Return the caption of the study of digits."""
    return (
        "ReLU SAEs with 128 latents on the 1,797 digits of scikit-learn, three seeds; means. "
        f"{_where('digits')}"
    )


def validity() -> str:
    """Return the table of the validity study, with a row for each measure."""
    heads = ["measure", "with F1 of latents", "with cosines to true features", "with rows seen"]
    lines = [heads, ["---"] + ["---:"] * 3]
    ranks = {(rank["measure"], rank["truth"]): rank for rank in _study("validity")["ranks"]}
    for measure in dict.fromkeys(name for name, _ in ranks):
        found = [ranks[measure, truth] for truth in ("f1", "mcc", "tokens")]
        lines.append([_MEASURES[measure], *(_ranked(rank) for rank in found)])
    return markdown(lines)


def validity_caption() -> str:
    """Return the caption of the validity study: the SAEs that were ranked."""
    study = _study("validity")
    saes = [row for row in study["rows"] if row["series"] == "grid"]
    variants, widths, tokens = (
        sorted({row[name] for row in saes}) for name in ("variant", "k", "tokens")
    )
    points = sum(row["series"] == "checkpoint" for row in study["rows"])
    return (
        f"Spearman's correlation over {len(saes)} SAEs ({', '.join(variants)}; k of "
        f"{_listed(widths)}; trained on {_listed(tokens)} rows) with a 95 % interval, and "
        f"Kendall's with the rows seen at {points} checkpoints of one training. "
        f"{_where('validity')}"
    )


_MEASURES = {
    "explained_variance": "explained variance",
    "probing": "AUROC of the best latent for a planted label",
    "no_absorption": "1 - absorption",
    "main_f1": "F1 of the main latents of classes",
    "stability": "mean cosine to partners in another seed",
    "alive": "share of latents that fire",
}


def _ranked(rank: dict[str, Any]) -> str:
    if rank["correlation"] is None:
        return "-"
    ends = "" if rank["low"] is None else f" ({rank['low']:.2f} to {rank['high']:.2f})"
    return f"{rank['correlation']:.2f}{ends}"


def _listed(values: Sequence[int]) -> str:
    return " and ".join(
        filter(None, (", ".join(f"{value:,}" for value in values[:-1]), f"{values[-1]:,}"))
    )


def demo() -> str:
    """Return the findings that the demo prints."""
    found = [Finding(**each) for each in load("demo")["findings"]]
    return f"```\n{printed(found)}\n```"


def demo_caption() -> str:
    """Return the caption of the demo: its time, stage by stage."""
    demo = load("demo")
    minutes = demo["seconds"] / _SECONDS_PER_MINUTE
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in demo["stages"].items())
    machine = demo["machine"]
    return (
        f"{minutes:.1f} minutes on {machine['cpu']}, {machine['cores']} cores: {stages}; at "
        f"commit {demo['commit']}."
    )


def _study(name: str) -> dict[str, Any]:
    study: dict[str, Any] = load("studies")["studies"][name]
    return study


def _where(name: str) -> str:
    study = _study(name)
    minutes = f"{study['seconds'] / _SECONDS_PER_MINUTE:.1f} minutes"
    if "cpu_seconds" in study:  # not in older rows
        minutes += f", {study['cpu_seconds'] / _SECONDS_PER_MINUTE:.1f} of processor time"
    return f"{minutes}; at commit {study['commit']}."


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _several(row: dict[str, Any], *names: str) -> str:
    return " / ".join(_two(row[name]) for name in names).rstrip(" /")
