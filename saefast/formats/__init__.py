"""Files of SAEs, ours and others': one module a format, and which of them a file is."""

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
    """What the module of a format has."""

    @property
    def NAME(self) -> str:
        """What users call it."""

    @property
    def FILE(self) -> str | None:
        """How its file is called in a folder, where one file is all of it."""

    def recognises(self, found: SourceFile) -> bool:
        """Whether the names of the tensors and the settings are its own."""

    def read(self, found: SourceFile) -> SAEWeights:
        """The SAE; a ValueError says what cannot be read or had here, and why."""

    def write(self, parts: SAEWeights, folder: Path) -> None:
        """Its files; a ValueError says what of the SAE it has no place for."""


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
    """The format of that name, or the one whose marks the file bears."""
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
        told = " or ".join(module.NAME for module in fitting)
        raise ValueError(f"{found.path} may be of the format {told}; say which, format=...")
    if found.config_path is None:
        raise FileNotFoundError(
            f"{found.config_name} does not exist, nor another config, and the tensors of "
            f"{found.path} ({names}) alone do not say what they are; give format=..."
        )
    raise ValueError(f"{found.path} is of no known format ({', '.join(FORMATS)}); it holds {names}")
