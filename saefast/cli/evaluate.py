"""Command evaluate: evaluations of the features of a run, or of SAEs without a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from saefast.cli.output import Json, positional, print_result
from saefast.cli.runs import facts_of, run_stages

WORTH = "worth"
NAMES = (WORTH, "probe", "explain", "steer", "edit", "absorb")
"""Names of evaluations: `WORTH` is the stage evaluate, the others are evaluations by name"""

_JUDGED = ("explain", "steer")
"""Evaluations that can use a judge"""
_TOPICS = ("Explained variance", "Controls", "Language model", "At equal frequency")
"""Topics of the findings of `WORTH`"""


def evaluate(
    sources: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        positional("(RUN | SAE ...) [EVALUATION ...]", "(required)"),
    ],
    budget: Literal["quick", "full"] | None = None,
    tasks: Path | None = None,
    judge: str | None = None,
    beside: tuple[Path, ...] | None = None,
    dry_run: bool = False,
    prices: tuple[float, float] | None = None,
    model: str | None = None,
    site: str | None = None,
    device: str | None = None,
    out: Path = Path("saefast-evaluation"),
    tokens: int | None = None,
    draws: int | None = None,
    json_output: Json = False,
) -> None:
    """Evaluate the features of a run, or of SAEs without a run, on held-out data.

    For example: saefast evaluate runs/mine probe, or
    saefast evaluate sae-a sae-b probe --model gpt2 --site resid.6

    Evaluations: worth (explained variance and cross entropy of stable, unstable and random
    features; for runs only, and the default), probe (sparse probing), explain (explanations by
    rules or a judge), steer (text generated along a latent), edit (changes of single facts) and
    absorb (feature absorption). Every score is reported with its floor, its best
    trivial baseline, its ceiling and a 95 % interval. Settings that are not given remain those of
    the run; a file for saefast run has all of them in [evaluate] and its parts, such as
    [evaluate.probe].

    Args:
        sources: Folder of a run, or SAEs in any format, followed by names of evaluations.
        budget: Size of evaluations by name: quick or full. None: as in the run, initially quick.
        tasks: Table of texts and labels (.csv, .parquet or .jsonl) to probe. None: tasks of the
            package sae-probes.
        judge: Judge of explanations, and of the texts of steer: rules, embedding, local:NAME for a
            language model, or URL#MODEL for an endpoint that serves chat completions. None: as in
            the run, initially rules.
        beside: Runs or folders of SAEs of the same model and site to compare with, such as SAEs
            trained with another penalty. None: as in the run, initially none.
        dry_run: For explain and steer, print the number of calls and tokens of the judge instead of
            calling it; trained baselines are not counted.
        prices: For dry_run, prices of a million tokens of prompts and of answers. None: only tokens
            are printed.
        model: Language model of SAEs without a run: smollm2, a folder, a GGUF file, or a name on
            the Hugging Face hub.
        site: Module whose activations these SAEs encode, such as resid.12.
        device: Device of the language model: cpu, cuda or cuda:NUMBER. None: as in the run, and cpu
            for SAEs without a run.
        out: Folder for the results of these SAEs.
        tokens: For worth, number of tokens on which the language model runs with features left out;
            0: none. None: as in the run, initially 4096.
        draws: For worth, number of random sets of features for each group. None: as in the run,
            initially 5.
    """
    from saefast.checks import cpu_or_cuda
    from saefast.formats.sae_folders import holds_sae

    paths, names = _split_names(sources)
    is_sae = paths[0].is_file() or holds_sae(paths[0])
    of_run = len(paths) == 1 and not (model or site or is_sae)
    given: dict[str, Any] = {"budget": budget, "tokens": tokens, "draws": draws}
    if beside is not None:
        given["beside"] = tuple(str(path.resolve()) for path in beside)
    within = {
        "probe": {"tasks": None if tasks is None else str(tasks.resolve())},
        **{name: {"judge": judge} for name in _JUDGED if name in names},
    }
    if judge is not None and not set(names) & set(_JUDGED):
        raise ValueError(f"judge applies to {' and '.join(_JUDGED)} only; name one of them")
    if dry_run and not (names and set(names) <= set(_JUDGED)):
        raise ValueError(
            f"dry_run counts the requests to a judge; name {' or '.join(_JUDGED)} only"
        )
    if device is not None:
        cpu_or_cuda("device", device)
    if prices is not None and not dry_run:
        raise ValueError("prices apply to dry_run only, which counts the tokens")
    if of_run:
        _of_run(paths[0], names or [WORTH], given, within, device, (dry_run, prices), json_output)
        return
    if not (model and site):
        raise ValueError(
            "model and site must both be given for SAEs without a run, such as --model smollm2 "
            "--site resid.12"
        )
    if WORTH in names or not names or tokens is not None or draws is not None:
        raise ValueError(
            f"worth, tokens and draws apply to a run only; for SAEs, name one of "
            f"{', '.join(NAMES[1:])}"
        )
    where = (model, site, device or "cpu", out)
    _of_saes(paths, names, where, given, within, (dry_run, prices), json_output)


def _split_names(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split the positional arguments into paths and the names of evaluations after them."""
    named = list(sources)
    names: list[str] = []
    while named and named[-1] in NAMES:
        names.insert(0, named.pop())
    if not named:
        raise ValueError("sources must be a run or at least one SAE, got none")
    paths = [Path(source) for source in named]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is neither a run nor an SAE, nor one of {', '.join(NAMES)}"
            )
    return paths, list(dict.fromkeys(names))


