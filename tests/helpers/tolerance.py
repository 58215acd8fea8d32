"""Tolerances of results: at most the error of torch at the same dtype."""

import numpy as np
import torch
from torch import Tensor


def true_dots(rows: Tensor, others: Tensor) -> Tensor:
    """Return rows[i] . others[i, c] in more digits than float64, rounded to float64 once."""
    wide, wide_others = (t.double().numpy().astype(np.longdouble) for t in (rows, others))
    return torch.from_numpy((wide[:, None] * wide_others).sum(-1).astype(np.float64))


def assert_no_worse_than_torch(actual: Tensor, at_dtype: Tensor, truth: Tensor) -> None:
    """Assert an error of at most torch's in `at_dtype`, or two roundings of the result.

    `truth` is float64. The tolerance does not depend on the environment.
    """
    assert actual.shape == truth.shape
    assert actual.dtype == at_dtype.dtype
    assert not actual.isnan().any()
    if actual.numel() == 0:
        return
    rounding = 2 * torch.finfo(actual.dtype).eps * truth.abs().max()
    allowed = torch.maximum((at_dtype.double() - truth).abs().max(), rounding)
    error = (actual.double() - truth).abs().max()
    assert error <= allowed, f"error {error:.3g}, torch's {allowed:.3g}"


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert equality of every bit, shape and dtype."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
