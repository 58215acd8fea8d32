"""A linear "language model": an entity is a sum of vectors, one for each of its values."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="needs saefast[lm]")

from transformers import PreTrainedTokenizerFast

import saefast
from saefast.evaluation.editing.facts import Facts
from saefast.lm import LanguageModel

ATTRIBUTES, VALUES, ENTITIES, TEMPLATES = ("colour", "shape", "size"), 5, 120, 4
D = len(ATTRIBUTES) * VALUES


def value(attribute: int, number: int) -> str:
    return f"{ATTRIBUTES[attribute]}{number}"


def entity_values() -> Tensor:
    """Return [entities, attributes], the index of each value."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(VALUES, (ENTITIES, len(ATTRIBUTES)), generator=generator)


def facts() -> Facts:
    """Return all facts."""
    numbers = entity_values().tolist()
    return Facts(
        kind="thing",
        entities=tuple(f"thing{entity}" for entity in range(ENTITIES)),
        values={
            name: tuple((value(a, its[a]),) for its in numbers) for a, name in enumerate(ATTRIBUTES)
        },
        templates={
            name: tuple(f"number {t} says that the {name} of {{}} is" for t in range(TEMPLATES))
            for name in ATTRIBUTES
        },
        template_splits=dict.fromkeys(ATTRIBUTES, ("train", "test") * (TEMPLATES // 2)),
    )


def directions(turned: bool = False) -> Tensor:
    """Return [D, d] with an orthonormal row for each value."""
    if not turned:
        return torch.eye(D)
    generator = torch.Generator().manual_seed(6)
    return torch.linalg.qr(torch.randn(D, D, generator=generator))[0]


class _Sum(nn.Module):
    """Attention that sums all earlier positions, so that the last one has the entity."""

    def forward(self, h: Tensor) -> Tensor:
        return h.cumsum(1)


class _Linear(nn.Module):
    def __init__(self, embedding: Tensor, readout: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))
        self.embedding = nn.Embedding.from_pretrained(embedding)
        self.layers = nn.ModuleList([nn.Identity(), _Sum()])
        self.readout = nn.Parameter(readout, requires_grad=False)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        h = self.embedding(input_ids)
        for layer in self.layers:
            h = layer(h)
        return SimpleNamespace(logits=h @ self.readout.T)


def linear_lm(*, turned: bool = False) -> LanguageModel:
    """Build the model; of equal logits the later value wins, since read-outs grow with index."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = facts()
    words = sorted(
        {
            *(
                word
                for texts in known.templates.values()
                for text in texts
                for word in text.split()
            ),
            *known.entities,
            *(value(a, v) for a in range(len(ATTRIBUTES)) for v in range(VALUES)),
        }
    )
    vocabulary = {word: number for number, word in enumerate(["?", *words])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rows = directions(turned)
    embedding, readout = torch.zeros(len(vocabulary), D), torch.zeros(len(vocabulary), D)
    for entity, its in enumerate(entity_values().tolist()):
        chosen = [a * VALUES + number for a, number in enumerate(its)]
        embedding[vocabulary[known.entities[entity]]] = rows[chosen].sum(0)
    for a in range(len(ATTRIBUTES)):
        for v in range(VALUES):
            readout[vocabulary[value(a, v)]] = (1 + 0.01 * v) * rows[a * VALUES + v]
    model = _Linear(embedding, readout).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    return LanguageModel(model, tokenizer, "linear")


def true_sae(*, turned: bool = False, scale: float = 1.0) -> saefast.SAE:
    """Return the SAE whose latents are the values."""
    sae = saefast.SAE(D, D, k=len(ATTRIBUTES))
    with torch.no_grad():
        sae.W_enc.copy_(directions(turned) * scale)
        sae.W_dec.copy_(directions(turned) / scale)
    return sae.requires_grad_(False)
