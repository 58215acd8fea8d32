"""Activations from an iterator, which is read once and whose items are all checked."""

from collections.abc import Iterator

import pytest
import torch
from helpers.sources import D, numbered, take
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from saefast.activations import IteratorActivations, open_activations


def test_the_error_at_the_end_of_an_iterator_states_its_rows() -> None:
    batches = IteratorActivations(iter(numbered().split(17))).batches(50, seed=0)
    assert len(take(batches, 2)) == 2
    with pytest.raises(ValueError, match=r"ended after 103 rows .* train on at most 100 tokens"):
        next(batches)


def test_an_iterator_is_read_once() -> None:
    source = IteratorActivations(iter(numbered().split(17)))
    next(source.batches(5, seed=0))
    with pytest.raises(ValueError, match="has been read"):
        source.batches(5, seed=0)


def test_a_loader_of_one_tensor_yields_rows() -> None:
    x = torch.randn(50, 3)
    for rows in (DataLoader(TensorDataset(x), batch_size=8), [(x.numpy(),)], [[x]]):
        batches = open_activations(rows).batches(20, seed=0)
        first = next(batches)
        assert torch.equal(first.x, x[:20])
        assert first.target is None


def test_an_iterator_may_reuse_memory() -> None:
    def parts() -> Iterator[Tensor]:
        room = torch.empty(10, D)
        for part in numbered(100).split(10):
            yield room.copy_(part)

    for batch_size in (5, 10, 25):
        batches = take(IteratorActivations(parts()).batches(batch_size, seed=0), 100 // batch_size)
        assert torch.equal(torch.cat([batch.x for batch in batches]), numbered(100))


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ValueError, "empty"),
        ([torch.zeros(3)], ValueError, r"item 0 of source must have shape \[n, d\]"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], ValueError, "item 1 of source must have width 4"),
        ([torch.zeros(3, 4), "rows"], TypeError, "item 1 of source must be a torch.Tensor"),
        ([torch.zeros(3, 4).int()], TypeError, "got int32"),
        ([(torch.zeros(3, 4), torch.zeros(2, 4))], ValueError, "as many targets as rows, 3, got 2"),
        ([(torch.zeros(3, 4),) * 3], ValueError, "got 3 values"),
        ([[0.0, 1.0, 2.0]], ValueError, "torch.tensor converts lists of numbers"),
        ([torch.zeros(0, 4)], ValueError, "yielded none"),
    ],
)
def test_errors_name_bad_items(items: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        take(IteratorActivations(items).batches(8, seed=0), 3)
