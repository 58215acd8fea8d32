"""Publish SAEs in repositories of the Hugging Face hub."""

import tempfile
from pathlib import Path

from saefast import checks
from saefast.formats import FORMATS
from saefast.formats.source import SAE_FILES
from saefast.formats.weights import weights_of
from saefast.hub.client import Unreachable, explained, hub_client
from saefast.hub.download import is_repository
from saefast.sae import SAE


def push_to_hub(
    sae: SAE,
    repository: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    format: str = "sae_lens",
    private: bool | None = None,
    message: str = "Add an SAE of saefast",
) -> str:
    """Publish an SAE in a repository of the Hugging Face hub, in one commit.

    The repository and the branch are created if they do not exist. An SAE that is already in
    `subfolder` is replaced: of its files, those that the new one does not have are deleted. Needs a
    token with the role write, from `hf auth login` or HF_TOKEN.

    Args:
        sae: SAE to publish.
        repository: name of the repository, "organisation/name".
        subfolder: folder of the SAE within the repository; None: its top.
        revision: branch to commit to; None: main.
        format: one of the formats of `load_sae`; SAELens loads the default.
        private: whether a new repository is private; None: as the organisation's settings say.
        message: message of the commit.

    Returns:
        Address of the commit.

    Raises:
        PermissionError: the token is missing, or may not write to the repository.
        ConnectionError: the hub cannot be reached.
        ImportError: huggingface_hub is not installed.
    """
    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be a saefast.SAE, got {type(sae).__name__}; load_sae loads one")
    checks.one_of("format", format, tuple(FORMATS))
    if not is_repository(repository):
        raise ValueError(
            f"repository must be the name of a repository, 'organisation/name', got {repository!r}"
        )
    client = hub_client(repository)
    single = [module.FILE for module in FORMATS.values() if module.FILE is not None]
    with tempfile.TemporaryDirectory(prefix="saefast-") as folder:
        FORMATS[format].write(weights_of(sae), Path(folder))
        try:
            with explained(client, repository, revision):
                client.create_repo(repository, private=private, exist_ok=True)
                if revision is not None:
                    client.create_branch(repository, branch=revision, exist_ok=True)
                commit = client.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    path_in_repo=(subfolder or "").strip("/") or None,
                    revision=revision,
                    commit_message=message,
                    delete_patterns=[*SAE_FILES, *single],
                )
        except Unreachable as error:
            raise ConnectionError(
                f"the hub at {client.endpoint} cannot be reached ({error}), and nothing was "
                f"published: check the connection, HF_ENDPOINT and HF_HUB_OFFLINE; save_sae writes "
                f"the SAE to a folder"
            ) from error
    return str(commit.commit_url)
