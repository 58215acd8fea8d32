"""HTML page of the report, one self-contained file."""

import textwrap
from collections.abc import Sequence
from html import escape

from saefast.report.document import (
    Section,
    asset,
    chooser,
    document,
    facts,
    heading,
    named,
    paged_table,
    unbroken,
)
from saefast.report.figures import EVALUATIONS, Figure
from saefast.report.findings.finding import Finding
from saefast.report.key_numbers import key_numbers
from saefast.report.overview import badge, summary
from saefast.report.run_data import RunData
from saefast.report.score_tables import score_tables

_INTRO = (
    "A sparse autoencoder (SAE) reconstructs the activations of a model as sums of a few features "
    "out of many. Trained again on the same data with another random seed, it finds different "
    "features. This report shows which features of this run recur in the other SAEs and which do "
    "not, how much each kind contributes, and whether the features that do not recur at least span "
    "the same subspace."
)
_PAPERS = ("2501.16615", "2606.12138")
_PAPERS_ON_EVALUATIONS = ("2602.14111", "2603.04198")
_HEADS = {
    "feature": "feature",
    "group": "group",
    "score": "score",
    "rate": "rate",
    "effect": "effect",
    "auroc": "token AUROC",
    "explanation": "explanation",
    "kind": "kind",
    "context": "top context",
}
_LEAD = ("Activations", "SAEs")
_ONLY_WHERE_KNOWN = {"explanation": "explanation", "kind": "explanation_kind"}
"""Columns shown only if features.parquet has them, with their names there."""
_HINTS = {
    "feature": "seed of the SAE : number of the feature",
    "group": "stable, mixed or unstable",
    "score": "stability score: share of the other SAEs that have it, with its 95 % interval",
    "rate": "firing rate: share of rows on which it is active",
    "effect": "share of the variance that is lost without it",
    "auroc": "how well a single token predicts it: 0.5 not at all, 1 always",
    "explanation": "rule or words that describe when it is active",
    "kind": "kind of the explanation; unclear if it is no better than chance allows",
    "context": "text around its largest activation; without text, its nearest matches",
}


def page(
    data: RunData,
    found: Sequence[Finding],
    figures: dict[str, list[Figure]],
    missing: Sequence[str],
    rows: str,
    details: str,
) -> str:
    """Return the HTML of the report.

    Args:
        data: files of the run.
        found: findings.
        figures: figures of each section.
        missing: reasons why figures are missing.
        rows: element with the columns of the table of features, from `packed_features`.
        details: elements with contexts and partners, from there as well.

    Returns:
        HTML document.
    """
    beside = {EVALUATIONS: score_tables(data)}
    papers = (*_PAPERS, *(_PAPERS_ON_EVALUATIONS if data.scores else ()))
    names = {each.name for several in figures.values() for each in several}
    sections = [
        Section("Summary", "summary", summary(key_numbers(data), found, names)),
        *(
            Section(
                name,
                name.lower().replace(" ", "-"),
                f'<div class="figures">{_drawn(several)}</div>{beside.get(name, "")}',
            )
            for name, several in figures.items()
        ),
    ]
    if data.features:
        sections.append(Section("All features", "features", _table(data, rows)))
    if found:
        sections.append(Section("Findings in words", "findings", _findings(found, papers)))
    entries = facts_of_run(data)
    sections.append(Section("The run", "run", f"<p>{_INTRO}</p>{facts(entries)}"))
    if missing or data.skipped:
        left_out = _missing(data, missing)
        sections.append(Section("Missing from this report", "missing", left_out, listed=False))
    style = asset("page.css") + asset("chart.css")
    if data.scores or "explanation" in data.features:
        style += asset("evaluations.css")
    scripts = ["table.js", "figures.js"] + ["page.js"] * bool(data.features)
    return document(
        f"Which features to trust: {data.run.resolve().name}",
        sections,
        version=str(data.facts.get("saefast", "")),
        style=style,
        script="".join(asset(name) for name in scripts),
        lead="; ".join(value for name, value in entries if name in _LEAD),
        later=details,
        skip_to="summary",
    )


