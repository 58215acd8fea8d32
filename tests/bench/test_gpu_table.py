"""Tables of times on a GPU from any set of rows."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import committed, record
from bench.shapes import GPU_SHAPES
from bench.tables import gpu as gpu_table
from bench.tables import gpu_runs
from bench.tables import headline as headline_table

_SHAPES = {name: shape._asdict() for name, shape in GPU_SHAPES.items()}


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


def beside(rival: str, case: str, mode: str, ms: float, **more: Any) -> dict[str, Any]:
    """Return a row of another commit, with more fields."""
    return {**row("C2", rival, mode, ms), "case": case, "commit": "def", **more}


def test_decodes_are_compared_within_one_run(result: dict[str, Any]) -> None:
    cases = ("decode", "decode+backward", "decode+loss+backward")
    for case, mode in product(cases, ("fp32", "bf16")):
        result["rows"] += [
            beside("saefast", case, mode, 2.0, times_faster_than={f"flexsae {mode}": 1.5}),
            beside("flexsae", case, mode, 3.0),
            beside("saefast", case, mode, 1.0, times_faster_than={f"torch {mode}": 9.0}),
        ]
    for case, mode in (("decode", "fp32"), ("decode+backward", "bf16")):
        # Timed in a run without flexsae.
        result["rows"].append({**beside("saefast", case, mode, 1.0), "shape": _SHAPES["mid"]})
    table = gpu_table.decodes(result).splitlines()
    assert table[0] == "|  |  | (768, 32768, 32, 8192) |"
    assert table[2] == "| decode | fp32 | 2.00, 3.00, 1.50 x |"
    assert len(table) == 8
    assert "at commit def" in gpu_table.decodes_caption(result)


def test_matchings_say_how_many_directions_were_searched(result: dict[str, Any]) -> None:
    result["machine"]["versions"]["faiss-gpu"] = "1.15"
    result["rows"] += [
        beside("torch", "nearest", "bf16", 500.0, sides=1, gemm_tflops=600.4),
        beside("saefast", "nearest", "exact", 1500.0, sides=2, gemm_tflops=300.4),
        {"case": "nearest", "rival": "faiss", "raised": "not finished", "commit": "def"},
    ]
    assert gpu_runs.matchings(result).splitlines()[2:] == [
        "| nearest | 32,768 x 768 | **saefast**, exact, both directions | 1.50 | 300 |",
        "| nearest | 32,768 x 768 | torch, bf16, one direction | 0.50 | 600 |",
    ]
    assert gpu_runs.matchings_caption(result).endswith("NVIDIA H100; saefast, torch at def.")
    found = {"sides": 1, "gemm_tflops": 9.0}
    result["rows"].append(beside("faiss", "nearest", "flat, fp32", 900.0, **found))
    assert gpu_runs.matchings_caption(result).endswith(
        "NVIDIA H100, faiss-gpu 1.15; faiss, saefast, torch at def."
    )
    del result["machine"]["versions"]["faiss-gpu"]
    assert "faiss-gpu" not in gpu_runs.matchings_caption(result)


def test_a_run_from_text_names_its_model(result: dict[str, Any]) -> None:
    speed = {"tokens_per_second": 86356, "tokens": 1 << 20}
    result["rows"].append(beside("saefast", "end to end", "harvest; a model", 94.86, **speed))
    assert gpu_runs.end_to_end(result).splitlines()[2:] == ["| harvest | 94.9 | 86,356 |"]
    assert gpu_runs.end_to_end_caption(result).startswith("a model; 1,048,576 tokens")


def test_a_caption_names_rows_of_other_commits(result: dict[str, Any]) -> None:
    assert gpu_table.caption(result).endswith("at commit abc.")
    result["rows"].append({**row("C2", "sparsify", "autocast", 9.0), "commit": "def"})
    assert gpu_table.caption(result).endswith("at commit abc; sparsify at def.")
    result["rows"].append({**row("C2", "SAELens", "autocast", 9.0), "commit": "abc"})
    assert gpu_table.caption(result).endswith("at commit abc; sparsify at def.")


def test_a_caption_names_the_language_of_the_selection(result: dict[str, Any]) -> None:
    assert "selected" not in gpu_table.caption(result)
    result["machine"]["backends"] = {"triton": "live", "cuda": "saefast was built without CUDA C++"}
    assert "sae-lens 6, top k selected in Triton; at commit" in gpu_table.caption(result)
    result["machine"]["backends"]["cuda"] = "live"
    assert "sae-lens 6, top k selected in CUDA C++; at commit" in gpu_table.caption(result)


@pytest.mark.parametrize("end", gpu_runs.TABLES)
def test_a_table_without_rows_is_empty(result: dict[str, Any], end: str) -> None:
    table, caption = gpu_runs.TABLES[end]
    del result["ceilings"]
    result["rows"] = []
    assert (table(result), caption(result)) == ("", "")
    # flexsae alone, and a shape without steps.
    result["rows"] = [{**row("mid", "flexsae", "fp32", 1.0), "case": "decode"}]
    assert (table(result), caption(result)) == ("", "")


def test_only_tables_with_rows_are_made_for_a_device(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    result["machine"]["device"] = "NVIDIA H200"
    record.write(tmp_path / "gpu-h200.json", result)
    [(name, (table, caption))] = gpu_runs.tables().items()
    assert name == "gpu_h200"
    assert table() == gpu_table.table(result)
    assert "NVIDIA H200, driver 580" in caption()


def test_the_headline_takes_columns_and_device_from_the_file(result: dict[str, Any]) -> None:
    head = headline_table.table(result).splitlines()[0]
    assert head.endswith(" H100 (768, 32768, 32, 8192) | H100 (4096, 131072, 64, 8192) |")
    assert headline_table.caption(result).endswith(" H100: at commit abc.")
    result["machine"]["device"] = "NVIDIA H200"
    result["rows"] = [each for each in result["rows"] if each["shape"] != _SHAPES["C1"]]
    result["rows"].append({**row("C2", "sparsify", "autocast", 9.0), "commit": "def"})
    # Without a time of saefast there is nothing to compare it with.
    result["rows"].append(row("C1", "sparsify", "autocast", 9.0))
    lines = headline_table.table(result).splitlines()
    assert lines[0].endswith("(768, 131072, 64, 1024) | H200 (768, 32768, 32, 8192) |")
    assert next(line for line in lines if "sparsify" in line).endswith("| 9.0 ms, 2.2 x |")
    assert "on the H200 with clipping" in headline_table.caption(result)
    assert headline_table.caption(result).endswith(" H200: at commit abc; sparsify at def.")
    result["rows"] = []
    assert "H200" not in headline_table.table(result) + headline_table.caption(result)


def test_the_versions_that_captions_name_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=1e9)
    for name, value in {
        "get_device_name": "NVIDIA X",
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    asked: set[str] = set()

    def versions_of(result: dict[str, Any], *names: str) -> list[str]:
        asked.update(names)
        return []

    for module in (gpu_table, gpu_runs):
        monkeypatch.setattr(module, "versions_of", versions_of)
    gpu_table.caption()
    gpu_runs.matchings_caption()
    assert {"torch", "faiss-gpu"} < asked <= set(record.gpu()["versions"])
