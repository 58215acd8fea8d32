"""Tables of times on a GPU from any set of rows."""

from typing import Any

import pytest

from bench import gpu_table
from bench.shapes import GPU_SHAPES


def row(shape: str, rival: str, mode: str, ms: float | None, case: str = "step") -> dict[str, Any]:
    facts = {"case": case, "shape": GPU_SHAPES[shape]._asdict(), "rival": rival, "mode": mode}
    return {**facts, "raised": "error"} if ms is None else {**facts, "ms": ms, "floor_share": 0.25}


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "machine": {
            "device": "NVIDIA H100",
            "driver": "580",
            "cuda": "13.0",
            "versions": {
                "torch": "2",
                "triton": "3",
                "sae-lens": "6",
                "eai-sparsify": "not installed",
            },
        },
        "commit": "abc",
        "ceilings": {"bf16_flops": 8e14, "copy_bytes": 3e12},
        "rows": [
            row("C2", "saefast", "exact graph", 9.0),
            row("C2", "saefast", "exact graph", 4.0),  # of a later session
            row("C2", "saefast", "exact graph, no clip, no AuxK", 3.0),
            row("C2", "torch", "bf16 dense", 3.0),
            row("mid", "torch", "bf16 dense", 30.0),
            row("C1", "saefast", "exact graph", 60.0),
            row("C1", "SAELens", "autocast", None),
            row("C1", "saefast", "bf16 graph, no clip, no AuxK", 38.0),
        ],
    }


def test_a_table_has_the_timed_rows_and_shapes(result: dict[str, Any]) -> None:
    assert gpu_table.table(result).splitlines() == [
        "|  |  | (768, 32768, 32, 8192) | (2304, 65536, 64, 8192) | (4096, 131072, 64, 8192) |",
        "| --- | --- | ---: | ---: | ---: |",
        "| step | **saefast**, exact | 4.00, 25 % |  | 60.0, 25 % |",
        "|  | torch, dense, bf16 | 3.00, 0.75 x | 30.0 |  |",
    ]


def test_predictions_are_shown_with_measured_times(result: dict[str, Any]) -> None:
    assert gpu_table.predictions(result).splitlines()[2:] == [
        "| (768, 32768, 32, 8192) | 3.00 | 3.10 |  | 2.70 |",
        "| (4096, 131072, 64, 8192) |  | 49.0 | 38.0 | 36.0 |",
    ]


def test_a_caption_names_device_versions_and_commit(result: dict[str, Any]) -> None:
    caption = gpu_table.caption(result)
    expected = "NVIDIA H100, driver 580, CUDA 13.0, torch 2, triton 3, sae-lens 6; at commit abc."
    assert caption.endswith(expected)
    assert "800 TFLOP/s in bfloat16, 3.00 TB/s" in caption
