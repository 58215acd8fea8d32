"""Load, save and convert SAEs in any supported format, and memory-map their features."""

from pathlib import Path

import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary
from saefast.disk.atomic import make_folder, write_tensors
from saefast.formats import FORMATS, format_of, sae_lens
from saefast.formats.replacing import write_sae
from saefast.formats.sae_folders import saes_at
from saefast.formats.source import find
from saefast.formats.weights import weights_of
from saefast.hub.locate import open_sae
from saefast.sae import SAE


def load_sae(
    path: str | Path,
    format: str = "auto",
    allow_pickle: bool = False,
    *,
    k: int | None = None,
    threshold: float | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    sae_id: str | None = None,
    verify: bool = True,
) -> SAE:
    """Load an SAE written by `save_sae` or by one of the supported libraries.

    The loaded SAE computes the same function as in the library that wrote it: stored factors by
    which that library normalises activations or values are folded into the weights.

    Args:
        path: a folder that holds one SAE, or a file of tensors with its settings beside it. A str
            "organisation/name", if there is no such path, is a repository of the Hugging Face hub,
            of which the SAE is downloaded into the hub's cache (extra `hub`); see `download_sae`.
        format: "auto" detects the format from the names and shapes of the tensors and from the
            settings. Others: sae_lens, sparsify, dictionary_learning, openai, llamascopium,
            batch_topk, gemma_scope, qwen_scope.
        allow_pickle: whether to unpickle a file that holds more than tensors, which can run
            arbitrary code. Use it only with files from a source you trust.
        k: number of active latents, for files that do not store it (Qwen Scope).
        threshold: activation threshold, for BatchTopK SAEs whose files do not store it.
        subfolder: folder of the SAE, or file of its weights, within a repository.
        revision: branch, tag or commit of a repository; None: the branch main.
        sae_id: name of an SAE of the SAELens release `path`, looked up in the registry that SAELens
            installs: `load_sae("gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre")`.
        verify: whether to compare files with the checksums in them. Those of saefast have one for
            each tensor, those of torch and numpy the CRC-32 of their archives; others have none.

    Returns:
        The SAE, on the CPU. Further contents of the file are kept in its `metadata`, which
        `save_sae` writes again.

    Raises:
        ValueError: the SAE cannot be represented, the file is damaged, or it lacks required
            settings.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"path must be a str or Path, got {type(path).__name__}")
    _check_settings(format, k, threshold)
    found, known = open_sae(
        path,
        allow_pickle,
        k=k,
        threshold=threshold,
        subfolder=subfolder,
        revision=revision,
        sae_id=sae_id,
        verify=verify,
    )
    return format_of(found, known if format == "auto" else format).read(found).as_sae(found.path)


def save_sae(sae: SAE, path: str | Path, format: str = "sae_lens") -> Path:
    """Save an SAE as the folder `path`, replacing an SAE that is already there.

    The new folder is complete and flushed to disk before it is renamed to `path`, and the old one
    is removed last. A killed process leaves `.NAME.part` beside it, which the next call removes; if
    that folder holds the old SAE, because the process was killed between two renames, the old SAE
    is restored first.

    Args:
        sae: the SAE to save.
        path: a folder that does not exist or that holds an SAE and nothing else. For the formats
            that consist of one file (openai, gemma_scope, qwen_scope), the file, if `path` has its
            suffix (.pt, .npz).
        format: one of the formats of `load_sae`. Only llamascopium supports `by_norm`; in other
            formats such an SAE is stored with decoder rows of norm one and with values multiplied
            by the former norms.

    Returns:
        The path.

    Raises:
        ValueError: the format cannot represent the SAE.
        FileExistsError: `path` holds anything but an SAE.
        BlockingIOError: another process is writing to `path`.
    """
    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be a saefast.SAE, got {type(sae).__name__}")
    return write_sae(weights_of(sae), Path(path), format)


def save_into(folder: Path, sae: SAE, write_weights: sae_lens.WriteTensors = write_tensors) -> None:
    """Write the files of an SAE into a folder that may hold other files, each file atomically.

    Args:
        folder: the folder.
        sae: the SAE.
        write_weights: function that writes the file of weights, whose tensors it is given.
    """
    make_folder(folder)
    sae_lens.write(weights_of(sae), folder, write_weights)


def convert(
    src: str | Path,
    dst: str | Path,
    to: str = "sae_lens",
    *,
    format: str = "auto",
    allow_pickle: bool = False,
    k: int | None = None,
    threshold: float | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    sae_id: str | None = None,
) -> Path:
    """Convert the SAE at `src` to the format `to` and save it at `dst`.

    The result is an SAE for inference, even if `src` is a training checkpoint: factors by which
    activations were scaled are folded into the weights, since readers of the target format would
    not apply them, and the optimiser's state is dropped. Firing rates are kept if both formats
    store them.

    Args:
        src: a folder that holds one SAE, a file of tensors, or a name, as for `load_sae`.
        dst: destination, as for `save_sae`.
        to: the format to write, one of the formats of `load_sae`.
        format: the format of `src`, as for `load_sae`.
        allow_pickle: whether to unpickle a file that holds more than tensors, as for `load_sae`.
        k: number of active latents, for files that do not store it.
        threshold: activation threshold, for BatchTopK SAEs whose files do not store it.
        subfolder: folder or file within a repository, as for `load_sae`.
        revision: branch, tag or commit of a repository.
        sae_id: name of an SAE of a SAELens release.

    Returns:
        The path `dst`.
    """
    checks.one_of("to", to, tuple(FORMATS))
    sae = load_sae(
        src,
        format,
        allow_pickle,
        k=k,
        threshold=threshold,
        subfolder=subfolder,
        revision=revision,
        sae_id=sae_id,
    )
    return write_sae(weights_of(sae), Path(dst), to)


def _check_settings(format: str, k: int | None, threshold: float | None) -> None:
    checks.one_of("format", format, ("auto", *FORMATS))
    if k is not None:
        checks.whole("k", k)
    if threshold is not None:
        checks.at_least("threshold", threshold, 0)


def load_dictionaries(
    *paths: str | Path,
    encoder: bool = False,
    format: str = "auto",
    allow_pickle: bool = False,
    verify: bool = True,
) -> list[Dictionary]:
    """Load the features of SAEs on disk for matching, scoring and pooling.

    Rows are memory-mapped views of the files: they occupy memory only when they are read, and the
    operating system can reclaim it. This holds for safetensors files, torch files and uncompressed
    arrays.

    Args:
        paths: SAEs in any of the formats of `load_sae`, or folders of SAEs: a run with seed-0,
            seed-1, ..., a hookpoint with seed0, seed1, ..., or a sweep with trainer_0,
            trainer_1, ...; these are loaded in numerical order.
        encoder: whether to load the encoder's rows and biases as well.
        format: format of all SAEs; "auto" detects the format of each.
        allow_pickle: whether to unpickle files that hold more than tensors, as for `load_sae`.
        verify: whether to compare files with the checksums in them, as for `load_sae`, for which
            they are read once; False: rows are read when they are used.

    Returns:
        A `Dictionary` for each SAE, with firing rates if the files store them.

    Raises:
        FileNotFoundError: a path holds no SAE, nor do its folders.
    """
    if not paths:
        raise ValueError("paths must name at least one SAE or folder of SAEs, got none")
    for given in paths:
        if not isinstance(given, str | Path):
            raise TypeError(
                f"paths must be str or Path, each as a separate argument, got "
                f"{type(given).__name__}; pass a list as load_dictionaries(*paths)"
            )
    return [
        _dictionary(path, encoder, format, allow_pickle, verify)
        for given in paths
        for path in saes_at(Path(given))
    ]


def _dictionary(
    path: Path, encoder: bool, format: str, allow_pickle: bool, verify: bool
) -> Dictionary:
    # Settings that some files lack (k, threshold) decide which latents are active, not the rows.
    found = find(path, allow_pickle, k=1, threshold=0.0, verify=verify)
    parts = format_of(found, format).read(found)
    return Dictionary(
        _usable(parts.W_dec),
        W_enc=_usable(parts.W_enc) if encoder else None,
        b_enc=_usable(parts.b_enc) if encoder else None,
        b_dec=_usable(parts.b_dec),
        firing_rate=parts.firing_rate,
        centred=parts.centred,
    )


def _usable(values: Tensor) -> Tensor:
    return values if values.dtype in checks.DTYPES else values.to(torch.float32)
