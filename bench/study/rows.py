"""Rows of the study, one for each finished cell, from the folders of its sweeps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.study.measures import measures, rounded
from bench.study.pieces import PIECES, Piece
from saefast.pipeline.job import Job
from saefast.pipeline.runner import is_finished_until
from saefast.pipeline.settings import HarvestSettings, RunSettings
from saefast.pipeline.settings_file import settings_from
from saefast.report.run_data import RunData
from saefast.sweep.folder import SweepFolder

Row = dict[str, Any]


def rows_of(root: Path, pieces: Sequence[Piece] = PIECES) -> list[Row]:
    """Return the rows of the cells of all sweeps in a folder whose features have stability scores.

    Args:
        root: folder of the study, with a folder for each piece that was begun.
        pieces: pieces to collect.

    Returns:
        For each cell its piece, settings, seconds by stage, machine, commit, and measures as lists
        of a value and the ends of its 95 % interval, which are None if unknown. If later stages
        have not run, `complete` is false, and their measures are left out.
    """
    return [row for piece in pieces for row in _rows_of_piece(root / piece.name, piece.name)]


def _rows_of_piece(root: Path, name: str) -> Iterator[Row]:
    folder = SweepFolder(root)
    if not folder.exists():
        return
    record = folder.read()
    for cell in record.cells:
        data, done = RunData(folder.cell(cell)), folder.done(cell)
        if not data.settings:
            continue
        settings = settings_from(data.settings)
        job = Job(data.run, settings, False)
        if not is_finished_until(job, "stability"):
            continue
        yield {
            "piece": name,
            "cell": cell,
            "complete": done is not None and is_finished_until(job, "report"),
            **_settings(settings),
            "seconds": {stage: record.seconds for stage, record in data.stages.items()},
            "machine": done.processor if done else None,
            "commit": done.commit[:7] if done and done.commit else None,
            "measures": rounded(measures(data)),
            "pooling": _pooling(data),
            "membership": data.membership.counts if data.membership else None,
        }


def _settings(settings: RunSettings) -> Row:
    """Return the settings that pieces change."""
    train = settings.train
    penalties = [each.norm for each in train.rules.penalties]
    known: Row = {
        "tokens": train.tokens,
        "latents": train.latents,
        "k": train.k,
        "variant": train.variant,
        "sparsity": train.sparsity,
        "unit_norm": train.rules.unit_norm,
        "penalty": penalties[0] if penalties else "none",
        "rate": "default" if train.lr is None else train.lr,
        "lr": float(f"{train.largest_lr:.4g}"),
        "seeds": len(train.seeds),
    }
    data = settings.data
    if isinstance(data, HarvestSettings):
        text = "varied" if data.text else "built in"
        known |= {"model": data.model, "site": data.site, "text": text, "distinct": data.tokens}
    return known


def _pooling(data: RunData) -> list[Row] | None:
    """Return the methods of pooling and their controls at equal numbers of latents."""
    record = data.pooling
    if record is None or record.methods is None:
        return None
    return [
        {
            "method": each.method,
            "tokens": each.tokens,
            "alive": round(each.equal_alive),
            "explained_variance": round(each.equal_explained_variance, 4),
            "match_share": round(each.equal_match_share, 4),
            "match_share_error": round(each.equal_match_share_error, 4),
            "pw_mcc": round(each.equal_pw_mcc, 4),
        }
        for each in record.methods
    ]
