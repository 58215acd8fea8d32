"""match: neighbours beside FAISS and a GEMM, one to one beside scipy and lapx, and large sizes.

`python -m bench match --json FILE` runs all parts, each in a separate process; `--parts` selects
some. `--dry-run --m M --d D` only estimates the time and memory of a matching.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saefast
import saefast.match.features as matching
from bench import record
from bench.calls import watched
from bench.match_kinds import KINDS, alive, assert_proven, best_value, cosines, features
from bench.match_rivals import sparse_rivals
from bench.measure import peak_memory
from saefast.match import one_to_one
from saefast.match.engines import Encode, Faiss
from saefast.match.neighbours import nearest
from saefast.unit_rows import UnitRows

SHARED = 0.4
"""Share of features with a noisy copy in the other dictionary; the others are independent."""
PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {}


def part(function: Callable[[int], list[dict[str, Any]]]) -> Callable[[int], list[dict[str, Any]]]:
    """Register a part that can be selected by name."""
    PARTS[function.__name__] = function
    return function


def dictionaries(m: int, d: int) -> tuple[Tensor, Tensor]:
    """Return unit rows [m, d] twice, with cosines of about 0.96 between shared features."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(m, d, generator=generator) for _ in range(2))
    shared = int(SHARED * m)
    b[:shared] = a[:shared] + 0.3 * b[:shared]
    b = b[torch.randperm(m, generator=generator)]
    return a.div_(a.norm(dim=1, keepdim=True)), b.div_(b.norm(dim=1, keepdim=True))


def shape_of(m: int, d: int, k: int) -> dict[str, int]:
    """Return the shape as other benchmarks write it: all m rows are looked up."""
    return {"d": d, "m": m, "k": k, "n": m}


@part
def neighbours(rounds: int) -> list[dict[str, Any]]:
    """Time the 64 nearest of each of 16384 rows: saefast's encode, FAISS, and the bare product."""
    return [row for d in (64, 576, 2048) for row in _neighbours(16_384, d, 64, rounds)]


def _neighbours(m: int, d: int, k: int, rounds: int) -> list[dict[str, Any]]:
    a, b = dictionaries(m, d)
    x, others = (UnitRows.of(rows, "decoder", "rows") for rows in (a, b))
    index = Faiss("faiss", False)
    out = torch.empty(4096, m)

    def product() -> None:
        for rows in a.split(4096):
            torch.mm(rows, b.T, out=out[: len(rows)])

    def bare_faiss() -> object:
        import faiss

        flat = faiss.IndexFlatIP(d)
        flat.add(b.numpy())
        return flat.search(a.numpy(), k)

    runs: dict[str, Callable[[], object]] = {
        "torch.mm": product,
        "saefast": lambda: nearest(x, others, k, Encode(False), 2e9),
        "faiss IndexFlatIP": bare_faiss,
        "faiss IndexFlatIP, float64 decides": lambda: nearest(x, others, k, index, 2e9),
    }
    found = [nearest(x, others, k, engine, 2e9) for engine in (Encode(False), index)]
    sample = x.block(0, 512) @ others.block(0, m).T
    true = sample.topk(k).values
    agrees = torch.equal(found[0].indices, found[1].indices)
    agrees &= bool((found[0].values[:512] - true).abs().max() < 1e-12)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_seconds(run))
    unit = seconds["torch.mm"]
    return [
        {
            "case": "match neighbours",
            "shape": shape_of(m, d, k),
            "rival": name.split(",")[0],
            "mode": name,
            "ms": round(statistics.median(times) * 1e3, 1),
            "gemm_ratio": _ratio(times, unit),
            "faiss_ratio": _ratio(times, seconds["faiss IndexFlatIP"]),
            "rounds": rounds,
            "agrees": agrees,
        }
        for name, times in seconds.items()
    ]


