"""The screen of an encode on a GPU is the fastest that works, tested without a GPU."""

import weakref
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from triton.runtime.errors import OutOfResources

import saefast
from saefast.ops import gpu_screens
from saefast.ops.gpu_screens import CANDIDATES, GpuScreen, fastest

FIRST, SECOND, THIRD = CANDIDATES


@pytest.fixture(autouse=True)
def no_screen_skipped_before() -> Iterator[None]:
    """Restore the record of failed screens after a test."""
    before = dict(gpu_screens.skipped)
    gpu_screens.skipped.clear()
    yield
    gpu_screens.skipped.clear()
    gpu_screens.skipped.update(before)


class Clock:
    """Return the time of a screen, or raise its error."""

    def __init__(self, **screens: float | Exception) -> None:
        self.says = dict(zip(CANDIDATES, screens.values(), strict=True))
        self.asked: list[GpuScreen] = []

    def __call__(self, screen: GpuScreen) -> float:
        self.asked.append(screen)
        answer = self.says[screen]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.filterwarnings("error")
def test_the_fastest_screen_is_chosen() -> None:
    assert fastest(Clock(a=3.0, b=1.0, c=2.0), CANDIDATES, "a shape") == SECOND
    assert gpu_screens.skipped == {}


def test_the_first_round_only_compiles() -> None:
    times = iter([1.0, 9.0, 9.0, 9.0, 5.0, 9.0, 9.0, 9.0, 9.0, 9.0, 4.0, 9.0])
    assert fastest(lambda screen: next(times), CANDIDATES, "a shape") == SECOND
    assert next(times, None) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("Tried to allocate 17 GiB"),
        OutOfResources(147480, 101376, "shared memory"),
        RuntimeError("an error of the driver"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_screen_that_fails_is_skipped_with_one_warning(error: Exception) -> None:
    clock = Clock(a=2.0, b=error, c=1.0)
    with pytest.warns(UserWarning, match="the screen chunked-bfloat16 failed for a shape") as seen:
        assert fastest(clock, CANDIDATES, "a shape") == THIRD
    assert len(seen) == 1
    assert clock.asked.count(SECOND) == 1
    assert str(error) in gpu_screens.skipped["chunked-bfloat16"]
    assert saefast.build_info()["gpu_screen"]["skipped"] == gpu_screens.skipped


@pytest.mark.filterwarnings("error")
def test_a_second_failure_of_a_screen_does_not_warn() -> None:
    gpu_screens.skipped["fused-float16"] = "an earlier shape: OutOfMemoryError"
    assert fastest(Clock(a=RuntimeError(), b=1.0, c=2.0), CANDIDATES, "another shape") == SECOND
    assert "another shape" in gpu_screens.skipped["fused-float16"]


@pytest.mark.filterwarnings("ignore:the screen .* failed")
def test_a_screen_that_fails_later_is_not_chosen() -> None:
    times = iter([1.0, 9.0, 9.0, 1.0, 9.0, 8.0, RuntimeError("late"), *[9.0, 8.0] * 2])

    def milliseconds(screen: GpuScreen) -> float:
        answer = next(times)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert fastest(milliseconds, CANDIDATES, "a shape") == THIRD


@pytest.mark.filterwarnings("ignore:the screen .* failed")
def test_if_no_screen_works_the_error_has_all_reasons() -> None:
    clock = Clock(a=RuntimeError("one"), b=OutOfResources(2, 1, "shared memory"), c=MemoryError())
    with pytest.raises(MemoryError):
        fastest(clock, CANDIDATES, "a shape")
    clock = Clock(a=RuntimeError("one"), b=OutOfResources(2, 1, "shared"), c=RuntimeError("three"))
    with pytest.raises(RuntimeError, match=r"a shape: fused.*one; chunked.*shared.*three") as seen:
        fastest(clock, CANDIDATES, "a shape")
    assert str(seen.value.__cause__) == "three"


@pytest.mark.filterwarnings("ignore:the screen .* failed")
def test_failures_do_not_keep_tensors_in_memory() -> None:
    """An exception refers to its frames, and they refer to large tensors."""
    held: list[weakref.ref[torch.Tensor]] = []

    def milliseconds(screen: GpuScreen) -> float:
        if screen != FIRST:
            assert held[0]() is None
            return 1.0
        large = torch.empty(3)
        held.append(weakref.ref(large))
        raise RuntimeError("no room")

    fastest(milliseconds, CANDIDATES, "a shape")
    assert len(held) == 1
