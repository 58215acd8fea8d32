"""Refuse weights that are NaN or infinite, which a training that diverged leaves."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

NO_RESULT = "the training ends without a result"
"""Consequence of weights that are NaN or infinite after the last step."""

_MASKS = {"b_enc": -math.inf, "jump_threshold": math.inf}
"""Values by which a latent is masked, of each weight that can mask latents."""


def check_weights(label: str, weights: Mapping[str, Tensor], consequence: str) -> None:
    """Raise a ValueError if a weight is NaN or infinite, unless it masks a latent.

    No copy of the weights is made. On a GPU the host waits for two numbers of each tensor.

    Args:
        label: name of the SAE.
        weights: tensors of any shape by name.
        consequence: beginning of the error message.
    """
    for name, values in weights.items():
        if values.numel() == 0:
            continue
        # Both are NaN if a value is.
        extremes = torch.stack(torch.aminmax(values.detach())).tolist()
        if not all(math.isfinite(value) or value == _MASKS.get(name) for value in extremes):
            raise ValueError(
                f"{consequence}, since {name} of {label} is NaN or infinite; a lower lr may help"
            )
