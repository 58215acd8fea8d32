"""Batches reach the device whole and checked through a ring of buffers, for any timing of work."""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.simulated_streams import COPIES, MAIN, SimulatedDevice
from helpers.sources import take
from helpers.tolerance import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saefast.activations import Batch, Prefetcher, TensorActivations
from saefast.activations.protocol import stored_dtype
from saefast.activations.transfer import DeviceTransfer, HostTransfer, TrainingRows

HALF, FULL, DOUBLE = torch.bfloat16, torch.float32, torch.float64
SCALES = (0.37, 1.7)


def locate(row: int) -> str:
    return f"row {row}"


def made(
    count: int, dtype: torch.dtype = HALF, target: bool = False, bad: dict[int, float] | None = None
) -> list[Batch]:
    """Make batches [4, 3] of rows numbered backwards, some with bad values in row 2."""
    batches = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype)
        goal = torch.randn(4, 2, generator=generator, dtype=torch.float64).to(dtype)
        if number in (bad or {}):
            (goal if target else x)[2, 1] = (bad or {})[number]
        rows = np.arange(4 * number + 3, 4 * number - 1, -1)
        batches.append(Batch(x, goal if target else None, f"batch {number}", rows))
    return batches


def as_taken(batches: list[Batch]) -> list[TrainingRows]:
    """Return the same batches without a device."""
    transfer = HostTransfer(torch.device("cpu"), locate)
    return [transfer.take(item) for item in transfer.ahead(iter(batches), SCALES)]


def transfer_to(device: SimulatedDevice, depth: int = 1) -> DeviceTransfer:
    with device.main():
        return DeviceTransfer(device, locate, depth)


def columns(rows: TrainingRows) -> list[Tensor]:
    return [rows.x] if rows.target is None else [rows.x, rows.target]


@given(
    depth=st.integers(1, 4),
    dtype=st.sampled_from([torch.float16, HALF, FULL, DOUBLE]),
    target=st.booleans(),
    lying=st.sampled_from(["host", "memory", "device"]),
    choices=st.lists(st.sampled_from(["read", "take", MAIN, COPIES]), max_size=60),
)
def test_every_batch_arrives_for_any_progress_of_streams(
    depth: int, dtype: torch.dtype, target: bool, lying: str, choices: list[str]
) -> None:
    """The order of reading, taking and progress of the two streams is random."""
    device = SimulatedDevice()
    transfer = transfer_to(device, depth)
    batches = made(9, dtype, target)
    if lying == "device":
        for batch in batches:
            device.adopt(batch.x)

    def into_memory() -> Iterator[Batch]:
        for batch in batches:
            x = transfer.memory("x", (4, 3), dtype)
            assert device.is_pinned(x) == (dtype != DOUBLE)
            yield batch._replace(x=x.copy_(batch.x))

    source = into_memory() if lying == "memory" else iter(batches)
    ahead = transfer.ahead(source, SCALES)
    waiting: deque[Any] = deque()
    taken: list[TrainingRows] = []
    for choice in itertools.chain(choices, itertools.cycle(["read", "take"])):
        if len(taken) == len(batches):
            break
        # One more than `depth`: it waits for room.
        if choice == "read" and len(waiting) <= depth and len(taken) + len(waiting) < len(batches):
            waiting.append(next(ahead))
        elif choice == "take" and waiting:
            with device.main():
                taken.append(transfer.take(waiting.popleft()))
        elif choice in (MAIN, COPIES):
            device.go_on(choice)
    assert next(ahead, None) is None
    device.finish()
    for found, expected in zip(taken, as_taken(batches), strict=True):
        assert found.where == expected.where
        for ours, theirs in zip(columns(found), columns(expected), strict=True):
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "over_the_bus"),
    [(torch.float16, torch.float16), (HALF, HALF), (FULL, FULL), (DOUBLE, FULL)],
)
def test_rows_are_copied_in_the_dtype_of_the_source(
    dtype: torch.dtype, over_the_bus: torch.dtype
) -> None:
    device = SimulatedDevice()
    transfer = transfer_to(device)
    with device.main():
        for item in transfer.ahead(iter(made(3, dtype, target=True)), SCALES):
            transfer.take(item)
    assert device.bus == [(over_the_bus, 12), (over_the_bus, 8)] * 3


def test_rows_on_the_device_are_not_copied() -> None:
    device = SimulatedDevice()
    transfer = transfer_to(device)
    batches = made(3)
    for batch in batches:
        device.adopt(batch.x)
    with device.main():
        for item in transfer.ahead(iter(batches), SCALES):
            transfer.take(item)
    assert device.bus == []


def test_a_source_fills_the_pinned_memory_directly() -> None:
    """Batches that are made after the copies have started are in pinned memory."""
    device = SimulatedDevice()
    transfer = transfer_to(device)
    x, target = torch.randn(50, 3).bfloat16(), torch.randn(50, 2).bfloat16()
    source = TensorActivations(x, target, dtype=None)
    batches = source.batches(8, seed=0, memory=transfer.memory)
    first = next(batches)
    filled: list[int] = []

    def seen() -> Iterator[Batch]:
        for batch in itertools.chain([first], itertools.islice(batches, 19)):
            assert batch.target is not None
            filled.extend((batch.x.data_ptr(), batch.target.data_ptr()))
            yield batch

    with device.main():
        taken = [transfer.take(item) for item in transfer.ahead(seen(), SCALES)]
    device.finish()
    assert device.sources[2:] == filled[2:]
    assert not set(device.sources) & set(filled[:2])
    for found, expected in zip(taken, as_taken(take(source.batches(8, seed=0), 20)), strict=True):
        for ours, theirs in zip(columns(found), columns(expected), strict=True):
            assert_same_bits(ours, theirs)


