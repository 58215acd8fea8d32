"""The order of rows: each once per epoch, far from its neighbours, and fixed across versions."""

from itertools import islice

import numpy as np
from helpers.sources import numbered
from helpers.strategies import seeds
from hypothesis import given
from hypothesis import strategies as st

from saefast.activations import TensorActivations
from saefast.activations.order import Order, permutation


@given(
    rows=st.integers(1, 200),
    block=st.integers(1, 60),
    window=st.integers(1, 120),
    seed=seeds,
    position=st.integers(0, 700),
)
def test_windows_have_every_row_once_and_skip_exactly(
    rows: int, block: int, window: int, seed: int, position: int
) -> None:
    def drawn(start: int, n: int) -> np.ndarray:
        found: list[np.ndarray] = []
        for part in order.windows(start):
            read = np.concatenate([np.arange(*span) for span in part.spans])
            assert np.array_equal(read[part.places], part.rows)
            assert len(read) <= max(window, block)
            assert all(a[1] < b[0] for a, b in zip(part.spans, part.spans[1:], strict=False))
            found.append(part.rows)
            if sum(map(len, found)) >= n:
                break
        return np.concatenate(found)[:n]

    order = Order(rows, seed, block, window)
    everything = drawn(0, position + 3 * rows)
    for epoch in range(3):
        part = everything[epoch * rows : (epoch + 1) * rows]
        assert np.array_equal(np.sort(part), np.arange(rows))
    assert np.array_equal(everything[position:], drawn(position, 3 * rows))


def test_shuffling_separates_neighbours() -> None:
    """Neighbours in the data are not neighbours in the order, and all places are equally likely."""
    order = Order(10_000, 0, 50, 2000)
    drawn = np.concatenate([part.rows for part in islice(order.windows(0), 5)])
    assert len(drawn) == 10_000
    assert abs(np.corrcoef(np.arange(10_000), drawn)[0, 1]) < 0.3
    assert (np.abs(np.diff(drawn)) < 5).mean() < 0.02


def test_the_order_is_pinned() -> None:
    """These values never change, so that a later saefast or NumPy can resume a training."""
    assert permutation(10, 7, 1, 2).tolist() == [1, 3, 8, 5, 4, 7, 0, 9, 2, 6]
    window = next(Order(1000, 5, 10, 100).windows(1234))
    assert window.rows[:5].tolist() == [630, 321, 698, 834, 671]
    source = TensorActivations(numbered())
    assert next(source.batches(8, seed=5, start=40)).rows.tolist() == [
        *(101, 36, 61, 48, 2, 24, 99, 73)
    ]
