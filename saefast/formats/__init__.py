"""File formats of SAEs, one module each, and detection of a file's format."""

from pathlib import Path
from typing import Protocol

from saefast import checks
from saefast.formats import (
    batch_topk,
    dictionary_learning,
    gemma_scope,
    llamascopium,
    openai,
    qwen_scope,
    sae_lens,
    sparsify,
)
from saefast.formats.source import SourceFile
from saefast.formats.weights import SAEWeights


class Format(Protocol):
    """Interface of a format's module."""

    @property
    def NAME(self) -> str:
        """Name of the format, as given to `format=`."""

    @property
    def FILE(self) -> str | None:
        """File name within a folder if the format is a single file; None if it is a folder."""

    def recognises(self, found: SourceFile) -> bool:
        """Return whether the names of the tensors and the settings belong to the format."""

    def read(self, found: SourceFile) -> SAEWeights:
        """Return the SAE; ValueError names missing and unsupported parts, with the reason."""

    def write(self, parts: SAEWeights, folder: Path) -> None:
        """Write the files of the SAE; ValueError names the part that the format cannot hold."""


_MODULES: tuple[Format, ...] = (
    sae_lens,
    sparsify,
    dictionary_learning,
    openai,
    llamascopium,
    batch_topk,
    gemma_scope,
    qwen_scope,
)
FORMATS: dict[str, Format] = {module.NAME: module for module in _MODULES}


def format_of(found: SourceFile, name: str = "auto") -> Format:
    """Return the format of that name, or the one that recognises the file.

    Args:
        found: opened file.
        name: name of a format in `FORMATS`, or "auto" to detect it.

    Returns:
        Module of the format.
    """
    checks.one_of("format", name, ("auto", *FORMATS))
    if name != "auto":
        return FORMATS[name]
    fitting = [module for module in FORMATS.values() if module.recognises(found)]
    if len(fitting) == 1:
        return fitting[0]
    names = (
        ", ".join(repr(name) for name in sorted((*found.tensors, *found.values))[:12]) or "nothing"
    )
    if fitting:
        names = " or ".join(module.NAME for module in fitting)
        raise ValueError(f"{found.path} may be of the format {names}; choose one with format=...")
    if found.config_path is None:
        raise FileNotFoundError(
            f"{found.config_name} does not exist, nor does another config, and the tensors of "
            f"{found.path} ({names}) alone do not determine the format; give format=..."
        )
    raise ValueError(f"{found.path} is of no known format ({', '.join(FORMATS)}); it holds {names}")
