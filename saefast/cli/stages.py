"""Commands for the stages of a run; each does the stages that it needs, too."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from saefast.cli.runs import facts_of, staged
from saefast.cli.telling import Json, called, tell

Run = Annotated[tyro.conf.Positional[Path], called("RUN")]
Threshold = float | Literal["null"]

_TOPICS = {
    "match": ("Pairs",),
    "stability": ("Stability", "Dead features"),
    "subspace": ("Subspaces", "Contributions"),
    "pool": ("Pooling",),
}
"""What of the findings a stage is answerable for"""


def match(
    sources: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], called("RUN | SAE SAE ...", "(required)")
    ],
    out: Path | None = None,
    one_to_one: bool = False,
    side: Literal["decoder", "encoder"] = "decoder",
    json_output: Json = False,
) -> None:
    """Find which feature is which in another SAE: of all SAEs of a run, or of several files.

    For example: saefast match runs/mine, or saefast match sae-a sae-b --out matches

    Args:
        sources: The folder of a run, or two and more SAEs in any format.
        out: Folder for a table of each pair; what is there already is kept. A run, where this is
            not given, keeps its own.
        one_to_one: Pair each feature with one other at most, such that the sum of all
            similarities is the greatest there is.
        side: Which rows are compared.
    """
    if len(sources) == 1 and out is None:
        if one_to_one or side != "decoder":
            raise ValueError(
                "one_to_one and side need out, a folder for their tables; a run itself keeps the "
                "nearest of both sides, and saefast stability chooses"
            )
        _stage(sources[0], "match", {}, json_output)
        return
    from saefast.match.all_pairs import match_all
    from saefast.storage import load_dictionaries

    if not sources:
        raise ValueError("sources must be a run, or two SAEs at least, got none")
    each = load_dictionaries(*sources, encoder=side == "encoder")
    found = match_all(
        each,
        out=out,
        resume=True,
        progress=not json_output,
        side=side,
        one_to_one=one_to_one,
    )
    shares = {f"{s}-{t}": _shared(found[s, t]) for s, t in found if s < t}
    sentence = ", ".join(f"{pair}: {share:.3f}" for pair, share in shares.items())
    written = [] if out is None else sorted(out.glob("*-*.parquet"))
    facts = {"shared_at_0.7": shares}
    tell(f"share of features with a partner of cosine 0.7: {sentence}", facts, written, json_output)


def stability(
    run: Run,
    threshold: Threshold | None = None,
    match: Literal["nearest", "mutual", "one_to_one"] | None = None,
    side: Literal["decoder", "encoder", "both"] | None = None,
    stable: float | None = None,
    unstable: float | None = None,
    least_rate: float | None = None,
    json_output: Json = False,
) -> None:
    """Score how likely each feature is to be found again by an SAE from another seed.

    What is not given stays as the run has it (at first: threshold 0.7, match nearest,
    side decoder, stable 0.8, unstable 0.2).

    Args:
        run: Folder of the run.
        threshold: Least cosine of a match; "null": what one in a thousand random directions has.
        match: What counts: the nearest feature, only mutual ones, or one-to-one partners.
        side: Which rows are compared.
        stable: Share of the other SAEs from which on a feature is stable.
        unstable: Share up to which it is unstable.
        least_rate: Features that fire on a smaller share of rows count as dead.
    """
    given = {
        "threshold": threshold,
        "match": match,
        "side": side,
        "stable": stable,
        "unstable": unstable,
        "least_rate": least_rate,
    }
    _stage(run, "stability", given, json_output)


def subspace(
    run: Run,
    rank: int | None = None,
    draws: int | None = None,
    seed: int | None = None,
    json_output: Json = False,
) -> None:
    """Compare the planes that stable and unstable features span in different SAEs.

    Args:
        run: Folder of the run.
        rank: Dimensions of the planes. None: as the run has it, at first as many as hold 90 % of
            the energy.
        draws: How often nulls are drawn. None: as the run has it.
        seed: Of the draws. None: as the run has it.
    """
    _stage(run, "subspace", {"rank": rank, "draws": draws, "seed": seed}, json_output)


def pool(
    run: Run,
    width: int | None = None,
    tokens: int | None = None,
    scratch_tokens: int | None = None,
    compare: bool | None = None,
    json_output: Json = False,
) -> None:
    """Pool the unique features of all SAEs into one, and compare that with its controls.

    Args:
        run: Folder of the run.
        width: Features of the pooled SAE. None: as the run has it, at first as many as the others
            have.
        tokens: Rows of fine-tuning. None: as the run has it, at first a quarter of the training.
        scratch_tokens: Rows for the control trained from scratch. None: as the run has it, at
            first as many as went into a pool.
        compare: Whether to train the controls. None: as the run has it, at first yes.
    """
    given = {
        "width": width,
        "tokens": tokens,
        "scratch_tokens": scratch_tokens,
        "compare": compare,
    }
    _stage(run, "pool", given, json_output)


def report(
    run: Run, figures: Path | None = None, png: bool = False, json_output: Json = False
) -> None:
    """Write RUN/report.html from whatever the run has so far; it works offline.

    Args:
        run: Folder of the run.
        figures: Folder that gets every figure as SVG, besides.
        png: Write them as PNG, too; needs `pip install 'saefast[figures]'`.
    """
    from saefast.report import write_report

    written = write_report(run, figures=figures, png=png)
    tell(f"report of {run}", {"report": str(written[0])}, written, json_output)


def _stage(run: Path, name: str, given: dict[str, Any], json_output: bool) -> None:
    """One stage of a run, with what is given instead of what the run had."""
    from saefast.pipeline import settings_of
    from saefast.report import findings_of, printed

    settings = settings_of(run)
    changed = {key: value for key, value in given.items() if value is not None}
    if changed:
        part = dataclasses.replace(getattr(settings, name), **changed)
        settings = dataclasses.replace(settings, **{name: part})
    outcomes = staged(settings, run, name, json_output)
    found = [each for each in findings_of(run) if each.topic in _TOPICS[name]]
    facts = {**facts_of(outcomes), "findings": [each._asdict() for each in found]}
    tell(printed(found) or f"{name} is finished", facts, outcomes[-1].written, json_output)


def _shared(matches: Any) -> float:
    return float((matches.similarity >= 0.7).double().mean())
