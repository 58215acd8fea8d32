"""Location of an SAE by name: a path, a repository of the hub, or a release of SAELens."""

from dataclasses import replace
from pathlib import Path

from saefast.formats.source import SourceFile, find
from saefast.hub.download import download_sae, is_repository
from saefast.hub.releases import Released, find_released, is_release


def open_sae(
    path: str | Path,
    allow_pickle: bool,
    *,
    k: int | None,
    threshold: float | None,
    subfolder: str | None,
    revision: str | None,
    sae_id: str | None,
    verify: bool,
) -> tuple[SourceFile, str]:
    """Open the file of an SAE, after a download if it is not on this machine.

    Args:
        path: folder or file; or, if there is none of that name, the name of a repository of the
            hub, or of a release of SAELens.
        allow_pickle: whether to unpickle a file that holds more than tensors.
        k: number of active latents, for files that do not store it.
        threshold: activation threshold, for files that do not store it.
        subfolder: folder or file of the SAE within a repository.
        revision: branch, tag or commit of a repository.
        sae_id: name of the SAE within a release of SAELens.
        verify: whether to compare files with the checksums in them.

    Returns:
        The opened file, and its format if a release states it, otherwise "auto".
    """
    local, released = _locate(path, subfolder, revision, sae_id)
    if released is None:
        return find(local, allow_pickle, k, threshold, verify), "auto"
    found = find(local, allow_pickle, released.k if k is None else k, threshold, verify)
    settings = {**found.config, **released.settings}
    return replace(found, config=settings, input_scale=released.input_scale), released.format


def _locate(
    path: str | Path, subfolder: str | None, revision: str | None, sae_id: str | None
) -> tuple[Path, Released | None]:
    local = Path(path)
    given = {"subfolder": subfolder, "revision": revision, "sae_id": sae_id}
    asked = [name for name, value in given.items() if value is not None]
    if local.exists():
        if asked:
            raise ValueError(
                f"{asked[0]} must be None unless path names a repository of the hub or a release, "
                f"but {path} exists on this machine; to read it, give its folder as path alone"
            )
        return local, None
    if isinstance(path, str) and sae_id is not None:
        if subfolder is not None:
            raise ValueError("subfolder must be None where sae_id is given: a release states it")
        released = find_released(path, sae_id)
        folder = download_sae(released.repository, subfolder=released.place, revision=revision)
        return folder, released
    if isinstance(path, str) and is_repository(path):
        return download_sae(path, subfolder=subfolder, revision=revision), None
    if asked:
        raise ValueError(
            f"{asked[0]} must be None unless path is a str that names a repository of the hub, "
            f"'organisation/name', or a release of SAELens, got {path!r}"
        )
    if is_release(str(path)):
        find_released(str(path), None)  # raises an error that lists the SAEs of the release
    return local, None
