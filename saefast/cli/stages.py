"""Commands for the stages of a run, each of which runs the stages that it depends on as well."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from saefast.cli.output import Json, positional, print_result
from saefast.cli.runs import facts_of, run_stages
from saefast.cli.sweep import share_from

if TYPE_CHECKING:
    from saefast.match.features import MatchOptions

Run = Annotated[tyro.conf.Positional[Path], positional("RUN")]
Threshold = float | Literal["null"]

_TOPICS = {
    "match": ("Pairs",),
    "stability": ("Stability", "Dead features"),
    "subspace": ("Subspaces", "Contributions"),
    "pool": ("Pooling",),
}
"""Topics of the findings that are printed after each stage"""


def match(
    sources: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], positional("RUN | SAE SAE ...", "(required)")
    ],
    out: Path | None = None,
    one_to_one: bool = False,
    side: Literal["decoder", "encoder"] = "decoder",
    absolute: bool = False,
    processes: int | None = None,
    on: str = "local",
    share: str | None = None,
    json_output: Json = False,
) -> None:
    """Match the features of the SAEs of a run, or of several SAEs in files.

    For example: saefast match runs/mine, or saefast match sae-a sae-b --out matches

    Args:
        sources: Folder of a run, or two or more SAEs in any format.
        out: Folder for a table of each pair; existing tables of the same SAEs and options are kept.
            None: a run stores its matches itself; matches of other SAEs are not written.
        one_to_one: Match each feature with at most one other, such that the sum of all
            similarities is greatest.
        side: Rows to compare.
        absolute: Count opposite directions as similar, as a run does for AbsTopK.
        processes: Number of processes that match pairs, which share the threads; needs out. None: 1
            here, and on Ray as many as there is room for.
        on: Where pairs are matched: local, in processes of this machine; ray, on the cluster that
            RAY_ADDRESS names or that runs here; or ray://HOST. Needs out, which all nodes share.
        share: Match one of several fixed shares of the pairs, such as 3/16, for independent jobs;
            needs out. None: all pairs.
    """
    by_processes = (processes, on, share) != (None, "local", None)
    if out is None and by_processes:
        raise ValueError("processes, on and share need out, the folder to which processes write")
    if len(sources) == 1 and out is None:
        if one_to_one or absolute or side != "decoder":
            raise ValueError(
                "one_to_one, absolute and side need out, a folder for the tables: a run stores the "
                "nearest features of both sides, from which saefast stability chooses"
            )
        _stage(sources[0], "match", {}, json_output)
        return
    if not sources:
        raise ValueError("sources must be a run or at least two SAEs, got none")
    how: MatchOptions = {"side": side, "one_to_one": one_to_one, "absolute": absolute}
    if out is not None and by_processes:
        if on == "local" and processes is None:
            processes = 1
        shares = _matched_by_processes(sources, out, processes, on, share, not json_output, how)
    else:
        shares = _matched(sources, out, not json_output, how)
    sentence = ", ".join(f"{pair}: {portion:.3f}" for pair, portion in shares.items())
    written = [] if out is None else [out / f"{pair}.parquet" for pair in shares]
    facts = {"shared_at_0.7": shares}
    kind = "absolute cosine" if absolute else "cosine"
    print_result(
        f"share of features with a partner of {kind} 0.7: {sentence}", facts, written, json_output
    )


def _matched(
    sources: Sequence[Path], out: Path | None, progress: bool, how: "MatchOptions"
) -> dict[str, float]:
    """Match all pairs in this process, and return the share of shared features of each."""
    from saefast.formats.sae_folders import saes_at
    from saefast.match.all_pairs import match_all
    from saefast.storage import load_dictionaries
    from saefast.sweep.match_driver import check_widths

    each = load_dictionaries(*sources, encoder=how["side"] == "encoder")
    check_widths(each, [path for source in sources for path in saes_at(source)])
    found = match_all(each, out=out, resume=True, progress=progress, **how)
    return {f"{s}-{t}": _shared(found[s, t]) for s, t in found if s < t}


def _matched_by_processes(
    sources: Sequence[Path],
    out: Path,
    processes: int | None,
    on: str,
    share: str | None,
    progress: bool,
    how: "MatchOptions",
) -> dict[str, float]:
    """Match pairs by several processes, and return the share of shared features of each."""
    from saefast.match.saved import read_pair
    from saefast.sweep import match_by_processes

    written = match_by_processes(
        *sources,
        out=out,
        processes=processes,
        on=on,
        share=share_from(share),
        resume=True,
        progress=progress,
        **how,
    )
    found = {file.stem: read_pair(file) for file in written}
    return {pair: _shared(both[0]) for pair, both in found.items() if both is not None}


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
    """Score how likely each feature is to occur in an SAE of another seed.

    Settings that are not given remain those of the run (initially: threshold 0.7, match nearest,
    side decoder, stable 0.8, unstable 0.2).

    Args:
        run: Folder of the run.
        threshold: Minimum cosine of a match; "null": the cosine that one in a thousand random
            directions reaches.
        match: Kind of match: the nearest feature, the nearest if it is mutual, or one to one.
        side: Rows to compare.
        stable: Minimum score of a stable feature.
        unstable: Maximum score of an unstable feature.
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
    """Compare the subspaces that stable and unstable features span in different SAEs.

    Args:
        run: Folder of the run.
        rank: Dimension of the subspaces. None: as in the run, initially the number of dimensions
            that hold 90 % of the energy.
        draws: Number of draws of the nulls. None: as in the run.
        seed: Seed of the draws. None: as in the run.
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
    """Pool the unique features of all SAEs into one, and compare it with controls.

    Args:
        run: Folder of the run.
        width: Number of latents of the pooled SAE. None: as in the run, initially the width of
            other SAEs.
        tokens: Number of rows of the fine-tuning. None: as in the run, initially a quarter of the
            training.
        scratch_tokens: Number of rows for the control trained from scratch. None: as in the run,
            initially the number of all training that went into a pool.
        compare: Whether to train the controls. None: as in the run, initially yes.
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
    """Write RUN/report.html, a page that works offline, from the results of the run so far.

    For a sweep, RUN is its folder: the table of results and the report are made from the cells.

    Args:
        run: Folder of the run or sweep.
        figures: Folder to write every figure of a run to as SVG.
        png: Write the figures as PNG as well; needs `pip install 'saefast[figures]'`.
    """
    from saefast.report import write_report
    from saefast.sweep import SweepFolder, write_table_and_report

    sweep = SweepFolder(run)
    if sweep.exists():
        if figures is not None or png:
            raise ValueError(
                f"figures must be left out for a sweep, whose numbers are in {sweep.results}, got "
                f"figures={figures}, png={png}"
            )
        written = list(reversed(write_table_and_report(sweep)))
    else:
        written = write_report(run, figures=figures, png=png)
    print_result(f"report of {run}", {"report": str(written[0])}, written, json_output)


