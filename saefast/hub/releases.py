"""SAEs by the names of SAELens's releases, from the registry that SAELens installs."""

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from saefast.formats.gemma_scope import HOOKS

_REGISTRY = "pretrained_saes.yaml"
_FORMATS = {
    None: "sae_lens",
    "sae_lens": "sae_lens",
    "dictionary_learning_1": "dictionary_learning",
    "gemma_2": "gemma_scope",
    "gemma_2_transcoder": "gemma_scope",
    "gemma_3": "gemma_scope",
    "llama_scope": "llamascopium",
    "qwen_scope": "qwen_scope",
}
"""Our format for each of SAELens's conversion functions that reads files of a format we read."""


class Released(NamedTuple):
    """An SAE of a release."""

    repository: str
    place: str
    """folder or file within the repository"""
    format: str
    settings: dict[str, Any]
    """settings that replace those of the file"""
    k: int | None
    """number of active latents, where only the name of the repository states it"""
    input_scale: float | None
    """factor by which activations are scaled, where only the registry states it"""


def is_release(name: str) -> bool:
    """Return whether SAELens is installed and has a release of that name."""
    path = _registry_path()
    return path is not None and name in _releases(path)


def find_released(release: str, sae_id: str | None) -> Released:
    """Return where an SAE of a release of SAELens is stored, and how to read it.

    Args:
        release: name of the release, such as "gpt2-small-res-jb".
        sae_id: name of the SAE within the release, such as "blocks.8.hook_resid_pre".

    Raises:
        ImportError: SAELens, which holds the registry, is not installed.
        ValueError: there is no such release or SAE, or its format is not supported.
    """
    path = _registry_path()
    if path is None:
        raise ImportError(
            f"the release {release!r} is looked up in the registry of SAELens, which is not "
            f"installed: pip install sae-lens; or give the name of its repository, 'organisation/"
            f"name', with subfolder=..."
        )
    releases = _releases(path)
    if release not in releases:
        raise ValueError(
            f"path must be the name of a release of SAELens where sae_id is given, got "
            f"{release!r}; similar names: {_similar(release, releases)}; for a repository of the "
            f"hub, give subfolder instead of sae_id"
        )
    entry = releases[release]
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if sae_id not in saes:
        raise ValueError(
            f"sae_id must name an SAE of the release {release!r}, such as "
            f"{_similar(sae_id or '', saes)}, got {sae_id!r}"
        )
    converter = entry.get("conversion_func")
    if converter not in _FORMATS:
        raise ValueError(
            f"the release {release!r} is stored in a format that only SAELens reads "
            f"({converter}): load it with sae_lens.SAE.from_pretrained({release!r}, {sae_id!r}) "
            f"and speed it up with saefast.integrations.sae_lens.accelerate"
        )
    format = _FORMATS[converter]
    scale = saes[sae_id].get("norm_scaling_factor") if format == "sae_lens" else None
    settings = dict(entry.get("config_overrides") or {}) if format == "sae_lens" else {}
    place = str(saes[sae_id]["path"])
    if format == "gemma_scope" and (converter == "gemma_2_transcoder" or "transcoder" in place):
        settings = _hooks_of_transcoder(place, converter)
    active = re.search(r"-L0_(\d+)$", entry["repo_id"]) if format == "qwen_scope" else None
    return Released(
        repository=entry["repo_id"],
        place=place,
        format=format,
        settings=settings,
        k=None if active is None else int(active.group(1)),
        input_scale=scale,
    )


def _hooks_of_transcoder(path: str, converter: str) -> dict[str, Any]:
    """Return the sites of a transcoder of Gemma Scope, whose files need not distinguish it."""
    layer = re.search(r"layer_(\d+)", path)
    block = "blocks" if layer is None else f"blocks.{layer[1]}"
    site = "hook_mlp_in" if converter == "gemma_3" else "ln2.hook_normalized"
    names = (f"{block}.{site}", f"{block}.hook_mlp_out")
    return dict(zip(HOOKS, names, strict=True))


def _registry_path() -> Path | None:
    # Importing SAELens would import transformer-lens and more, for seconds.
    spec = find_spec("sae_lens")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _REGISTRY
    return path if path.is_file() else None


@cache
def _releases(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # about ten times as fast
    found = yaml.load(path.read_bytes(), Loader=loader)
    return found if isinstance(found, dict) else {}


def _similar(name: str, known: Any) -> str:
    names = [str(each) for each in known]
    return ", ".join(
        repr(each) for each in difflib.get_close_matches(name, names, 6, 0.3) or names[:6]
    )
