"""activation_covariance equals numpy's, far from the origin and for any batch size."""

import numpy as np
import pytest
import torch
from helpers.strategies import normal
from helpers.tolerance import assert_same_bits

import saefast


def measure(x, **options):
    return saefast.activation_covariance(x, progress=False, **options)


@pytest.mark.parametrize("batch_size", [1000, 333, 7])
def test_it_equals_numpy(batch_size):
    x = normal((1000, 9), 0, torch.float32) @ normal((9, 9), 1, torch.float32) + 3
    expected = torch.from_numpy(np.cov(x.double().numpy(), rowvar=False))
    found = measure(x, batch_size=batch_size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert_same_bits(found, found.T.contiguous())


def test_a_large_mean_costs_no_precision():
    x = normal((500, 4), 0, torch.float64)
    far = x + 2.0**30
    expected = torch.from_numpy(np.cov((far - 2.0**30).numpy(), rowvar=False))
    found = saefast.activation_covariance(
        saefast.activations.TensorActivations(far, dtype=torch.float64), progress=False
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_only_the_given_number_of_rows_is_read():
    x = normal((500, 4), 0, torch.float32)
    assert not torch.equal(measure(x, rows=100), measure(x))
    with pytest.raises(ValueError, match="rows must be at least 2"):
        measure(x, rows=1)
    with pytest.raises(ValueError, match="activations hold NaN or infinity: the tensor, row"):
        measure(torch.full((5, 2), torch.nan))


def test_the_same_bits_on_any_number_of_threads(torch_threads):
    x = normal((3000, 600), 0, torch.float32)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(measure(x, batch_size=1024))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="rows must be at least 2, got 1"):
        measure(torch.ones(1, 3))
