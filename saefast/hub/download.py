"""Download the files of an SAE from a repository of the Hugging Face hub, or find them cached."""

import difflib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from saefast.formats.source import ABOVE, BESIDE, CONFIGS, weights_among
from saefast.hub.cached import cached_copy
from saefast.hub.client import MAIN, Unreachable, explained, hub_client
from saefast.hub.reachable import LONGEST_WAIT


def is_repository(path: str) -> bool:
    """Return whether a string may be the name of a repository, "organisation/name"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path, re.ASCII) is not None


def download_sae(
    repository: str, *, subfolder: str | None = None, revision: str | None = None
) -> Path:
    """Download one SAE from a repository of the Hugging Face hub into the hub's cache.

    Only the files of the SAE are downloaded: its weights, its settings and the statistics beside
    it. If the hub cannot be reached, a copy in the cache serves, with a warning unless
    HF_HUB_OFFLINE is set.

    Args:
        repository: name of a repository of models, "organisation/name".
        subfolder: folder of the SAE within the repository, or the file of its weights; None: the
            top of the repository.
        revision: branch, tag or commit; None: the branch main.

    Returns:
        Folder or file in the cache, for `load_sae` and `load_dictionaries`. It belongs to the
        cache: do not change it.

    Raises:
        FileNotFoundError: the repository, the revision or the SAE does not exist.
        PermissionError: the repository is gated, or the token is not valid.
        ConnectionError: the hub cannot be reached, and the cache has no copy.
        ImportError: huggingface_hub is not installed.
    """
    if not is_repository(repository):
        raise ValueError(
            f"repository must be the name of a repository on the hub, 'organisation/name', got "
            f"{repository!r}"
        )
    client = hub_client(repository)
    place = (subfolder or "").strip("/")
    try:
        with explained(client, repository, revision):
            listed = client.model_info(repository, revision=revision, timeout=LONGEST_WAIT)
        names = [each.rfilename for each in listed.siblings or ()]
        wanted = _sae_among(names, place, f"{repository} (revision {revision or MAIN})")
        with explained(client, repository, revision):
            root = _download(client, repository, revision, wanted.files)
    except Unreachable as error:
        root, names = cached_copy(client, repository, revision, error)
        wanted = _sae_among(names, place, f"the cached copy of {repository}, {root},")
    return root / wanted.path


class _Wanted(NamedTuple):
    """Files of an SAE within a repository."""

    path: str
    """folder or file, for `load_sae`"""
    files: list[str]
    """the weights last: where they are cached, the others are"""


def _sae_among(names: Collection[str], place: str, where: str) -> _Wanted:
    """Return the files of the SAE at `place`, or raise a FileNotFoundError that lists places."""
    if place in names:
        folder = Path(place).parent
        settings = [folder / name for name in (*CONFIGS, *BESIDE)]
        settings += [folder.parent / name for name in ABOVE]
        return _Wanted(place, [*_present(settings, names), place])
    inside = {
        name.removeprefix(f"{place}/"): name for name in names if name.startswith(f"{place}/")
    }
    if not place:
        inside = {name: name for name in names}
    weights = weights_among(inside, f"{where} in {place or 'its top folder'}") if inside else None
    if weights is None:
        raise FileNotFoundError(_no_sae(names, place, where))
    settings = [Path(place) / name for name in (*CONFIGS, *BESIDE)]
    return _Wanted(place, [*_present(settings, names), inside[weights]])


def _present(paths: Collection[Path], names: Collection[str]) -> list[str]:
    wanted = dict.fromkeys(path.as_posix() for path in paths)
    return [name for name in wanted if name in names]


def _no_sae(names: Collection[str], place: str, where: str) -> str:
    """Return a message on the missing SAE, with folders that hold SAEs, similar names first."""
    folders: dict[str, list[str]] = {}
    for name in names:
        parent, _, file = name.rpartition("/")
        folders.setdefault(parent, []).append(file)
    holding = sorted(folder for folder, files in folders.items() if folder and _holds_sae(files))
    near = difflib.get_close_matches(place, holding, 6, 0.3) or holding[:6]
    missing = f"{where} holds no SAE in {place}" if place else f"{where} holds no SAE at its top"
    if not near:
        return f"{missing}, nor in any of its folders"
    more = f" and {len(holding) - len(near)} more" if len(holding) > len(near) else ""
    listed = ", ".join(repr(folder) for folder in near)
    return f"{missing}; give subfolder=..., one of {listed}{more}"


def _holds_sae(files: Collection[str]) -> bool:
    try:
        return weights_among(files, "") is not None
    except ValueError:
        return True  # several: a file must be chosen


def _download(client: Any, repository: str, revision: str | None, files: list[str]) -> Path:
    """Download files of one commit, and return the folder of the commit in the cache."""
    root = None
    for name in files:
        # The first call notes in the cache what the branch is at; the others stay at that commit.
        at = revision if root is None else root.name
        local = Path(client.hf_hub_download(repository, name, revision=at))
        root = local.parents[name.count("/")]
    assert root is not None
    return root
