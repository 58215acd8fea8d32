"""SAEs in folders: a single one, or those of a run, a hookpoint or a sweep of another library."""

import re
from pathlib import Path

from saefast.formats.source import weights_in


def saes_at(path: Path) -> list[Path]:
    """Return the SAE at a path, or those in a folder that holds some, in the order of numbers.

    Args:
        path: SAE, or folder of SAEs, as for `load_dictionaries`.

    Returns:
        Path of each SAE.

    Raises:
        FileNotFoundError: the folder holds no SAE, nor do the folders in it.
    """
    if not path.is_dir() or holds_sae(path):
        return [path]
    folders = sorted((p for p in path.iterdir() if p.is_dir() and p.name[0] != "."), key=_numbers)
    saes = [folder for folder in folders if holds_sae(folder)]
    seeds = [folder for folder in saes if re.fullmatch(r"seed-?\d+", folder.name)]
    if seeds or saes:
        return seeds or saes  # a run may hold SAEs derived from its seeds, such as a pooled one
    deeper = [f for f in folders if any(holds_sae(g) for g in f.iterdir() if g.is_dir())]
    hint = f"; give one of its folders: {', '.join(f.name for f in deeper[:8])}" if deeper else ""
    raise FileNotFoundError(f"{path} holds no SAE, nor do the folders in it{hint}")


def holds_sae(folder: Path) -> bool:
    """Return whether a folder holds the files of one SAE."""
    try:
        return weights_in(folder) is not None
    except ValueError:
        return False  # several files of tensors, such as an activation store


def _numbers(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders names by the numbers in them."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
