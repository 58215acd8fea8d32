"""What bench/gpu.py says without a GPU, and the arithmetic of its tables."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.append(str(CHECKOUT))

from bench import gpu, gpu_times, record  # noqa: E402
from bench.cases import Shape  # noqa: E402
from bench.gpu_times import Ceilings, Contestant, Timer, floors_of  # noqa: E402

H100 = Ceilings(bf16_flops=8e14, copy_bytes=3e12, l2_bytes=5.5e12)
SHAPE = Shape(4, 8, 2, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [["bench", "gpu"], ["bench.gpu"]])
def test_without_a_gpu_it_says_so(module: list[str], tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", *module, "--json", str(file)]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "bench.gpu needs an NVIDIA GPU; torch sees none\n"
    assert not file.exists()


@pytest.mark.parametrize(
    ("shape", "encode", "update", "step"),
    [
        (Shape(4096, 131072, 64, 8192), 11.15, 10.97, 23.5),
        (Shape(768, 32768, 32, 8192), 0.55, 0.59, 1.28),
    ],
)
def test_floors_are_what_bytes_and_operations_come_to(
    shape: Shape, encode: float, update: float, step: float
) -> None:
    """At an H100's ceilings, worked out by hand from the sizes."""
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
        "gemm_ratio": 2.0,
    }
    assert "50.0% of the floor" in gpu_times.line(row)


def test_ratios_are_to_rivals_at_the_same_case_and_shape() -> None:
    def row(rival: str, mode: str, ms: float, case: str = "encode", d: int = 4) -> dict[str, Any]:
        shape = SHAPE._replace(d=d)._asdict()
        return {"case": case, "shape": shape, "rival": rival, "mode": mode, "ms": ms}

    rows = [
        row("saefast", "exact", 2.0),
        row("saefast", "bf16", 1.0),
        row("torch", "dense", 5.0),
        row("torch", "dense", 7.0, case="step"),
        row("torch", "dense", 9.0, d=5),
    ]
    exact, bf16, *others = gpu_times.with_ratios(rows)
    assert exact["times_faster_than"] == {"torch dense": 2.5}
    assert bf16["times_faster_than"] == {"torch dense": 5.0}
    assert others == rows[2:]


def test_who_fails_or_disagrees_is_named_and_the_next_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise ImportError("no such thing\nand more")

    monkeypatch.setattr(gpu_times, "milliseconds", lambda runs, rounds: [[1.0] * 5] * len(runs))
    timer = Timer(H100, 5)
    entered = [
        contestant("torch", "a")._replace(build=broken),
        contestant("torch", "b", agrees=False),
        contestant("torch", "c"),
    ]
    timer.race(SHAPE, lambda: None, iter(entered))
    assert [row["mode"] for row in timer.rows] == ["c"]
    assert timer.skipped == [
        "encode: torch (a) at (4, 8, 2, 3): no such thing",
        "encode: torch (b) at (4, 8, 2, 3): does not agree, so it was not timed",
    ]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the entry asks of a GPU; one of two checks fails, and all times are one millisecond."""

    class Contest:
        def __init__(self, shape: Shape) -> None:
            self.unit = lambda: None

        def contestants(self, case: str, *, peers: bool) -> Any:
            return iter([contestant("SAELens" if peers else "torch", case, case)])

    properties = type("Properties", (), {"total_memory": 80e9})
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = [gpu.Finding(str(holds), SHAPE, holds, {}) for holds in (True, False)]
    monkeypatch.setattr(gpu, "findings", lambda shape, device: found)
    monkeypatch.setattr(gpu, "graphs_and_far_addresses", list)
    monkeypatch.setattr(gpu, "measured_ceilings", lambda: H100)
    monkeypatch.setattr(gpu, "Contest", Contest)
    monkeypatch.setattr(gpu_times, "milliseconds", lambda runs, rounds: [[1.0] * 5] * len(runs))


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("peers", [[], ["SAELens"]])
def test_everything_ends_up_in_the_file(
    peers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "installed", lambda: peers)
    monkeypatch.setattr(gpu, "sanitized", lambda: {"memcheck": "clean"})
    file = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(file), "--commit", "abc"]) == 1
    result = json.loads(file.read_text())
    assert result["complete"]
    assert result["commit"] == "abc"
    assert result["sanitizer"] == {"memcheck": "clean"}
    assert result["machine"]["device"] == "NVIDIA X"
    assert result["machine"]["memory_gb"] == 80.0
    assert {"driver", "cuda", "versions", "backends"} <= set(result["machine"])
    assert [check["holds"] for check in result["checks"]] == [True, False] * len(gpu.CHECKED)
    timed = [(row["rival"], row["case"], tuple(row["shape"].values())) for row in result["rows"]]
    expected = [(shape, case) for shape in gpu.TIMED for case in gpu.CASES]
    expected += [(gpu.DECODED, "decode")]
    assert timed == [
        (rival, case, tuple(shape)) for rival in ("torch", *peers) for shape, case in expected
    ]
    missing = [name for name in ("SAELens", "sparsify") if name not in peers]
    assert result["skipped"] == [f"{name}: not installed" for name in missing]


@pytest.mark.usefixtures("a_gpu")
def test_parts_and_shapes_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    parts = ["--parts", "encode", "update", "--shape", "4,8,2,3"]
    assert gpu.main(["--json", str(file), *parts]) == 0
    result = json.loads(file.read_text())
    ours = [row["case"] for row in result["rows"] if row["rival"] == "torch"]
    assert ours == ["encode", "update"]
    assert "checks" not in result


def test_a_check_that_raises_fails_and_ends_only_itself() -> None:
    def found() -> Any:
        yield gpu.Finding("a", SHAPE, True, {})
        raise RuntimeError("no more")

    rows = gpu._rows_of(found(), "here")
    assert [row["holds"] for row in rows] == [True, False]
    assert rows[1]["check"] == "here"


def test_results_replace_the_file_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    record.write(file, {"a": 1})
    with pytest.raises(TypeError):
        record.write(file, {"a": object()})
    record.write(tmp_path / "new" / "other.json", {})
    assert json.loads(file.read_text()) == {"a": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == ["other.json", "rows.json"]


def test_every_shape_that_must_be_compared_is_timed() -> None:
    assert {shape.d for shape in gpu.TIMED} == {768, 2304, 4096}
    assert gpu.DECODED._replace(k=64) in gpu.TIMED
    cases = {"encode", "batch_topk", "decode", "update", "step"}
    assert set(gpu.PARTS) == {"checks", *cases, "sanitizer"}
