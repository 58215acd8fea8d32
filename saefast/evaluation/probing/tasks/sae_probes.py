"""Labelled tasks of the package sae-probes, read from its files without importing it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefast.evaluation.probing.tasks.labelled import LabelledTask, labelled_task, one_against_rest
from saefast.lm.requirements import package_folder

PACKAGE = "sae-probes"

DEFAULT_NAMES = (
    "hist_fig_ismale",
    "headline_istrump",
    "glue_cola",
    "spam_is",
    "click_bait",
    "athlete_sport_football",
    "headline_isfrontpage",
    "sciq_tf",
    "high-school",
    "glue_sst2",
    "news_class_Politics",
    "world_country_Italy",
)
"""Short, varied tasks with few repetitions; all others follow in the order of the package"""

_FOLDER = "sae_probes/data"
_MASTER = "probing_datasets_MASTER.csv.zst"
_TAG, _FILE, _KIND = "Dataset Tag", "Dataset save name", "Data type"
_BINARY = "Binary Classification"
_NEWS = ("agnews_0", "agnews_1", "agnews_2")
"""Tasks whose negatives are mostly source files; they are rebuilt from the positives"""


def sae_probes_tasks(
    names: Sequence[str] | None, limit: int | None, examples: int, seed: int
) -> list[LabelledTask]:
    """Read tasks of the package, see `saefast.evaluation.probing.tasks.labelled_tasks`."""
    folder = _folder()
    files = {
        row[_TAG]: folder / "cleaned_data" / f"{Path(row[_FILE]).name}.zst"
        for row in _read(folder / _MASTER, (_TAG, _FILE, _KIND))
        if row[_KIND] == _BINARY
    }
    if names is None:
        names = list(dict.fromkeys([*DEFAULT_NAMES, *files]))
    unknown = [name for name in names if name not in files]
    if unknown:
        raise ValueError(
            f"names must be tasks of {PACKAGE}, got {', '.join(unknown)}; known tasks are "
            f"{', '.join(files)}"
        )
    news: dict[str, LabelledTask] = {}
    tasks = []
    for name in names[:limit]:
        if name not in _NEWS:
            texts, labels = _examples(files[name])
            tasks.append(labelled_task(name, texts, labels, examples=examples, seed=seed))
            continue
        if not news:
            news = _rebuilt({other: files[other] for other in _NEWS}, examples, seed)
        tasks.append(news[name])
    return tasks


def _rebuilt(files: dict[str, Path], examples: int, seed: int) -> dict[str, LabelledTask]:
    """Build tasks of one topic of news against the others."""
    classes = {}
    for name, file in files.items():
        texts, labels = _examples(file)
        number = name.removeprefix("agnews_")
        classes[number] = [text for text, label in zip(texts, labels, strict=True) if label]
    tasks = one_against_rest("agnews", classes, examples=examples, seed=seed)
    return dict(zip(files, tasks, strict=True))


def _folder() -> Path:
    folder = package_folder(PACKAGE, _FOLDER)
    if not (folder / _MASTER).is_file():
        raise FileNotFoundError(f"{folder} must hold {_MASTER}; install {PACKAGE} again")
    return folder


def _examples(file: Path) -> tuple[list[str], list[bool]]:
    """Return texts and labels; the class whose name sorts last is the positive one."""
    rows = _read(file, ("prompt", "target"))
    targets = [row["target"] for row in rows]
    classes = sorted(set(targets))
    if len(classes) != 2:
        raise ValueError(f"{file} must hold two classes, got {len(classes)}; install it again")
    return [row["prompt"] for row in rows], [target == classes[1] for target in targets]


def _read(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.csv as pc

    with pa.input_stream(str(file), compression="zstd") as stream:
        table = pc.read_csv(
            stream,
            parse_options=pc.ParseOptions(newlines_in_values=True),
            convert_options=pc.ConvertOptions(
                include_columns=list(columns), column_types={name: pa.string() for name in columns}
            ),
        )
    found: list[dict[str, Any]] = table.to_pylist()
    return found
