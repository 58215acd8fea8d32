"""Rows, floors and workers of the GPU benchmark."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkout import CHECKOUT
from helpers.worker_rows import worked

from bench import record
from bench.cases import Shape
from bench.gpu import times as gpu_times
from bench.gpu import worker
from bench.gpu.lanes import POISONED
from bench.gpu.parts import PROFILED
from bench.gpu.times import Ceilings, Contestant, floors_of
from bench.matching_shapes import MATCHINGS
from bench.shapes import GPU_SHAPES

H100 = Ceilings(bf16_flops=8e14, copy_bytes=3e12, l2_bytes=5.5e12)
H100 = Ceilings(bf16_flops=8e14, copy_bytes=3e12, l2_bytes=5.5e12)
SHAPE = Shape(4, 8, 2, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [["bench", "gpu"], ["bench.gpu"]])
def test_without_a_gpu_it_fails_with_a_message(module: list[str], tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", *module, "--json", str(file)]
    result = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={"PATH": str(tmp_path), "OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "bench.gpu needs an NVIDIA GPU; this machine has no NVIDIA driver\n"
    assert not file.exists()


@pytest.mark.parametrize(
    ("shape", "encode", "update", "step"),
    [
        (Shape(4096, 131072, 64, 8192), 11.15, 10.97, 23.5),
        (Shape(768, 32768, 32, 8192), 0.55, 0.59, 1.28),
    ],
)
def test_floors_follow_from_bytes_and_operations(
    shape: Shape, encode: float, update: float, step: float
) -> None:
    """With the ceilings of an H100, computed by hand from the sizes."""
    floors = floors_of(shape, H100)
    assert floors["encode"] == pytest.approx(encode, rel=0.02)
    assert floors["update"] == pytest.approx(update, rel=0.02)
    assert floors["step"] == pytest.approx(step, rel=0.02)
    assert floors["decode"] == pytest.approx(2e3 * shape.n * shape.k * shape.d / 3e12)
    dense_gradient = 4e3 * shape.m * shape.d / 3e12
    assert floors["decode+backward"] > 2 * floors["decode"] + dense_gradient


def contestant(rival: str, mode: str, case: str = "encode", agrees: bool = True) -> Contestant:
    return Contestant(case, rival, mode, lambda: lambda: None, lambda _: agrees)


def test_a_row_has_medians_and_shares() -> None:
    one = contestant("saefast", "exact")
    row = gpu_times.row_of(one, SHAPE, [2.0, 1.0, 4.0, 3.0, 100.0], [1.0, 1.0, 1.0, 1.0, 50.0], 1.5)
    assert row == {
        "case": "encode",
        "shape": {"d": 4, "m": 8, "k": 2, "n": 3},
        "rival": "saefast",
        "mode": "exact",
        "ms": 3.0,
        "p20": 2.0,
        "p80": 4.0,
        "floor_ms": 1.5,
        "floor_share": 0.5,
        "rounds": 5,
        "agrees": True,
        "gemm_ratio": 2.0,
    }


def test_a_contestant_that_fails_or_disagrees_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise ImportError("no such thing\nand more")

    def listed() -> Iterator[Contestant]:
        yield contestant("torch", "a")._replace(build=broken)
        yield contestant("torch", "b", agrees=False)
        yield contestant("torch", "c")
        raise ValueError("no more can be listed")

    times: Callable[..., Any] = lambda runs, rounds: [[1.0] * rounds] * len(runs)  # noqa: E731
    monkeypatch.setattr(gpu_times, "milliseconds", times)
    raced = gpu_times.raced(SHAPE, lambda: None, "encode", listed(), lambda: H100)
    failed, disagrees, timed, ended = worked(raced)
    assert failed["raised"].startswith("ImportError: no such thing (")
    assert (failed["case"], failed["rival"], failed["mode"]) == ("encode", "torch", "a")
    assert disagrees["raised"].startswith("RuntimeError: does not agree, so it was not timed")
    assert (timed["mode"], timed["ms"], timed["rounds"]) == ("c", 1.0, gpu_times.ROUNDS)
    assert ended["raised"].startswith("ValueError: no more can be listed")


def test_long_rounds_are_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds_of: dict[float, int] = {}
    for ms in (0.1, 150.0, 5000.0):
        monkeypatch.setattr(
            gpu_times, "milliseconds", lambda runs, n, ms=ms: [[ms] * n] * len(runs)
        )
        [row] = gpu_times.timed(
            contestant("torch", "a"), SHAPE, lambda: None, lambda: H100, gpu_times.ROUNDS
        )
        rounds_of[ms] = row["rounds"]
    assert rounds_of == {0.1: 20, 150.0: 10, 5000.0: 5}


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "Triton Error [CUDA]: unspecified launch failure",
    ],
)
def test_persistent_device_errors_are_recognised(message: str) -> None:
    def fail() -> Any:
        raise RuntimeError(message)

    written: list[dict[str, Any]] = []
    items = iter([worker.Item("a", fail), worker.Item("b", list)])
    assert worker.work(items, 0, lambda **each: written.append(each)) == POISONED
    assert [list(each) for each in written] == [["begin"], ["row"], ["end"]]
    assert not worker.is_sticky(RuntimeError("CUDA out of memory"))


def test_results_replace_the_file_atomically(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    record.write(file, {"a": 1})
    with pytest.raises(TypeError):
        record.write(file, {"a": object()})
    record.write(tmp_path / "new" / "other.json", {})
    assert json.loads(file.read_text()) == {"a": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == ["other.json", "rows.json"]


def test_every_required_shape_is_timed() -> None:
    assert GPU_SHAPES["C1"] == (4096, 131072, 64, 8192)
    assert GPU_SHAPES["C2"] == (768, 32768, 32, 8192)
    assert GPU_SHAPES["mid"] == (2304, 65536, 64, 8192)
    assert GPU_SHAPES["decode"]._replace(k=64) == GPU_SHAPES["mid"]
    assert MATCHINGS["one_to_one"].shape[:2] == (4096, 131072)
    assert MATCHINGS["nearest"].shape[:2] == (2304, 1 << 20)
    assert MATCHINGS["nearest_quarter"].shape[:2] == (2304, 1 << 18)
    assert set(PROFILED) == {"C1", "C2"}
