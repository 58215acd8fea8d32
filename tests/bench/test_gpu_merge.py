"""Sessions on one GPU become one file of results; those of another GPU are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import committed
from bench.gpu import merge
from bench.gpu.summary import with_ratios

SHAPE = {"d": 4, "m": 8, "k": 2, "n": 3}


def row(rival: str, mode: str, ms: float, **more: Any) -> dict[str, Any]:
    return {"case": "encode", "shape": SHAPE, "rival": rival, "mode": mode, "ms": ms, **more}


def session(commit: str, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return what a session writes; its ratios are to its own rows."""
    part = {"part": "times:C2", "status": "complete", "seconds": 9.0, "failures": 0}
    return {
        "machine": {
            "device": "NVIDIA H200",
            "driver": "580",
            "cuda": "13.0",
            "python": "3.12",
            "versions": {"torch": "2.11", "faiss-gpu": "not installed"},
            "backends": {"triton": "live", "cuda": "live"},
        },
        "commit": commit,
        "complete": True,
        "parts": [part],
        "failures": [],
        "rows": with_ratios(list(rows)),
        **more,
    }


def test_a_newer_row_replaces_the_older_one_and_keeps_its_commit() -> None:
    first = session("abc", row("saefast", "exact", 2.0), row("torch", "bf16", 5.0))
    second = session("def", row("torch", "bf16", 8.0), row("SAELens", "bf16", 9.0))
    whole = merge.merged([first, second])
    assert [(each["rival"], each["ms"], each["commit"]) for each in whole["rows"]] == [
        ("saefast", 2.0, "abc"),
        ("torch", 8.0, "def"),
        ("SAELens", 9.0, "def"),
    ]
    # The ratio is to the product that was timed in the same session.
    assert whole["rows"][0]["times_faster_than"] == {"torch bf16": 2.5}
    assert whole["commit"] == "def"
    again = merge.merged([whole, session("fed", row("torch", "bf16", 7.0))])
    assert [each["commit"] for each in again["rows"]] == ["abc", "def", "fed"]
    assert again["rows"][0]["times_faster_than"] == {"torch bf16": 2.5}


def test_other_shapes_and_modes_are_other_rows() -> None:
    other = {**row("torch", "fp32", 1.0), "shape": {**SHAPE, "d": 5}}
    rows = [row("torch", "fp32", 1.0), row("torch", "bf16", 1.0), other]
    whole = merge.merged([session("abc", rows[0]), session("def", *rows[1:])])
    assert len(whole["rows"]) == 3


def test_parts_failures_and_tables_are_of_the_newest_session_that_ran_them() -> None:
    def part(name: str, status: str = "complete") -> dict[str, Any]:
        return {"part": name, "status": status, "seconds": 1.0, "failures": 1}

    def failure(name: str) -> dict[str, Any]:
        return {"part": name, "item": "a", "raised": "error"}

    first = session("abc", smoke=[{"item": "a", "holds": False}], ncu=[{"kernel": "k"}])
    first |= {
        "parts": [part("smoke"), part("ncu"), part("checks", "not finished: a")],
        "failures": [failure("smoke"), failure("ncu")],
        "complete": False,
    }
    second = session("def", smoke=[{"item": "a", "holds": True}])
    second["parts"] = [part("smoke"), part("ncu", "skipped: 1 s"), part("peers", "left out: lacks")]
    whole = merge.merged([first, second])
    assert [(each["part"], each["commit"]) for each in whole["parts"]] == [
        ("ncu", "abc"),
        ("checks", "abc"),
        ("smoke", "def"),
    ]
    assert [(each["part"], each["commit"]) for each in whole["failures"]] == [("ncu", "abc")]
    assert whole["smoke"] == [{"item": "a", "holds": True, "commit": "def"}]
    assert whole["ncu"] == [{"kernel": "k", "commit": "abc"}]
    assert not whole["complete"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "NVIDIA H100"), ("backends", {"triton": "live", "cuda": "not built"})],
)
def test_sessions_of_two_devices_are_refused(name: str, value: Any) -> None:
    other = session("def")
    other["machine"][name] = value
    with pytest.raises(ValueError, match=f"of one {name} can be merged"):
        merge.merged([session("abc"), other])


def test_all_versions_are_kept() -> None:
    other = session("def")
    other["machine"] |= {"driver": "590", "versions": {"torch": "2.11", "faiss-gpu": "1.15"}}
    whole = merge.merged([session("abc"), other, session("fed")])
    assert whole["machine"]["driver"] == "580 and 590"
    assert whole["machine"]["versions"] == {"torch": "2.11", "faiss-gpu": "1.15"}


def test_each_device_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    held = session("abc", row("torch", "bf16", 1.0))
    held["machine"]["device"] = "NVIDIA H100 80GB HBM3"
    (tmp_path / "gpu.json").write_text(json.dumps(held))
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    for file, commit in zip(files, ("def", "fed"), strict=True):
        file.write_text(json.dumps(session(commit, row("torch", commit, 1.0))))
        merge.main([str(file)])
    assert json.loads((tmp_path / "gpu.json").read_text()) == held
    kept = json.loads((tmp_path / "gpu-h200.json").read_text())
    assert [each["commit"] for each in kept["rows"]] == ["def", "fed"]
    held["rows"][0]["ms"] = 2.0
    files[0].write_text(json.dumps(held))
    merge.main([str(files[0])])
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"][0]["ms"] == 2.0
    with pytest.raises(ValueError, match="of one device"):
        merge.main([str(files[0]), str(files[1])])


def test_a_session_that_saw_no_gpu_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(session("abc", machine={})))
    with pytest.raises(SystemExit):
        merge.main([str(tmp_path / "a.json")])
    assert "no part of a.json has seen a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA X", "NVIDIA X"),
    ],
)
def test_a_device_has_a_short_name(device: str, name: str) -> None:
    assert committed.short_name(device) == name


def test_committed_results_are_each_of_another_device() -> None:
    devices = [committed.load(name)["machine"]["device"] for name in committed.gpus()]
    assert len(set(devices)) == len(devices)
    for name in committed.gpus():
        assert committed.gpu_name(committed.load(name)["machine"]["device"]) == name
        merge.merged([committed.load(name)] * 2)
