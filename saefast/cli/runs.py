"""Commands that start a run: demo, run, train."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from saefast.cli.output import Json, is_first, positional, print_result
from saefast.cli.train_options import chosen, train_options

_FILES = {
    "HarvestSettings": ("model", "text", "dataset"),
    "StoreSettings": ("train", "held_out"),
}
"""Settings of a source of rows that may be paths"""


def demo(out: Path = Path("saefast-demo"), quick: bool = False, json_output: Json = False) -> None:
    """Train SAEs on a small language model and report which of their features to trust.

    Computes the activations of SmolLM2 on text that comes with Python, trains four SAEs that differ
    in their seed, and writes report.html. It needs no network, but packages for language models;
    if one is missing, the error states the command that installs it. An interrupted demo resumes
    when it is started again.

    Args:
        out: Folder of the run.
        quick: Use synthetic data instead of a language model, for about a minute.
    """
    from saefast.pipeline import PRESETS

    _run_and_print(PRESETS["quick" if quick else "demo"], out, "report", json_output)


def run(
    config: Annotated[tyro.conf.Positional[str], positional("SETTINGS")],
    out: Path | None = None,
    until: str = "report",
    json_output: Json = False,
) -> None:
    """Run all stages of a file of settings, from harvest to report.

    For example: saefast run quick --out runs/quick

    Args:
        config: A file (.toml, .yaml, .json); a preset: demo, quick or synthetic-lowrank; or the
            folder of a run, which is resumed.
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
        _run_and_print(PRESETS[config], out or Path("runs") / config, until, json_output)
    elif path.is_dir():
        _run_and_print(settings_of(path), out or path, until, json_output)
    elif path.is_file():
        settings = _with_absolute_paths(read_settings(path))
        _run_and_print(settings, out or Path("runs") / path.stem, until, json_output)
    else:
        raise FileNotFoundError(
            f"{config} is neither a file nor a folder nor one of {', '.join(PRESETS)}, "
            f"synthetic-lowrank"
        )


def train(
    activations: Annotated[tyro.conf.Positional[Path], positional("ACTIVATIONS")],
    out: Path,
    options: Annotated[Any, tyro.conf.arg(name="", constructor=train_options())],
    held_out: Path | None = None,
    json_output: Json = False,
) -> None:
    """Train SAEs that differ in their seed, side by side on one stream of activations.

    For example: saefast train store --out runs/mine --latents 4096

    Several processes train together: torchrun --nproc-per-node 4 -m saefast train store ...

    Args:
        activations: A store of saefast harvest, or an .npy, .pt or .safetensors file [rows, width].
        out: Folder of the run. An existing run is resumed.
        options: Settings of the training, as in a file for saefast run.
        held_out: Other activations for evaluations.
    """
    from saefast.disk.tables import read_json
    from saefast.pipeline import RunSettings, StoreSettings

    config, trainer = chosen(options)
    stores = StoreSettings(str(activations), "" if held_out is None else str(held_out))
    settings = _with_absolute_paths(RunSettings(stores, config, trainer))
    outcomes = run_stages(settings, out, "train", json_output)
    if not is_first():
        return
    number = len(config.seeds)
    data = (read_json(out / "run.json") or {})["data"]
    there = (
        ""
        if data["rows"] is None
        else f": {config.tokens / data['rows']:.3g} times the {data['rows']:,}"
    )
    sentence = (
        f"trained {number} SAE{'s' if number > 1 else ''} on {config.tokens:,} rows each"
        f"{there} of width {data['d']:,}"
    )
    written = [out / "run.json", *(out / config.label(seed) for seed in config.seeds)]
    print_result(sentence, facts_of(outcomes), written, json_output)


def _with_absolute_paths(settings: Any) -> Any:
    """Return settings with absolute paths, so that the run can be resumed in another folder."""

    def placed(part: Any, *names: str) -> Any:
        return dataclasses.replace(part, **{name: _absolute(getattr(part, name)) for name in names})

    evaluate = placed(settings.evaluate, "beside")
    return dataclasses.replace(
        settings,
        data=placed(settings.data, *_FILES.get(type(settings.data).__name__, ())),
        trainer=placed(settings.trainer, "initial"),
        evaluate=dataclasses.replace(
            evaluate, probe=placed(evaluate.probe, "tasks"), edit=placed(evaluate.edit, "facts")
        ),
    )


def _absolute(path: Any) -> Any:
    """Return one or several paths as absolute paths; names that are not files stay."""
    from saefast.lm.model import SMOLLM2

    if isinstance(path, tuple):
        return tuple(map(_absolute, path))
    is_file = path not in ("", SMOLLM2) and Path(path).exists()
    return str(Path(path).resolve()) if is_file else path


def _run_and_print(settings: Any, out: Path, until: str, json_output: bool) -> None:
    outcomes = run_stages(settings, out, until, json_output)
    written = [path for each in outcomes for path in each.written]
    if until != "report":
        print_result(f"{until} is finished", facts_of(outcomes), written, json_output)
        return
    from saefast.report import findings_of, printed

    found = findings_of(out)
    facts = {**facts_of(outcomes), "findings": [each._asdict() for each in found]}
    print_result(printed(found), facts, [out / "report.html"], json_output)


def run_stages(settings: Any, out: Path, until: str | Sequence[str], json_output: bool) -> Any:
    """Run the stages up to one or several of them, with a line on stderr when each begins."""
    from saefast.pipeline import run_pipeline

    def show(line: str) -> None:
        if is_first() and not json_output:
            print(line, file=sys.stderr, flush=True)

    bars = not json_output
    outcomes = run_pipeline(settings, out, until=until, resume=True, progress=bars, tell=show)
    if outcomes and all(each.skipped for each in outcomes):
        show(f"all stages were finished before; nothing in {out} has changed")
    return outcomes


def facts_of(outcomes: Sequence[Any]) -> dict[str, Any]:
    """Return the facts about stages that --json prints."""
    return {
        "stages": {
            each.stage: {"seconds": round(each.seconds, 1), "was_finished": each.skipped}
            for each in outcomes
        }
    }


def _lowrank(out: Path, json_output: bool) -> None:
    from saefast.studies import run_lowrank

    found = run_lowrank(out, progress=not json_output)
    print_result(
        found.as_text(), {"rows": found.to_table().to_pylist()}, found.written, json_output
    )
