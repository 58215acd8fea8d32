"""A failing part of a GPU session does not affect the others; workers and tools are stubs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.checkout import CHECKOUT

from bench.gpu import ncu, parts, session
from bench.gpu import worker as gpu_worker
from bench.gpu.lanes import Lane, Limits, run_lanes
from bench.gpu.parts import Part
from bench.gpu.summary import LIMIT, summary, with_ratios

WORKER = """
import os, signal, sys, time
sys.path.insert(0, {checkout!r})
from bench.gpu import worker as gpu_worker

def item(name, *statements):
    def run():
        yield {{"item": name, "before": True}}
        for statement in statements:
            exec(statement)
        yield {{"item": name, "after": True}}
    return gpu_worker.Item(name, run)

items = [{items}]
def items_of(argument, facts):
    yield from items
sys.modules["bench.gpu.stub"] = type(sys)("bench.gpu.stub")
sys.modules["bench.gpu.stub"].items = items_of
gpu_worker.SUBJECTS["stub"] = "stub"
gpu_worker.WITHOUT_TORCH = ("stub",)
sys.exit(gpu_worker.main(["stub", *sys.argv[1:]]))
"""


def worker(folder: Path, name: str, **items: str) -> Lane:
    """Return a lane whose items execute the given statements."""
    script = folder / f"{name}.py"
    listed = ", ".join(f"item({item!r}, {code!r})" for item, code in items.items())
    script.write_text(WORKER.format(checkout=str(CHECKOUT), items=listed))
    return Lane(name, [sys.executable, str(script)])


def run(
    folder: Path, *lanes: Lane, part: float = 30, silence: float = 20, together: int = 8
) -> tuple[str, list[dict[str, Any]]]:
    """Run the lanes and return their results."""
    rows: list[dict[str, Any]] = []
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    limits = Limits(part, silence, together)
    status = run_lanes(lanes, logs, limits, lambda new, facts: rows.extend(new))
    return status, rows


def finished(rows: list[dict[str, Any]]) -> list[str]:
    return [row["item"] for row in rows if "after" in row]


def raised(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["item"]: row["raised"] for row in rows if "raised" in row}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise RuntimeError('one line\\nand more')", "RuntimeError: one line (<string>:1)"),
        (
            "raise RuntimeError('CUDA error: an illegal memory access was encountered')",
            "RuntimeError: CUDA error: an illegal memory access was encountered (<string>:1)",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL: no output"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV: no output"),
        ("print('a reason'); sys.stdout.flush(); os._exit(3)", "exit status 3: a reason"),
        ("time.sleep(60)", "no sign of life for 2 s, killed"),
    ],
    ids=["raises", "poisons", "is-killed", "crashes", "exits", "hangs"],
)
def test_a_fault_ends_only_its_item(tmp_path: Path, fault: str, said: str) -> None:
    lane = worker(tmp_path, "lane", first="pass", faulty=fault, second="pass", third="pass")
    status, rows = run(tmp_path, lane, silence=2)
    assert status == "complete"
    assert finished(rows) == ["first", "second", "third"]
    assert raised(rows) == {"faulty": said}
    # Earlier results of the item are kept.
    assert [row["item"] for row in rows if "before" in row] == [
        "first",
        "faulty",
        "second",
        "third",
    ]


def test_a_process_that_cannot_use_its_device_is_replaced(tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'pids')!r}, 'a').write(str(os.getpid()) + ' ')"
    poison = note + "; raise RuntimeError('device-side assert triggered')"
    lane = worker(tmp_path, "lane", first=note, poisons=poison, second=note)
    run(tmp_path, lane)
    first, poisoned, second = (tmp_path / "pids").read_text().split()
    assert first == poisoned != second


def test_lanes_do_not_share_their_faults(tmp_path: Path) -> None:
    lanes = [worker(tmp_path, f"lane {i}", **{f"item {i}": "pass"}) for i in range(3)]
    lanes.append(worker(tmp_path, "dies", dies="os._exit(1)"))
    lanes.append(Lane("cannot begin", [sys.executable, "-c", "raise ImportError('no torch')"]))
    status, rows = run(tmp_path, *lanes, together=2)
    assert status == "complete"
    assert sorted(finished(rows)) == ["item 0", "item 1", "item 2"]
    assert raised(rows) == {
        "dies": "exit status 1: no output",
        "cannot begin": "exit status 1: ImportError: no torch",
    }


def test_large_output_is_not_a_failure(tmp_path: Path) -> None:
    lane = worker(tmp_path, "lane", prints="print('x' * 50_000)", second="pass")
    assert finished(run(tmp_path, lane)[1]) == ["prints", "second"]


@pytest.mark.alone
def test_results_before_the_time_limit_are_kept(tmp_path: Path) -> None:
    slow = worker(tmp_path, "slow", first="pass", sleeps="time.sleep(60)")
    begin = time.monotonic()
    status, rows = run(tmp_path, slow, worker(tmp_path, "late", late="pass"), part=2, together=1)
    assert time.monotonic() - begin < 6
    assert status == "not finished: slow, late"
    assert finished(rows) == ["first"]
    assert raised(rows) == {"sleeps": "not finished when the part's 2 s were over"}


def test_children_of_a_worker_end_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    spawn = (
        "import subprocess; "
        f"open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid)); "
        "time.sleep(60)"
    )
    run(tmp_path, worker(tmp_path, "lane", spawns=spawn), silence=2)
    assert not alive(int(child.read_text()))


def alive(pid: int) -> bool:
    """Return whether a process still runs after some seconds, and end it."""
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return False
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return True


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put stubs of NVIDIA's tools on PATH, each a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(**scripts: str) -> None:
        for name, script in scripts.items():
            file = folder / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)

    write(nvidia_smi="echo 9.0")
    return write


def stubbed(monkeypatch: pytest.MonkeyPatch, folder: Path, **parts: list[Lane]) -> None:
    """Replace the parts of the entry point."""
    tables = {name: "rows" if name == "times" else name for name in parts}

    def part(text: str, facts: dict[str, Any]) -> Part:
        return Part(text, tables[text], 1.0, Limits(20, 10, 2), tuple(parts[text]))

    monkeypatch.setattr(session, "part", part)


TIMED = {"case": "encode", "shape": {"d": 4, "m": 8, "k": 2, "n": 3}, "ms": 2.0, "mode": "exact"}


@pytest.mark.usefixtures("tools")
def test_all_results_are_written_to_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = {**TIMED, "rival": "saefast"}, {**TIMED, "rival": "torch", "ms": 5.0}
    dies = worker(tmp_path, "dies", first="pass", dies="os.kill(os.getpid(), 9)", second="pass")
    timed = worker(tmp_path, "times", a="pass")
    script = Path(timed.command[1])
    script.write_text(
        script.read_text()
        .replace('yield {"item": name, "before": True}', f"yield {ours!r}")
        .replace('yield {"item": name, "after": True}', f"yield {theirs!r}")
    )
    stubbed(monkeypatch, tmp_path, checks=[dies], times=[timed])
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    command = ["checks", "times", "--out", str(out), "--json", str(copy), "--commit", "abc"]
    assert session.main(command) == 1
    assert sorted(file.name for file in out.iterdir()) == ["gpu.json", "log.tgz", "summary.txt"]
    result = json.loads((out / "gpu.json").read_text())
    assert result == json.loads(copy.read_text())
    assert (result["commit"], result["complete"]) == ("abc", True)
    assert finished(result["checks"]) == ["first", "second"]
    assert result["rows"] == [{**ours, "times_faster_than": {"torch exact": 2.5}}, theirs]
    assert [(row["part"], row["failures"]) for row in result["parts"]] == [
        ("checks", 1),
        ("times", 0),
    ]
    assert result["failures"] == [
        {"part": "checks", "item": "dies", "raised": "killed by SIGKILL: no output"}
    ]
    with tarfile.open(out / "log.tgz") as archive:
        assert sorted(archive.getnames()) == [
            f"{name}.{kind}" for name in ("dies", "times") for kind in ("jsonl", "log")
        ]
    printed = capsys.readouterr().out
    assert "FAIL checks: dies: killed by SIGKILL" in printed
    assert printed.endswith((out / "summary.txt").read_text())


@pytest.mark.usefixtures("tools")
def test_a_part_beyond_the_budget_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_RESERVE", 0.0)
    lanes = {
        "checks": [worker(tmp_path, "a", first="pass", sleeps="time.sleep(60)")],
        "profile": [worker(tmp_path, "b", late="pass")],
        "tiles": [worker(tmp_path, "c", never="time.sleep(60)")],
    }
    stubbed(monkeypatch, tmp_path, **lanes)
    limited = ["--budget", "4", "--commit", "abc"]
    assert session.main([*lanes, *limited, "--out", str(tmp_path / "out")]) == 1
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert not result["complete"]
    assert finished(result["checks"]) == ["first"]
    assert result["parts"][0]["status"] == "not finished: a"
    # The first part had to leave a second for each of them.
    assert [row["part"] for row in result["parts"]] == list(lanes)
    assert result["parts"][0]["seconds"] < 3.5
    monkeypatch.setattr(session, "_RESERVE", 100.0)
    assert session.main([*lanes, *limited, "--out", str(tmp_path / "none")]) == 1
    result = json.loads((tmp_path / "none" / "gpu.json").read_text())
    assert [row["status"].split(":")[0] for row in result["parts"]] == ["skipped"] * 3


def run_script(tmp_path: Path, *arguments: str, **environment: str) -> Any:
    out = tmp_path / "out"
    # PYTHONPATH: the checkout is run, as on a machine where nothing is installed.
    done = subprocess.run(
        ["bash", str(CHECKOUT / "bench" / "on_gpu.sh"), *arguments],
        env={**os.environ, "OUT": str(out), "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    file = out / "gpu.json"
    return done, json.loads(file.read_text()) if file.exists() else None


NCU_REPORT = """==PROF== Connected
"ID","Kernel Name","gpu__time_duration.sum","lts__t_sector_hit_rate.pct"
"","","ns","%"
"0","hot_groups","1,234.5","61.25"
"1","hot_groups","1000","n/a"
"""


def test_the_script_calls_the_tools(tmp_path: Path, tools: Callable[..., None]) -> None:
    found = "========= Invalid __global__ read of size 4 bytes"
    tools(
        compute_sanitizer=f"case \"$*\" in *memcheck*100,1025*) echo '{found}'; exit 9;; esac",
        ncu=f"""case "$*" in *^hot_groups*)
            while [ "$1" != --log-file ]; do shift; done
            cat > "$2" <<'END'\n{NCU_REPORT}END\n;;
            *) echo '==ERROR== no permission'; exit 1;; esac""",
    )
    done, result = run_script(tmp_path, "--budget", "90", "memcheck", "ncu", "--commit", "abc")
    assert done.returncode == 1, done.stderr
    sanitizer = {row["shape"]: row for row in result["sanitizer"] if row["tool"] == "memcheck"}
    assert sanitizer["40,127,5,33"]["verdict"] == "clean"
    assert sanitizer["100,1025,32,7"]["raised"] == "reported: " + found.strip("= ")
    others = [row for row in result["sanitizer"] if row["tool"] != "memcheck"]
    assert {row["kernel"] for row in others} == {"keep_best_rows", "choose_rows"}
    measured = [row for row in result["ncu"] if "ns" in row]
    assert [row["ns"] for row in measured] == [1234.5, 1000.0]
    assert [row.get("l2_hit_percent") for row in measured] == [61.25, None]
    assert raised(result["ncu"])["ncu update_columns"].startswith(
        "RuntimeError: no launch was measured: ==ERROR== no permission"
    )
    assert len(result["failures"]) == 4
    assert done.stdout.endswith((tmp_path / "out" / "summary.txt").read_text())


@pytest.mark.usefixtures("tools")
def test_the_script_starts_only_parts_within_the_budget(tmp_path: Path) -> None:
    done, result = run_script(tmp_path, "memcheck", "ncu", "--budget", "12", "--commit", "abc")
    assert done.returncode == 1
    assert [row["status"].split(":")[0] for row in result["parts"]] == ["skipped"] * 2


def written(file: Path) -> str:
    """Return the content of the file, empty until it exists."""
    return file.read_text() if file.exists() else ""


def test_a_terminated_script_writes_its_results(tmp_path: Path, tools: Callable[..., None]) -> None:
    stub, out = tmp_path / "stub", tmp_path / "out"
    tools(compute_sanitizer=f"case $* in *40,127*) exit 0;; esac; echo $$ > {stub}; exec sleep 60")
    script = str(CHECKOUT / "bench" / "on_gpu.sh")
    process = subprocess.Popen(
        ["bash", script, "--budget", "90", "--commit", "abc", "memcheck"],
        env={**os.environ, "OUT": str(out), "PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
    )
    # The two run side by side: one must have started, and the other's result must be in the file.
    deadline = time.monotonic() + 60
    while not (written(stub) and '"sanitizer"' in written(out / "gpu.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()  # `timeout` does the same at the end of the budget
    process.wait(20)
    result = json.loads((out / "gpu.json").read_text())
    assert not result["complete"]
    assert [row["verdict"] for row in result["sanitizer"] if "verdict" in row] == ["clean"]
    assert not alive(int(stub.read_text()))


def test_tools_of_the_toolkit_need_not_be_on_the_path(
    tmp_path: Path, tools: Callable[..., None]
) -> None:
    tools(ncu="echo '==ERROR== of the toolkit'")
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    shutil.move(tmp_path / "bin" / "ncu", toolkit / "bin" / "ncu")
    _, result = run_script(tmp_path, "ncu", "--commit", "abc", CUDA_HOME=str(toolkit))
    assert "==ERROR== of the toolkit" in raised(result["ncu"])["ncu update_columns"]


@pytest.mark.usefixtures("tools")
def test_a_commit_must_be_known_before_parts_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stubbed(monkeypatch, tmp_path, checks=[worker(tmp_path, "a", first="pass")])
    monkeypatch.setattr(session.record, "commit", lambda: "unknown")
    command = ["checks", "--out", str(tmp_path / "out")]
    assert session.main(command) == 2
    assert "--commit HASH" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert session.main([*command, "--commit", "abc"]) == 0


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("part", ["nothing", "times", "times:C3", "checks:1,2"])
def test_unknown_parts_are_refused(
    tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.main([part, "--out", str(tmp_path / "out")]) == 2
    assert "got" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_parent_imports_no_torch() -> None:
    code = (
        "import sys, bench.gpu, bench.gpu.worker, bench.gpu.install, bench.gpu.sanitizer, "
        "bench.gpu.ncu; sys.exit('torch' in sys.modules or 'saefast' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True)


def test_every_subject_is_a_module_and_every_part_has_lanes() -> None:
    for module in gpu_worker.SUBJECTS.values():
        assert (CHECKOUT / "bench" / "gpu" / f"{module}.py").is_file()
    for kind in parts.KINDS:
        text = f"{kind}:C1" if kind == "times" else kind
        assert parts.part(text, {}).lanes
    checks = parts.part("checks", {})
    assert checks.limits.together == 8 == len(checks.lanes)
    known = parts.part("times:C2", {"ceilings": {"copy_bytes": 1.0}}).lanes[0].command
    assert json.loads(known[known.index("--facts") + 1]) == {"ceilings": {"copy_bytes": 1.0}}


def full_result(count: int) -> dict[str, Any]:
    """Return a result that is larger than a summary may be."""
    long = "x" * 400
    shape = {"d": 4096, "m": 131072, "k": 64, "n": 8192}
    rows = [
        {"case": f"case {i}", "shape": shape, "rival": rival, "mode": f"{long}", "ms": 1.5 + i}
        for i in range(count)
        for rival in ("saefast", "torch", "SAELens")
    ]
    kernels = [
        {"profile": "C1", "kernel": f"kernel_{i}", "calls": 1, "ms": float(i), "floor_share": 0.5}
        for i in range(count)
    ]
    return {
        "machine": {"device": "NVIDIA X", "driver": "1"},
        "commit": "abc",
        "parts": [
            {"part": f"part {i}", "status": long, "seconds": 1.0, "failures": 0} for i in range(9)
        ],
        "failures": [{"part": "checks", "item": f"i{i}", "raised": long} for i in range(count)],
        "rows": rows,
        "kernels": kernels,
        "tiles": [{"at": str(i), "product": "bf16", "tile": long, "ms": 1.0} for i in range(count)],
        "sanitizer": [{"tool": long}] * count,
        "ncu": [{"kernel": long}] * count,
    }


@pytest.mark.parametrize("count", [0, 1, 10, 1000])
def test_a_summary_is_at_most_9000_characters(count: int) -> None:
    text = summary(full_result(count))
    assert len(text) <= LIMIT == 9000
    assert ("FAILURES" in text) == ("SLOWEST" in text) == ("TIMES" in text) == (count > 0)
    if count == 1000:
        assert "kernel_999" in text
        assert "more, in gpu.json" in text


def test_ratios_are_to_rivals_of_the_same_case_and_shape() -> None:
    def row(rival: str, mode: str, ms: float, case: str = "encode", d: int = 4) -> dict[str, Any]:
        shape = {**TIMED["shape"], "d": d}  # type: ignore[dict-item]
        return {"case": case, "shape": shape, "rival": rival, "mode": mode, "ms": ms}

    rows = [
        row("saefast", "exact", 2.0),
        row("saefast", "bf16", 1.0),
        row("torch", "dense", 5.0),
        row("torch", "dense", 7.0, case="step"),
        row("torch", "dense", 9.0, d=5),
    ]
    exact, bf16, *others = with_ratios(rows)
    assert exact["times_faster_than"] == {"torch dense": 2.5}
    assert bf16["times_faster_than"] == {"torch dense": 5.0}
    assert others == rows[2:]


def test_output_of_ncu_is_parsed() -> None:
    assert ncu.parsed("==ERROR== nothing\n") == []
    assert ncu.parsed(NCU_REPORT)[0] == {"ns": 1234.5, "l2_hit_percent": 61.25}
