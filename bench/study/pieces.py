"""Pieces of the study: sweep files, each of which finishes in at most two hours on two cores."""

from pathlib import Path
from typing import NamedTuple

from saefast.sweep import read_sweep

FOLDER = Path(__file__).resolve().parent


class Piece(NamedTuple):
    """A sweep of the study."""

    name: str
    """name of the sweep file beside this module, and of the folder of the sweep"""
    hours: float
    """hours that it takes on two otherwise idle cores, measured or estimated"""

    @property
    def file(self) -> Path:
        """Path of the sweep file."""
        return FOLDER / f"{self.name}.toml"

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(read_sweep(self.file).cells)


PIECES = (
    Piece("tokens", 0.7),
    Piece("rate", 0.3),
    Piece("width", 0.2),
    Piece("variants", 0.3),
    Piece("penalties", 0.4),
    Piece("k", 0.4),
    Piece("model", 0.4),
    Piece("sparsities", 0.6),
    Piece("layers", 0.7),
    Piece("text", 0.4),
    Piece("long", 1.5),
    Piece("membership", 0.7),
    Piece("wide", 2.0),
)
"""All pieces, the most informative first."""
