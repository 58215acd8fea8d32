"""Refuse weights and moments that are NaN or infinite, which a training that diverged leaves."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from saefast.train.optimizer import Moments

NO_RESULT = "the training ends without a result"
"""Consequence of weights or moments that are NaN or infinite after the last step."""

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
        if not _is_finite(values, _MASKS.get(name)):
            raise ValueError(
                f"{consequence}, since {name} of {label} is NaN or infinite; a lower lr may help"
            )


def check_moments(label: str, moments: Mapping[str, Moments], consequence: str) -> None:
    """Raise a ValueError if a moment of Adam is NaN or infinite.

    The square of a gradient can exceed the range of its dtype while all weights are finite. Its
    weight does not change any more, since an infinite second moment stays infinite.

    Args:
        label: name of the SAE.
        moments: moments by name of the parameter.
        consequence: beginning of the error message.
    """
    for name, both in moments.items():
        for which, values in both._asdict().items():
            if not _is_finite(values):
                raise ValueError(
                    f"{consequence}, since the {which} moment of {name} of {label} is NaN or "
                    "infinite; activation_scaling or Rules(clip=...) may help"
                )


def _is_finite(values: Tensor, mask: float | None = None) -> bool:
    """Return whether all values are finite or equal to `mask`."""
    if values.numel() == 0:
        return True
    # Both are NaN if a value is.
    extremes = torch.stack(torch.aminmax(values.detach())).tolist()
    return all(math.isfinite(value) or value == mask for value in extremes)
