"""Whether the hub answers, asked once: transformers and datasets retry each file for 23 s."""

from typing import Literal

from saefast.hub.cached import cached_copy
from saefast.hub.client import Unreachable, explained, hub_client

LONGEST_WAIT = 10.0
"""Seconds to wait for the first answer of the hub."""


def require_hub(repository: str, kind: Literal["model", "dataset"]) -> None:
    """Raise `Unreachable` if the hub does not answer a question about a repository.

    Any answer is enough: a missing repository is reported by the package that downloads it.

    Args:
        repository: name of a repository.
        kind: kind of the repository.
    """
    client = hub_client(repository)
    try:
        with explained(client, repository, None):
            client.repo_info(repository, repo_type=kind, timeout=LONGEST_WAIT)
    except Unreachable:
        raise
    except (OSError, ValueError):  # ValueError: not the name of a repository
        return


def cache_must_serve(repository: str) -> bool:
    """Return whether a model must be read from the hub's cache, since the hub cannot be reached.

    Args:
        repository: name of a repository of models.

    Raises:
        ConnectionError: the hub cannot be reached, and the cache has no copy.
    """
    try:
        require_hub(repository, "model")
    except Unreachable as reason:
        cached_copy(hub_client(repository), repository, None, reason)
        return True
    return False
