"""Prefetching changes only when batches are made."""

import gc
import threading
import time
import traceback
import weakref
from collections.abc import Iterator

import pytest
import torch
from helpers.lifetimes import without_collection

from saefast.activations import Prefetcher, TensorActivations


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def gone() -> bool:
    """Return whether all threads end soon."""
    for thread in threads():
        thread.join(10)
    return not threads()


@pytest.mark.parametrize("depth", [0, 1, 2, 50])
def test_order_is_kept(depth: int) -> None:
    with Prefetcher(iter(range(200)), depth=depth, transform=lambda i: i * i) as items:
        assert list(items) == [i * i for i in range(200)]
    assert gone()


def test_batches_match_the_source() -> None:
    source = TensorActivations(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))
    with Prefetcher(source.batches(7, seed=0)) as batches:
        for expected, batch in zip(source.batches(7, seed=0), range(40), strict=False):
            batch = next(batches)
            assert torch.equal(batch.x, expected.x)
            assert batch.where == expected.where


def test_at_most_depth_items_are_made_ahead() -> None:
    made = 0

    def count() -> Iterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    with Prefetcher(count(), depth=3) as items:
        for taken in range(1, 20):
            assert next(items) == taken
            time.sleep(0.002)
            assert made <= taken + 3 + 1  # one more waits for room
        deadline = time.monotonic() + 10
        while made < 19 + 3 + 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert made == 19 + 3 + 1


def test_items_are_made_while_the_consumer_works() -> None:
    asked = threading.Event()

    def two() -> Iterator[int]:
        yield 1
        asked.set()
        yield 2

    with Prefetcher(two()) as items:
        next(items)
        assert asked.wait(10)


def test_without_a_depth_items_are_read_by_the_consumer() -> None:
    made: list[str] = []

    def named() -> Iterator[int]:
        for number in range(3):
            made.append(threading.current_thread().name)
            yield number

    here = threading.current_thread().name
    with Prefetcher(named(), depth=0) as items:
        assert made == []
        assert next(items) == 0
        assert made == [here]
        assert items.wait_seconds > 0
    with pytest.raises(ValueError, match="closed"):
        next(items)
    assert made == [here]


@pytest.mark.parametrize("depth", [0, 10])
def test_an_error_is_raised_after_the_items_before_it(depth: int) -> None:
    def fails_at_three() -> Iterator[int]:
        yield from (0, 1, 2)
        raise KeyError("the culprit")

    with Prefetcher(fails_at_three(), depth=depth) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="the culprit") as caught:
            next(items)
        assert "fails_at_three" in "".join(traceback.format_tb(caught.value.__traceback__))
        with pytest.raises(StopIteration):
            next(items)
    assert gone()


def test_an_error_keeps_no_frame() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def fail() -> None:
        weight = torch.zeros(1)
        kept.append(weakref.ref(weight))

        def fails() -> Iterator[int]:
            raise KeyError("the culprit")
            yield 1

        with Prefetcher(fails()) as items:
            next(items)

    with without_collection():
        with pytest.raises(KeyError):
            fail()
        assert kept[0]() is None


def test_an_error_in_the_transform_is_raised() -> None:
    with Prefetcher(iter([1, 0]), transform=lambda i: 1 / i) as items:
        assert next(items) == 1
        with pytest.raises(ZeroDivisionError):
            next(items)


@pytest.mark.parametrize("depth", [0, 4])
def test_stop_iteration_in_the_transform_is_an_error(depth: int) -> None:
    with (
        Prefetcher(iter([1, 2]), depth, transform=lambda _: next(iter(()))) as items,
        pytest.raises(RuntimeError, match="raised StopIteration"),
    ):
        list(items)


def test_wait_seconds_counts_only_waiting() -> None:
    def slow() -> Iterator[int]:
        for i in range(5):
            time.sleep(0.05)
            yield i

    with Prefetcher(slow()) as items:
        list(items)
        assert 0.2 < items.wait_seconds < 2
    with Prefetcher(iter(range(5)), depth=5) as items:
        time.sleep(0.3)
        list(items)
        assert items.wait_seconds < 0.2


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_a_thread_that_waits_for_room(taken: int) -> None:
    source = TensorActivations(torch.zeros(10, 2))
    items = Prefetcher(source.batches(4, seed=0), depth=2)
    for _ in range(taken):
        next(items)
    before = time.monotonic()
    items.close()
    items.close()
    assert time.monotonic() - before < 4
    assert gone()
    with pytest.raises(ValueError, match="closed"):
        next(items)


def test_closing_does_not_wait_for_a_hanging_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saefast.activations.prefetch._CLOSING_SECONDS", 0.2)
    release = threading.Event()

    def hangs() -> Iterator[int]:
        release.wait(30)
        yield 1

    items = Prefetcher(hangs())
    assert all(thread.daemon for thread in threads())
    before = time.monotonic()
    items.close()
    assert time.monotonic() - before < 10
    release.set()
    assert gone()


def test_an_unreferenced_prefetcher_ends_its_thread() -> None:
    items = Prefetcher(TensorActivations(torch.zeros(10, 2)).batches(4, seed=0))
    next(items)
    del items
    gc.collect()
    assert gone()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": -1}, ValueError, "depth must be at least 0, got -1"),
        ({"depth": 1.0}, TypeError, "depth must be an int"),
        ({"iterator": 3}, TypeError, "iterator must be iterable, got int"),
        ({"transform": 3}, TypeError, "transform must be callable, got int"),
    ],
)
def test_errors_name_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Prefetcher(**{"iterator": [1], **arguments})
    assert gone()