def dashboards(
    run: Run,
    out: Path,
    name: str | None = None,
    features: int | None = None,
    strict: bool = False,
    json_output: Json = False,
) -> None:
    """Write the features of a run as dashboards in JSON, for Neuronpedia and sae_dashboard.

    For example: saefast dashboards runs/mine --out dashboards

    Args:
        run: Folder of a run with a language model.
        out: Folder to write to: a folder for each SAE, with batches of 128 features.
        name: Name of the set of SAEs. None: the name of the run's folder.
        features: Number of features of each SAE, those that fire most. None: all that fire.
        strict: Leave out stability, explanations and partners, which are under a key of saefast
            that sae_dashboard's own classes refuse.
    """
    from saefast.pipeline import settings_of
    from saefast.pipeline.dashboards import check_dashboards, write_dashboards
    from saefast.pipeline.job import Job

    settings = settings_of(run)
    job = Job(run, settings, not json_output)
    check_dashboards(job, features)
    run_stages(settings, run, "statistics", json_output)
    written = write_dashboards(job, out, name=name, features=features, strict=strict)
    print_result(f"dashboards of {run}", {"files": len(written)}, written, json_output)


def _stage(run: Path, name: str, given: dict[str, Any], json_output: bool) -> None:
    """Run a stage with the given settings in place of those of the run, and print its findings."""
    from saefast.pipeline import settings_of
    from saefast.report import findings_of, printed

    settings = settings_of(run)
    changed = {key: value for key, value in given.items() if value is not None}
    if changed:
        part = dataclasses.replace(getattr(settings, name), **changed)
        settings = dataclasses.replace(settings, **{name: part})
    outcomes = run_stages(settings, run, name, json_output)
    found = [each for each in findings_of(run) if each.topic in _TOPICS[name]]
    facts = {**facts_of(outcomes), "findings": [each._asdict() for each in found]}
    sentence = printed(found) or _without_findings(run, name)
    print_result(sentence, facts, outcomes[-1].written, json_output)


def _without_findings(run: Path, name: str) -> str:
    """Return the result of a stage that has no finding, such as a pool without controls."""
    from saefast.run_folder import POOLING
    from saefast.run_records import PoolingRecord, read_record

    record = read_record(run / POOLING, PoolingRecord) if name == "pool" else None
    if record is None:
        return f"{name} is finished"
    pooled = f"pooled {record.width:,} of {record.unique:,} unique features"
    return f"{pooled}; no comparison with controls: {record.reason}" if record.reason else pooled


def _shared(matches: Any) -> float:
    return float((matches.similarity >= 0.7).double().mean())
