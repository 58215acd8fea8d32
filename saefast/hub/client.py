"""Client of the Hugging Face hub, whose failures become errors that name a remedy."""

import contextlib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

MAIN = "main"
"""Default branch, used if no revision is given."""
OFFLINE = "HF_HUB_OFFLINE is set"
"""Reason of `Unreachable` where the user's settings forbid requests to the hub."""


class Unreachable(ConnectionError):
    """The hub cannot be reached; the message is the reason, without a remedy."""


def hub_client(name: str) -> Any:
    """Return a client of the hub, an instance of `huggingface_hub.HfApi`.

    Args:
        name: repository or path that is wanted, for the error message.

    Raises:
        ImportError: if huggingface_hub is not installed.
    """
    return hub_package(name).HfApi(library_name="saefast", library_version=version("saefast"))


def hub_package(name: str) -> Any:
    """Import huggingface_hub, or raise an ImportError with the command that installs it."""
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"{name} does not exist here, and to look for it on the Hugging Face hub, the package "
            f"huggingface_hub is needed: pip install 'saefast[hub]' ({error})"
        ) from error


@contextlib.contextmanager
def explained(client: Any, repository: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub into built-in ones that say in one sentence what to do.

    Args:
        client: client from `hub_client`.
        repository: repository that is asked for, "organisation/name".
        revision: its branch, tag or commit, as given by the user.

    Raises:
        Unreachable: no connection, or the hub is offline by its own settings.
        FileNotFoundError: there is no such repository, revision or file.
        PermissionError: the repository is gated, or the token does not suffice.
        ConnectionError: the hub answered with another error.
    """
    errors = import_module("huggingface_hub.errors")
    # The classes of the HTTP library, which differ between versions of huggingface_hub.
    answered = errors.HfHubHTTPError
    transport = tuple(c for c in answered.__mro__[1:] if c.__module__ != "builtins")
    where = f"{repository} on the hub at {client.endpoint}"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise Unreachable(OFFLINE) from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{where} is gated: accept its terms on the page {client.endpoint}/{repository}, then "
            f"log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} is neither a path here nor a repository that you can read on the hub at "
            f"{client.endpoint}: check the spelling; for a private one, log in with "
            f"`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"revision {revision!r} does not exist in {where}; revision must be "
            f"{_revisions(client, repository)}"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # not cached, and the hub did not answer
        raise Unreachable(_first_line(error.__cause__ or error)) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{where} lacks a file: {_first_line(error)}") from error
    except errors.HfHubHTTPError as error:
        raise _refused(where, error) from error
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(_no_token(where)) from error
    except errors.FileMetadataError as error:
        raise ConnectionError(
            f"{where} does not answer as a hub does ({_first_line(error)}); check HF_ENDPOINT and "
            f"the proxy settings"
        ) from error
    except transport as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the connection's
        raise Unreachable(_first_line(error) or type(error).__name__) from error


def _refused(where: str, error: Any) -> OSError:
    status = error.response.status_code
    if status == 401:
        return PermissionError(_no_token(where))
    if status == 403:
        return PermissionError(
            f"the token may not do this to {where}: log in with `hf auth login` with a token that "
            f"has the role write, as a member of the organisation ({_first_line(error)})"
        )
    reason = _first_line(error)
    return ConnectionError(f"{where} cannot be used now: {reason}; try again later")


def _no_token(where: str) -> str:
    return (
        f"the token for {where} is missing, invalid or expired: log in with `hf auth login`, or "
        f"set HF_TOKEN"
    )


def _revisions(client: Any, repository: str) -> str:
    """Return the branches and tags in words; if they cannot be listed, the kinds of revisions."""
    try:
        refs = client.list_repo_refs(repository)
    except Exception:  # only to make the message of another error more helpful
        return "one of its branches, tags or commits"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f"a commit or one of {', '.join(names[:12])}" if names else "one of its commits"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