def _changed(settings: Any, given: dict[str, Any], within: dict[str, dict[str, Any]]) -> Any:
    """Return settings of evaluations in which given values replace those of the run."""

    def replaced(part: Any, values: dict[str, Any]) -> Any:
        known = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(part, **known)

    parts = {name: replaced(getattr(settings, name), values) for name, values in within.items()}
    return replaced(settings, given | parts)


def _of_run(
    run: Path,
    names: list[str],
    given: dict[str, Any],
    within: dict[str, dict[str, Any]],
    device: str | None,
    counted: tuple[bool, tuple[float, float] | None],
    json_output: bool,
) -> None:
    from saefast.evaluation.conditions import TRAINABLE
    from saefast.pipeline import HarvestSettings, settings_of
    from saefast.pipeline.evaluations import kept_evaluation
    from saefast.pipeline.job import Job
    from saefast.pipeline.subject import subject_of_run
    from saefast.report import findings_of, printed, write_report
    from saefast.report.score_rows import TITLES
    from saefast.run_folder import EVALUATIONS

    kept = settings_of(run)
    data = kept.data
    if device is not None:
        if not isinstance(data, HarvestSettings):
            raise ValueError(
                f"device applies to language models only, but {run} records none; leave it out"
            )
        data = dataclasses.replace(data, device=device)
    settings = dataclasses.replace(kept, data=data, evaluate=_changed(kept.evaluate, given, within))
    dry_run, prices = counted
    if dry_run:  # the run keeps its settings, and no baseline is trained
        run_stages(kept, run, "stability", json_output)
        baselines = tuple(n for n in settings.evaluate.baselines if n not in TRAINABLE)
        how = dataclasses.replace(settings.evaluate, baselines=baselines)
        subject = subject_of_run(Job(run, settings, not json_output), how)
        _count(names, subject, how, prices, json_output)
        return
    lines: list[str] = []
    facts: dict[str, Any] = {}
    stages = ["evaluate" if name == WORTH else name for name in names]
    outcomes = run_stages(settings, run, stages, json_output)
    for name in names:
        if name == WORTH:
            found = [each for each in findings_of(run) if each.topic in _TOPICS]
            facts["findings"] = [each._asdict() for each in found]
            lines.append(printed(found) or "evaluate is finished")
        else:
            evaluation = kept_evaluation(run / EVALUATIONS, name)
            found = [each for each in findings_of(run) if each.topic == TITLES[name]]
            facts[name] = {**_for_json(evaluation), "findings": [each._asdict() for each in found]}
            lines.append("\n".join([*evaluation.lines(), printed(found)]).rstrip())
    written = [path for each in outcomes if each.stage == stages[-1] for path in each.written]
    if names != [WORTH]:
        written += write_report(run)
    print_result("\n\n".join(lines), {**facts_of(outcomes), **facts}, written, json_output)


def _of_saes(
    paths: list[Path],
    names: list[str],
    where: tuple[str, str, str, Path],
    given: dict[str, Any],
    within: dict[str, dict[str, Any]],
    counted: tuple[bool, tuple[float, float] | None],
    json_output: bool,
) -> None:
    from saefast.pipeline import EVALUATIONS, EvaluateSettings
    from saefast.pipeline.evaluations import evaluated
    from saefast.pipeline.subject import subject_of_saes

    model, site, device, out = where
    how = _changed(EvaluateSettings(), given, within)
    place = int(site) if site.isdigit() else site
    subject = subject_of_saes(
        *(paths, model, place, out),
        beside=how.beside,
        device=device,
        progress=not json_output,
    )
    dry_run, prices = counted
    if dry_run:
        _count(names, subject, how, prices, json_output)
        return
    found = {name: evaluated(name, EVALUATIONS[name], subject, how) for name in names}
    print_result(
        "\n\n".join("\n".join(each.lines()) for each in found.values()),
        {name: _for_json(each) for name, each in found.items()},
        [out / "scores.parquet", *(out / f"{name}.json" for name in names)],
        json_output,
    )


def _count(
    names: Sequence[str],
    subject: Any,
    how: Any,
    prices: tuple[float, float] | None,
    json_output: bool,
) -> None:
    """Print the number of calls and tokens of a judge, without calling it."""
    from saefast.pipeline.stages import explain, steer

    stages = {"explain": explain, "steer": steer}
    notes = [
        note
        for name in names
        for note in stages[name].measure(subject, how, dry_run=True, prices=prices).notes
    ]
    print_result("\n".join(notes), {"notes": notes}, [], json_output)


def _for_json(evaluation: Any) -> dict[str, Any]:
    """Return the overall scores, noise and notes of an evaluation for --json."""
    rows = [
        {name: _finite(value) for name, value in dataclasses.asdict(score).items()}
        for score in evaluation.scores
        if not score.task and score.seed is None
    ]
    noise = {name: _finite(value) for name, value in evaluation.noise.items()}
    return {"scores": rows, "noise": noise, "notes": list(evaluation.notes)}


def _finite(value: Any) -> Any:
    """Return a value for JSON, in which numbers that are not finite are null."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