def test_computations_of_a_source_precede_its_copy() -> None:
    """Computations of the trainer's thread before the reader's thread started precede it, too."""
    device = SimulatedDevice()
    plain = made(3)
    (first, *others) = (device.on_device(batch.x.shape, HALF) for batch in plain)

    def source() -> Iterator[Batch]:
        yield plain[0]._replace(x=first)
        for batch, there in zip(plain[1:], others, strict=True):
            there.copy_(device.pinned(batch.x.shape, HALF).copy_(batch.x), non_blocking=True)
            yield batch._replace(x=there)

    with device.main():
        ready = device.pinned(plain[0].x.shape, HALF).copy_(plain[0].x)
        first.copy_(ready, non_blocking=True)
        transfer = DeviceTransfer(device, locate, 3)
        taken = [transfer.take(item) for item in list(transfer.ahead(source(), SCALES))]
    device.finish()
    for found, expected in zip(taken, as_taken(plain), strict=True):
        assert_same_bits(found.x, expected.x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("target", "named"), [(False, "activations"), (True, "targets")])
@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_a_bad_row_raises_before_its_step(
    value: float, target: bool, named: str, dtype: torch.dtype
) -> None:
    device = SimulatedDevice()
    transfer = transfer_to(device, depth=3)
    batches = made(6, dtype, target, bad={4: value, 5: value})
    with device.main():
        items = list(itertools.islice(transfer.ahead(iter(batches), SCALES), 5))
        for item in items[:4]:
            transfer.take(item)
        with pytest.raises(
            ValueError, match=f"the {named} hold NaN or infinity: row 17; remove such rows$"
        ):
            transfer.take(items[4])
    with pytest.raises(
        ValueError, match=f"the {named} hold NaN or infinity: row 17; remove such rows$"
    ):
        as_taken(batches)


def test_values_beyond_float32_are_infinite() -> None:
    batches = made(2, DOUBLE, bad={1: 1e300})
    device = SimulatedDevice()
    transfer = transfer_to(device)
    with device.main():
        items = list(transfer.ahead(iter(batches), SCALES))
        transfer.take(items[0])
        with pytest.raises(ValueError, match="row 5"):
            transfer.take(items[1])
    with pytest.raises(ValueError, match="row 5"):
        as_taken(batches)


def test_the_host_waits_only_for_its_batch() -> None:
    """It waits neither for earlier steps nor for later batches."""
    device = SimulatedDevice()
    transfer = transfer_to(device, depth=4)
    with device.main():
        items = list(transfer.ahead(iter(made(6)), SCALES))
        items[0].ready.synchronize()
        before = device.done(MAIN)  # the scales, which exist before the copies start
        step = device.on_device((1,), FULL)
        step.fill_(0.0)  # unfinished work of a step
        transfer.take(items[0])
        copies = device.done(COPIES)
        transfer.take(items[1])
    assert device.done(MAIN) == before < device.given(MAIN)
    assert copies < device.done(COPIES) < device.given(COPIES)


def test_a_copy_goes_to_the_least_recently_used_memory() -> None:
    """A copy to other memory would wait for the previous step instead of overlapping it."""
    device = SimulatedDevice()
    transfer = transfer_to(device, depth=4)
    with device.main():
        ahead = transfer.ahead(iter(made(6)), SCALES)
        device.finish()
        before = device.done(MAIN)
        first, _ = next(ahead), next(ahead)
        transfer.take(first)
        next(ahead).ready.synchronize()
    assert device.done(MAIN) == before < device.given(MAIN)


def test_batches_of_another_shape_get_other_memory() -> None:
    batches = [*made(3), *made(3, FULL), *made(3, HALF, target=True)]
    device = SimulatedDevice()
    transfer = transfer_to(device)
    with device.main():
        taken = [transfer.take(item) for item in transfer.ahead(iter(batches), SCALES)]
    device.finish()
    for found, expected in zip(taken, as_taken(batches), strict=True):
        for ours, theirs in zip(columns(found), columns(expected), strict=True):
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_thread_reads_ahead_through_the_ring(depth: int) -> None:
    device = SimulatedDevice()
    transfer = transfer_to(device, depth)
    batches = made(40)
    with device.main(), Prefetcher(transfer.ahead(iter(batches), SCALES), depth=depth) as items:
        taken = [transfer.take(item) for item in items]
    device.finish()
    for found, expected in zip(taken, as_taken(batches), strict=True):
        assert_same_bits(found.x, expected.x)


def test_an_error_of_the_source_is_raised_in_order() -> None:
    def fails() -> Iterator[Batch]:
        yield from made(2)
        raise OSError("the disk is gone")

    device = SimulatedDevice()
    transfer = transfer_to(device, 4)
    with device.main(), Prefetcher(transfer.ahead(fails(), SCALES), depth=4) as items:
        for _ in range(2):
            transfer.take(next(items))
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)


def test_sources_are_read_in_their_own_dtype() -> None:
    x, target = torch.randn(9, 3), torch.randn(9, 2)
    for kinds, expected in (
        ((HALF, HALF), HALF),
        ((HALF, torch.float16), FULL),
        ((torch.float16, FULL), FULL),
        ((HALF, DOUBLE), FULL),
    ):
        source = TensorActivations(x.to(kinds[0]), target.to(kinds[1]), dtype=None)
        batch = next(source.batches(4, seed=0))
        assert batch.target is not None
        assert (source.dtype, batch.x.dtype, batch.target.dtype) == (expected,) * 3
        assert_same_bits(batch.target, target.to(kinds[1])[batch.rows].to(expected))
    assert stored_dtype(HALF, torch.int32) == FULL
