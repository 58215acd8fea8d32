"""The dictionaries of many seeds from disk, mapped into memory and not read."""

import re
from pathlib import Path

import torch
from torch import Tensor

from saefast.formats import format_of
from saefast.formats.found import find, weights_in
from saefast.ops import checks
from saefast.types import Dictionary


def load_dictionaries(
    *paths: str | Path, encoder: bool = False, format: str = "auto", allow_pickle: bool = False
) -> list[Dictionary]:
    """The features of SAEs on disk, to be matched, scored and pooled.

    Their rows are views into the files, which cost no memory until they are read, and then as much
    as the system has to spare; so are those of torch files and of arrays that are not compressed.

    Args:
        paths: SAEs in any of the formats of `load_sae`, or folders that hold some: a run's, with
            seed-0, seed-1, ..., a hookpoint's with seed0, seed1, ..., a sweep's with trainer_0,
            trainer_1, ...; those come in the order of their numbers.
        encoder: whether the encoder's rows and biases are wanted, too.
        format: of all of them; "auto" looks at each.
        allow_pickle: whether files that hold more than tensors may run the code in them.

    Returns:
        A `Dictionary` for each SAE, with firing rates where the files give them.
    """
    if not paths:
        raise ValueError("paths must name at least one SAE or folder of SAEs, got none")
    for given in paths:
        if not isinstance(given, str | Path):
            raise TypeError(
                f"paths must be str or Path, each an argument of its own, got "
                f"{type(given).__name__}; load_dictionaries(*paths) takes a list"
            )
    return [
        _dictionary(path, encoder, format, allow_pickle)
        for given in paths
        for path in _saes_at(Path(given))
    ]


def _dictionary(path: Path, encoder: bool, format: str, allow_pickle: bool) -> Dictionary:
    # What some files do not say changes what is active, but not the features.
    found = find(path, allow_pickle, k=1, threshold=0.0)
    parts = format_of(found, format).read(found)
    return Dictionary(
        _usable(parts.W_dec),
        W_enc=_usable(parts.W_enc) if encoder else None,
        b_enc=_usable(parts.b_enc) if encoder else None,
        b_dec=_usable(parts.b_dec),
        firing_rate=parts.firing_rate,
    )


def _usable(values: Tensor) -> Tensor:
    return values if values.dtype in checks.DTYPES else values.to(torch.float32)


def _saes_at(path: Path) -> list[Path]:
    if not path.is_dir() or _holds_sae(path):
        return [path]
    folders = sorted((p for p in path.iterdir() if p.is_dir() and p.name[0] != "."), key=_numbers)
    saes = [folder for folder in folders if _holds_sae(folder)]
    seeds = [folder for folder in saes if re.fullmatch(r"seed-?\d+", folder.name)]
    if seeds or saes:
        return seeds or saes  # beside its seeds a run may hold what was made of them
    deeper = [f for f in folders if any(_holds_sae(g) for g in f.iterdir() if g.is_dir())]
    hint = f"; give one of its folders: {', '.join(f.name for f in deeper[:8])}" if deeper else ""
    raise FileNotFoundError(f"{path} holds no SAE, nor do the folders in it{hint}")


def _holds_sae(folder: Path) -> bool:
    try:
        return weights_in(folder) is not None
    except ValueError:
        return False  # many files of tensors, such as a store of activations


def _numbers(path: Path) -> list[tuple[int, str]]:
    """Names in the order of the numbers in them."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
