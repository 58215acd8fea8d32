"""Screens: measurement and selection, which does not change bits."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from helpers.strategies import Shape, dtypes, native_products, normal, seeds, shapes
from helpers.tolerance import assert_same_bits
from hypothesis import given

import saefast
from saefast.ops import encode_cpu, gpu, screens
from saefast.ops.encode_cpu import PackedWeight, Screen, encode_on_cpu
from saefast.ops.screens import usable_screens


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (7, 128), (1024, 2048)])
def test_any_size_of_torch_tiles_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    x, weight = normal((40, 33), 0, torch.float32), normal((500, 33), 1, torch.float32)
    native_code = encode_on_cpu(x, weight, None, None, 9, "exact", Screen("native", "float32"))
    monkeypatch.setattr(encode_cpu, "_ROWS", rows)
    monkeypatch.setattr(encode_cpu, "_COLUMNS", columns)
    tiled = encode_on_cpu(x, weight, None, None, 9, "exact", Screen("torch", "float32"))
    assert_same_bits(tiled.indices, native_code.indices)
    assert_same_bits(tiled.values, native_code.values)


@given(shape=shapes(), seed=seeds, dtype=dtypes)
def test_a_packed_weight_gives_the_same_bits(
    level: str, shape: Shape, seed: int, dtype: torch.dtype
) -> None:
    n, d, m, k = shape
    x, weight = normal((n, d), seed, dtype), normal((m, d), seed + 1, dtype)
    for screen in (Screen("native", product) for product in native_products()):
        plain = encode_on_cpu(x, weight, None, None, k, "exact", screen)
        packed = PackedWeight.of(weight, screen)
        from_packed = encode_on_cpu(x, weight, None, None, k, "exact", screen, packed)
        assert_same_bits(from_packed.indices, plain.indices)
        assert_same_bits(from_packed.values, plain.values)


@pytest.mark.parametrize("screen", usable_screens(), ids=str)
def test_the_environment_chooses_the_screen(
    monkeypatch: pytest.MonkeyPatch, screen: Screen
) -> None:
    monkeypatch.setenv(screens.ENVIRONMENT, str(screen))
    assert screens.best_screen() == screen
    monkeypatch.setenv(screens.ENVIRONMENT, "abacus-float8")
    with pytest.raises(ValueError, match="SAEFAST_SCREEN must be auto or one of"):
        screens.best_screen()


def test_the_fastest_measured_screen_is_chosen() -> None:
    measured = screens.measure_screens()
    fastest = min(measured.milliseconds, key=lambda name: measured.milliseconds[name])
    assert str(measured.best) == fastest
    assert set(measured.milliseconds) == {str(screen) for screen in usable_screens()}
    assert saefast.build_info()["screen"]["measured_ms"] == measured.milliseconds


def test_torch_tiles_do_not_change_matmul_precision() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    for screen in (s for s in usable_screens() if s.engine == "torch"):
        encode_on_cpu(torch.randn(3, 8), torch.randn(9, 8), None, None, 2, "exact", screen)
        assert torch.backends.mkldnn.matmul.fp32_precision == before


def on_cpu() -> tuple[Any, Callable[[], AbstractContextManager[None]]]:
    return torch.backends.mkldnn.matmul, lambda: encode_cpu._multiplying_in("bfloat16")


def on_gpu() -> tuple[Any, Callable[[], AbstractContextManager[None]]]:
    pytest.importorskip("triton")
    multiplying_in = gpu.kernels("matmul").multiplying_in
    return torch.backends.cuda.matmul, lambda: multiplying_in("tfloat32")


@pytest.mark.parametrize("where", [on_cpu, on_gpu])
def test_threads_do_not_change_matmul_precision(
    where: Callable[[], tuple[Any, Callable[[], AbstractContextManager[None]]]],
) -> None:
    """A thread that begins while another is inside must not restore that one's setting."""
    settings, multiplying = where()
    before = settings.fp32_precision
    inside, entered = threading.Event(), threading.Event()

    def first() -> None:
        with multiplying():
            inside.set()
            entered.wait(0.2)

    def second() -> None:
        with multiplying():
            entered.set()
            one.join()

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    try:
        one.start()
        inside.wait()
        two.start()
        two.join()
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = before
