"""Capture of the activations of padded batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saefast.lm.model import LanguageModel
from saefast.lm.packing import TokenBatch
from saefast.lm.sites import Site, capture

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_COARSE = 1e-2
"""Relative distance of a row in half precision that may be due to rounding"""


class BatchCapture:
    """Captures of batches, in which no token depends on padding.

    Padding is masked where tokens attend to later ones, as in encoders. In a causal model padding
    on the right changes nothing, and a mask would cost time.

    Args:
        model: the model.
        sites: sites of the activations.
    """

    def __init__(self, model: LanguageModel, sites: Sequence[Site]) -> None:
        self._model, self._sites = model, sites
        # Not at the first padded batch: the comparison waits for the device.
        self._masks = _reads_ahead(model, sites)

    def __call__(self, batch: TokenBatch) -> list[Tensor]:
        """Return the activations [contexts, length, d] of each site."""
        ids, named = batch.ids.long(), {}
        if self._masks and not bool(batch.real.all()):
            named["attention_mask"] = batch.real.long().to(self._model.device)
        return capture(self._model.model, self._sites, ids, **named)


def _reads_ahead(model: LanguageModel, sites: Sequence[Site]) -> bool:
    """Return whether the activation of a token depends on the token after it."""
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[0, 0], [0, 1 % vocabulary], [0, vocabulary // 2]])
    for seen in capture(model.model, sites, ids):
        first = seen[:, 0].double()
        distance = torch.linalg.vector_norm(first - first[0], dim=1).max()
        allowed = _TOLERANCE.get(seen.dtype, _COARSE)
        if distance > allowed * torch.linalg.vector_norm(first[0]):
            return True
    return False
