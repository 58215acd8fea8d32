"""Calls of kernels without torch's dispatcher, and indices whose range is known."""

from collections.abc import Callable

import pytest
import torch
from helpers.launch_recorder import Recorder
from torch import Tensor
from torch.autograd import forward_ad

from saefast.ops import index_range
from saefast.ops.immediate import immediate

X = torch.ones(2, 3)


def in_mode() -> bool:
    with Recorder():
        return immediate(X)


def in_vmap() -> bool:
    seen = []
    torch.func.vmap(lambda row: seen.append(immediate(row)) or row)(X)
    return seen[0]


def in_forward_mode() -> bool:
    with forward_ad.dual_level():
        return immediate(X)


class Own(Tensor):
    """A subclass, whose __torch_function__ has to see the op."""


@pytest.mark.parametrize(
    "asked",
    [
        in_mode,
        in_vmap,
        in_forward_mode,
        lambda: immediate(X, X.clone().requires_grad_()),
        lambda: immediate(X.as_subclass(Own)),
        lambda: immediate(X.to("meta")),
    ],
)
def test_inputs_of_the_dispatcher_are_not_immediate(asked: Callable[[], bool]) -> None:
    assert immediate(X, None)
    assert not asked()


def test_without_gradients_parameters_are_immediate() -> None:
    parameter = torch.nn.Parameter(X.clone())
    assert not immediate(parameter)
    with torch.no_grad():
        assert immediate(parameter)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the tensors that the host has read."""
    sizes: list[int] = []
    read = index_range._extremes_in_range

    def counting(indices: Tensor, m: int) -> bool:
        sizes.append(indices.numel())
        return read(indices, m)

    monkeypatch.setattr(index_range, "_extremes_in_range", counting)
    return sizes


def test_indices_are_read_once_until_they_change(reads: list[int]) -> None:
    indices = torch.tensor([[0, 4]])
    for _ in range(3):
        index_range.check_in_range("indices", indices, 5)
    index_range.check_in_range("indices", indices, 9)
    assert reads == [2]
    indices[0, 0] = -1
    with pytest.raises(ValueError, match="row 0, column 0 is -1"):
        index_range.check_in_range("indices", indices, 5)


def test_a_smaller_range_is_checked(reads: list[int]) -> None:
    indices = torch.tensor([[0, 4]])
    index_range.remember(indices, 5)
    index_range.check_in_range("indices", indices, 5)
    assert reads == []
    with pytest.raises(ValueError, match="must be in"):
        index_range.check_in_range("indices", indices, 4)


def test_a_tensor_in_inference_mode_is_read_every_time(reads: list[int]) -> None:
    with torch.inference_mode():
        indices = torch.tensor([[0, 4]])
        index_range.check_in_range("indices", indices, 5)
        indices[0, 1] = 5
        with pytest.raises(ValueError, match="column 1 is 5"):
            index_range.check_in_range("indices", indices, 5)


def test_nothing_is_kept_of_a_tensor_that_is_gone() -> None:
    indices = torch.tensor([[0, 4]])
    index_range.remember(indices, 5)
    key = id(indices)
    assert key in index_range._known
    del indices
    assert key not in index_range._known
