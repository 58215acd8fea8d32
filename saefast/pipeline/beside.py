"""SAEs of other runs or folders as conditions of an evaluation."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from saefast.disk.tables import read_json
from saefast.evaluation.conditions import CONDITIONS, DIFFMEAN, MDAS, Condition
from saefast.evaluation.scores import TRAINED
from saefast.formats.sae_folders import saes_at
from saefast.run_folder import SETTINGS
from saefast.storage import load_sae
from saefast.train.checkpoint import RunFile


def conditions_beside(
    paths: Sequence[str | Path], d: int, where: tuple[str, str] | None = None
) -> tuple[Condition, ...]:
    """Load a condition from each path, under the name of its folder.

    Args:
        paths: runs, folders of SAEs, or SAEs of any format.
        d: width of the activations that they must encode.
        where: model and site of those activations, which runs with a harvest must share; None: not
            checked.

    Returns:
        The conditions in the order of `paths`.
    """
    names = [TRAINED, *CONDITIONS, DIFFMEAN, MDAS]
    conditions = []
    for path in map(Path, paths):
        name = path.resolve().name
        if name in names:
            raise ValueError(
                f"beside must be folders whose names differ from each other and from other "
                f"conditions, {', '.join(names)}, got {path}"
            )
        _check_run(path, where)
        saes = tuple(load_sae(each) for each in saes_at(path))
        for sae in saes:
            if sae.d != d:
                raise ValueError(
                    f"beside must be SAEs of activations of width {d}, but {path} has d={sae.d}"
                )
        names.append(name)
        conditions.append(Condition(name=name, saes=saes))
    return tuple(conditions)


def fingerprints(paths: Sequence[str]) -> list[str]:
    """Return a hash of the files of the SAEs at each path."""
    found = []
    for path in paths:
        digest = hashlib.sha256()
        for each in saes_at(Path(path)):
            files = [each] if each.is_file() else sorted(filter(Path.is_file, each.iterdir()))
            for file in files:
                digest.update(file.name.encode())
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        found.append(digest.hexdigest()[:32])
    return found


def _check_run(path: Path, where: tuple[str, str] | None) -> None:
    """Raise if a run is not finished, or is on other activations."""
    if not path.exists():
        raise FileNotFoundError(f"beside must be folders of SAEs, but {path} does not exist")
    training = RunFile.read(path)
    if training is not None and not training.finished:
        raise ValueError(f"beside must be trained SAEs, but the run {path} is not finished")
    harvest = (read_json(path / SETTINGS) or {}).get("harvest") if path.is_dir() else None
    if where is not None and harvest is not None:
        other = (harvest["model"], harvest["site"])
        if other != where:
            raise ValueError(
                f"beside must be SAEs of {where[0]} at {where[1]}, but {path} is a run on "
                f"{other[0]} at {other[1]}"
            )