@part
def dense(rounds: int) -> list[dict[str, Any]]:
    """Time a whole matching of 16384 features of width 576 beside scipy's dense solver alone."""
    from scipy.optimize import linear_sum_assignment

    m, d = 16_384, 576
    a, b = dictionaries(m, d)
    ours, solver, theirs = [], [], []
    for _ in range(max(1, rounds // 5)):
        with watched(one_to_one, "best_assignment") as spent:
            start = time.perf_counter()
            found = saefast.match_features(a, b, one_to_one=True, progress=False)
            ours.append(time.perf_counter() - start)
            solver.append(sum(spent))
        similarity = (a.double() @ b.double().T).numpy()
        start = time.perf_counter()
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        theirs.append(time.perf_counter() - start)
    best = float(similarity[rows, columns].sum())
    assert found.value is not None
    agrees = bool(found.certified) and abs(found.value - best) <= 1e-6 * best
    common = {
        "case": "match one to one",
        "shape": shape_of(m, d, 64),
        "rounds": len(ours),
        "agrees": agrees,
    }
    return [
        common
        | {
            "rival": "saefast",
            "mode": "neighbours, solver and proof",
            "ms": round(statistics.median(ours) * 1e3, 1),
            "solver_ms": round(statistics.median(solver) * 1e3, 1),
            "certified": found.certified,
            "value": found.value,
            "scipy_ratio": _ratio(theirs, ours),
        },
        common
        | {
            "rival": "scipy linear_sum_assignment",
            "mode": "solver alone, dense float64",
            "ms": round(statistics.median(theirs) * 1e3, 1),
            "value": best,
        },
    ]


@part
def kinds(_: int) -> list[dict[str, Any]]:
    """Match 4096 features of every hard kind, square and not, and compare with scipy's optimum."""
    return [_of_kind(kind, 4096, m2) for kind in KINDS for m2 in (4096, 3072)]


def _of_kind(kind: str, m: int, m2: int) -> dict[str, Any]:
    d = 32
    a, b = features(kind, m, m2, d, 0)
    saefast.match_features(a[:512], b[:512], one_to_one=True, progress=False)  # starts threads
    start = time.perf_counter()
    found = saefast.match_features(a, b, one_to_one=True, progress=False)
    ours = time.perf_counter() - start
    assert_proven(found, a, b)
    similarity = cosines(a[alive(a)], b[alive(b)])
    start = time.perf_counter()
    best = best_value(similarity, None)
    theirs = time.perf_counter() - start
    assert found.value is not None
    return {
        "case": "match kinds",
        "kind": kind,
        "shape": shape_of(m, d, 64) | {"m2": m2},
        "rival": "saefast",
        "mode": "neighbours, solver and proof",
        "ms": round(ours * 1e3, 1),
        "scipy_ms": round(theirs * 1e3, 1),
        "value": found.value,
        "scipy_value": best,
        "certified": found.certified,
        "rounds": 1,
        "agrees": bool(found.certified) and abs(found.value - best) <= 1e-6 * abs(best),
    }


@part
def wide(_: int) -> list[dict[str, Any]]:
    """Match 131072 features of width 576."""
    return _large(131_072, 576, 64, 2.0)


@part
def narrow(_: int) -> list[dict[str, Any]]:
    """Match 131072 features of width 64."""
    return _large(131_072, 64, 64, 2.0)


@part
def million(_: int) -> list[dict[str, Any]]:
    """Match 1048576 features of width 32, the most that lists of 16 have room for."""
    return _large(2**20, 32, 16, 4.0, rivals=False)


def _large(m: int, d: int, k: int, memory: float, rivals: bool = True) -> list[dict[str, Any]]:
    a, b = dictionaries(m, d)
    watching = (
        watched(one_to_one, "best_assignment", keep=rivals),
        watched(matching, "nearest_both_ways"),
    )
    with watching[0] as solver, watching[1] as search:
        start = time.perf_counter()
        found = saefast.match_features(
            *(a, b), one_to_one=True, neighbours=k, backend="saefast", memory=memory
        )
        whole = time.perf_counter() - start
    peak = peak_memory()
    product = _product_seconds(a, b)
    common = {"case": "match one to one", "shape": shape_of(m, d, k), "rounds": 1}
    rows = [
        common
        | {
            "rival": "saefast",
            "mode": "neighbours, solver and proof",
            "ms": round(whole * 1e3),
            "neighbours_ms": round(sum(search) * 1e3),
            "solver_ms": round(sum(solver) * 1e3),
            "peak_gb": round(peak, 2),
            "dense_matrix_gb": round(8 * m * m / 1e9),
            "certified": found.certified,
            "value": found.value,
            "upper_bound": found.upper_bound,
            "matching_rounds": found.rounds,
            "gemm_ms": round(product * 1e3),
            "neighbours_gemm_ratio": round(sum(search) / product, 4),
            "agrees": bool(found.certified),
        }
    ]
    if rivals:
        assert found.value is not None
        rows += [
            common | row | {"agrees": row.get("value") is None or _close(row["value"], found.value)}
            for row in sparse_rivals(solver.last[0])
        ]
    return rows


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)


def _product_seconds(a: Tensor, b: Tensor) -> float:
    """Return the seconds of one direction's product in float32, extrapolated from blocks."""
    rows, columns = min(8192, len(a)), min(16_384, len(b))
    out = torch.empty(rows, columns)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(a[:rows], b[:columns].T, out=out)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * (len(a) / rows) * (len(b) / columns)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _ratio(times: list[float], unit: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times, unit, strict=True)), 4)


def main(arguments: list[str]) -> int:
    """Run all parts, or those selected."""
    parser = argparse.ArgumentParser(prog="python -m bench match", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write machine, commit and rows to")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--dry-run", action="store_true", help="estimate time and memory of --m and --d"
    )
    parser.add_argument("--m", type=int, default=2**20)
    parser.add_argument("--d", type=int, default=32)
    parser.add_argument("--neighbours", type=int, default=16)
    parser.add_argument("--memory", type=float, default=4.0, help="gigabytes (default 4)")
    chosen = parser.parse_args(arguments)
    if chosen.dry_run:
        from saefast.match.plan import plan_matching

        size = {"neighbours": chosen.neighbours, "memory": chosen.memory}
        print(plan_matching(chosen.m, chosen.d, **size).sentences())
        return 0
    rows: list[dict[str, Any]] = []
    if chosen.json and chosen.json.exists() and set(chosen.parts) != set(PARTS):
        kept = json.loads(chosen.json.read_text())["rows"]
        rows = [row for row in kept if row.get("part") not in chosen.parts]
    for name in chosen.parts:
        found = PARTS[name](chosen.rounds) if chosen.in_process else _in_own_process(name, chosen)
        for row in found:
            print(json.dumps(row), flush=not chosen.in_process)
        rows += [{"part": name, "commit": record.commit()} | row for row in found]
        if chosen.json:
            record.write(chosen.json, {"machine": record.machine(), "rows": rows})
    return 0


def _in_own_process(name: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one part in a new process, so that its peak of memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "bench", "match", "--in-process", "--parts", name]
        command += ["--rounds", str(chosen.rounds), "--json", str(file)]
        root = Path(__file__).resolve().parent.parent
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows
