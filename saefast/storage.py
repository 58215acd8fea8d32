"""Read, write and convert SAEs on disk in any known format; map their features into memory."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary
from saefast.disk.atomic import PART
from saefast.disk.lock import Claim
from saefast.formats import FORMATS, format_of, sae_lens
from saefast.formats.source import beside_sae, find, weights_in
from saefast.formats.weights import SAEWeights, weights_of
from saefast.sae import SAE

_OLD = "old"


def load_sae(
    path: str | Path,
    format: str = "auto",
    allow_pickle: bool = False,
    *,
    k: int | None = None,
    threshold: float | None = None,
) -> SAE:
    """Read an SAE that `save_sae` or one of the known libraries wrote.

    What those compute, the SAE computes: where they normalise activations or values by factors
    that they store, the factors are folded into the weights. Where that cannot be, or what the
    file says is not all there is to it, a ValueError tells the reason.

    Args:
        path: a folder with one SAE in it, or a file of tensors; settings are looked for beside it.
        format: "auto" goes by the names and shapes of the tensors and the settings. Others:
            sae_lens, sparsify, dictionary_learning, openai, llamascopium, batch_topk, gemma_scope,
            qwen_scope.
        allow_pickle: whether a file that holds more than tensors may run the code in it. Only for
            files of people you trust.
        k: how many latents are active, for files that do not say so (Qwen Scope).
        threshold: what values must exceed, for BatchTopK SAEs whose files do not say so.

    Returns:
        The SAE, on the CPU. What the file said besides is in its `metadata`, and `save_sae` writes
        it again.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or Path, got {type(path).__name__}")
    parts = _read(Path(path), format, allow_pickle, k, threshold)
    return parts.as_sae(Path(path))


def save_sae(sae: SAE, path: str | Path, format: str = "sae_lens") -> Path:
    """Write `sae` as the folder `path`, replacing an SAE that is there; returns the path.

    The new folder is complete and on the disk before it gets its name, and the old one is removed
    last. A process that is killed leaves `.NAME.part` beside it, and the next attempt clears that;
    if it holds the old one, since the kill came between two renames, that is put back first.
    Where another process is writing to `path`, there is a BlockingIOError.

    Args:
        sae: what to write.
        path: the folder, a new one or one that holds an SAE and nothing else; for the formats that
            are one file (openai, gemma_scope, qwen_scope) the file, if `path` ends as its name does
            (.pt, .npz).
        format: one of those of `load_sae`. If it cannot hold the SAE, the ValueError says why.
            Only llamascopium chooses by norm; elsewhere such an SAE gets decoder rows of norm one,
            and values that are larger by their norms.
    """
    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be a saefast.SAE, got {type(sae).__name__}")
    return _write(weights_of(sae), Path(path), format)


def save_into(folder: Path, sae: SAE) -> None:
    """Write the files of `sae` into a folder that holds more, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    sae_lens.write(weights_of(sae), folder)


def convert(
    src: str | Path,
    dst: str | Path,
    to: str = "sae_lens",
    *,
    format: str = "auto",
    allow_pickle: bool = False,
    k: int | None = None,
    threshold: float | None = None,
) -> Path:
    """Read the SAE at `src` and write it at `dst` in the format `to`; returns `dst`.

    What is written is an SAE for inference, also where `src` is a checkpoint of a training or a
    backup: factors by which activations were scaled are folded in, since readers of such a folder
    would not apply them, and the optimiser's state stays behind. Firing rates come along where both
    formats have them.

    Args:
        src: a folder with one SAE in it, or a file of tensors.
        dst: where it is to be, as for `save_sae`.
        to: the format to write, one of those of `load_sae`.
        format: that of `src`; this and the rest as for `load_sae`.
        allow_pickle: whether a file that holds more than tensors may run the code in it.
        k: how many latents are active, for files that do not say so.
        threshold: what values must exceed, for BatchTopK SAEs whose files do not say so.
    """
    checks.one_of("to", to, tuple(FORMATS))
    parts = _read(Path(src), format, allow_pickle, k, threshold)
    return _write(weights_of(parts.as_sae(Path(src))), Path(dst), to)


def _read(
    path: Path, format: str, allow_pickle: bool, k: int | None, threshold: float | None
) -> SAEWeights:
    checks.one_of("format", format, ("auto", *FORMATS))
    if k is not None:
        checks.whole("k", k)
    if threshold is not None:
        checks.at_least("threshold", threshold, 0)
    found = find(path, allow_pickle, k, threshold)
    return format_of(found, format).read(found)


def _write(parts: SAEWeights, path: Path, format: str) -> Path:
    checks.one_of("format", format, tuple(FORMATS))
    writer = FORMATS[format]
    one_file = writer.FILE is not None and path.suffix == Path(writer.FILE).suffix
    if not one_file:
        _may_be_replaced(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _room_beside(path) as room:
        new = Path(tempfile.mkdtemp(dir=room))
        writer.write(parts, new)
        if writer.FILE is not None and one_file:
            (new / writer.FILE).replace(path)
            return path
        new.chmod(0o755)
        if path.exists():
            path.rename(room / _OLD)
        try:
            new.rename(path)
        finally:
            _bring_back(room, path)
    return path


def _may_be_replaced(path: Path) -> None:
    """All that is lost there is an older SAE: no run, no activations, nothing of the user's."""
    if path.is_dir():
        own = {module.FILE for module in FORMATS.values()}
        held = ", ".join([name for name in beside_sae(path) if name not in own][:8])
    else:
        held = "a file of that name" if path.exists() else ""
    if held:
        raise FileExistsError(
            f"path must be a new folder, or one that holds an SAE and nothing else, since it is "
            f"replaced, but at {path} there is {held}; choose another path"
        )


@contextlib.contextmanager
def _room_beside(path: Path) -> Iterator[Path]:
    """A folder for what is on its way to `path`; in the end it is gone, with all that is left.

    Its name is known, so that the next attempt clears what a killed process left; and it is
    claimed, so that nobody clears what another process is writing.
    """
    room = path.with_name(f".{path.name}{PART}")
    with Claim(room):
        _bring_back(room, path)
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)


def _bring_back(room: Path, path: Path) -> None:
    """What was at `path` and made way for something that never came."""
    if (room / _OLD).exists() and not path.exists():
        (room / _OLD).rename(path)


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
