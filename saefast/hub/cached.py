"""Copies of repositories in the hub's cache, for a hub that cannot be reached."""

import warnings
from pathlib import Path
from typing import Any

from saefast.hub.client import OFFLINE, Unreachable


def cached_copy(
    client: Any, repository: str, revision: str | None, reason: Unreachable
) -> tuple[Path, list[str]]:
    """Find the cached copy of a repository, and warn that it is used, unless by request.

    Args:
        client: client from `hub_client`.
        repository: name of a repository of models.
        revision: branch, tag or commit; None: the branch main.
        reason: why the hub cannot be asked.

    Returns:
        Folder of the revision in the cache, and the paths of the files in it.

    Raises:
        ConnectionError: the cache has no copy; the message holds the reason.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No pattern: which files the folder must hold is decided by its contents.
        root = Path(
            client.snapshot_download(
                repository, revision=revision, allow_patterns=[], local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        at = "" if revision is None else f" at revision {revision!r}"
        raise ConnectionError(
            f"{repository}{at} is neither a path here nor in the cache {constants.HF_HUB_CACHE}, "
            f"and the hub at {client.endpoint} cannot be reached ({reason}): check the connection, "
            f"HF_ENDPOINT and HF_HUB_OFFLINE, or give the path of a folder on this machine"
        ) from reason
    if str(reason) != OFFLINE:
        warnings.warn(
            f"the hub at {client.endpoint} cannot be reached ({reason}): {repository} is read "
            f"from the cache, at commit {root.name}",
            stacklevel=3,
        )
    return root, [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