def facts_of_run(data: RunData) -> list[tuple[str, str]]:
    """Return names and values of the run's facts, as far as its files hold them."""
    settings, facts = data.settings, data.facts
    found = []
    if "harvest" in settings:
        its = settings["harvest"]
        text = its["text"] or "the built-in corpus (prose and code from Python)"
        found.append(("Activations", f"{its['model']}, {its['site']}: {text}"))
    elif "planted" in settings:
        its = settings["planted"]
        found.append(
            (
                "Activations",
                f"synthetic: {its['stable']} frequent features, and {its['rare']} rare ones in a "
                f"subspace of {its['rank']} dimensions",
            )
        )
    elif "store" in settings:
        found.append(("Activations", str(settings["store"]["train"])))
    shown = facts.get("data", {})
    if shown:
        rows = f"{shown['rows']:,}" if shown.get("rows") else "unlimited"
        found.append(("Rows", f"{rows} for training, of width {shown['d']}"))
    for config in facts.get("configs", []):
        seeds = ", ".join(str(seed) for seed in config["seeds"])
        found.append(
            (
                "SAEs",
                f"{len(config['seeds'])} {config['variant']} SAEs (seeds {seeds}), "
                f"{config['latents']:,} latents each, k = {config['k']}, {config['tokens']:,} "
                f"training rows each",
            )
        )
    if data.stability:
        rule = data.stability.rule
        limit = f"{data.similarity} of at least {rule.threshold}"
        if rule.threshold == "null":
            limit = (
                f"{data.similarity} that one in a thousand random directions reaches ({rule.side})"
            )
        found.append(("A match", f"{rule.match.replace('_', ' ')} by {rule.side} rows, {limit}"))
    if facts:
        found.append(("Versions", f"saefast {facts.get('saefast')}, torch {facts.get('torch')}"))
    times = [f"{name} {stage.seconds:.0f} s" for name, stage in data.stages.items()]
    if times:
        found.append(("Time", ", ".join(times)))
    return found


def _findings(found: Sequence[Finding], papers: Sequence[str]) -> str:
    items = [
        f"<li><strong>{escape(each.topic)}.</strong> {escape(each.text)} {badge(each.verdict)}</li>"
        for each in found
    ]
    return (
        f'<ul class="findings">{"".join(items)}</ul><p class="note">“As published” compares with '
        f"papers on stability across seeds (arXiv {', '.join(papers)}). They used other models and "
        "sizes: a run of this size can neither confirm nor refute them.</p>"
    )


def _drawn(figures: Sequence[Figure]) -> str:
    return "".join(
        f'<figure id="fig-{each.name}"><h3>{escape(each.title)}</h3>'
        f'<p class="reading">{unbroken(each.reading)}</p>'
        f"{named(each.svg, each.title, f'{each.reading} {each.alt}')}"
        f"<figcaption>{escape(each.caption)}</figcaption></figure>"
        for each in figures
    )


def _table(data: RunData, rows: str) -> str:
    heads = "".join(
        heading(name, words, _HINTS[name])
        for name, words in _HEADS.items()
        if _ONLY_WHERE_KNOWN.get(name, "feature") in data.features
    )
    groups = chooser("Group", "group", ("stable", "mixed", "unstable"))
    filters = groups + chooser("SAE", "seed", data.seeds)
    return (
        '<p class="how">Search for text, a token or a feature such as 0:17; click a heading to '
        "sort; open a feature to see its contexts and its partners in the other SAEs. A click on a "
        "bar, cell or point of a figure shows its features here.</p>"
        '<p id="chosen" hidden><span></span> <button type="button">Show all features</button></p>'
        f"{paged_table(heads, filters, 'features.parquet')}{rows}"
    )


def _missing(data: RunData, missing: Sequence[str]) -> str:
    items = [f"<li>The run lacks {escape(reason)}.</li>" for reason in missing]
    items += [
        f"<li>Left out of the subspace analysis: {escape(reason)}.</li>" for reason in data.skipped
    ]
    return f"<ul>{''.join(items)}</ul>"


def printed(found: Sequence[Finding]) -> str:
    """Format findings for a terminal.

    Args:
        found: findings.

    Returns:
        Text with an item for each finding, wrapped at 96 columns.
    """
    lines: list[str] = []
    for each in found:
        verdict = f" [{each.verdict}]" if each.verdict else ""
        lines += textwrap.wrap(
            f"{each.topic}: {each.text}{verdict}", 96, initial_indent="- ", subsequent_indent="  "
        )
    return "\n".join(lines)
