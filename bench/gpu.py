"""gpu: what an NVIDIA GPU says: correctness, determinism, then times against floors and rivals.

`python -m bench.gpu --json FILE` on a machine with a GPU. Nothing is timed that does not agree.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import saefast
from bench import measure
from bench.cases import Shape, Weights, draw
from saefast import reference
from saefast.ops.encode_gpu import CANDIDATES, ENVIRONMENT

SHAPES = (
    Shape(768, 32768, 32, 8192),
    Shape(2304, 65536, 64, 8192),
    Shape(4096, 131072, 64, 8192),
)
SMALL = (Shape(40, 127, 5, 33), Shape(100, 1025, 32, 70), Shape(257, 4096, 17, 129))
_LR = 1e-4


def check(shape: Shape) -> list[dict[str, Any]]:
    """Exact encodes by every screen, the bfloat16 encode, decode and a step, against float64."""
    x, weights = _on_gpu(shape)
    truth = reference.scores(x.double(), weights.w_enc.double(), weights.b_enc.double(), None)
    best = truth.topk(shape.k, dim=1).values
    rows = []
    for screen in CANDIDATES:
        os.environ[ENVIRONMENT] = str(screen)
        codes = [saefast.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k) for _ in range(2)]
        kept = truth.gather(1, codes[0].indices)
        rows.append(
            {
                "check": f"exact {screen}",
                "shape": shape._asdict(),
                "missed": float((best.amin(1) - kept.amin(1)).max()),
                "error": float((codes[0].values.double() - kept).abs().max()),
                "same_bits": all(map(torch.equal, *codes)),
            }
        )
    del os.environ[ENVIRONMENT]
    rounded = saefast.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k, precision="bf16")
    recall = (truth.gather(1, rounded.indices) >= best.amin(1, keepdim=True)).double().mean()
    rows.append({"check": "bf16", "shape": shape._asdict(), "recall": float(recall)})
    rows.append(_check_steps(shape, x, weights))
    return rows


def _check_steps(shape: Shape, x: Tensor, weights: Weights) -> dict[str, Any]:
    """Three steps twice on the GPU, and once on the CPU."""
    results = []
    for device in ("cuda", "cuda", "cpu"):
        step = saefast.FusedStep(_model(shape, weights, device), lr=_LR)
        losses = [float(step(x.to(device)).loss) for _ in range(3)]
        results.append((losses, [p.detach() for p in step.sae.parameters()]))
    first, second, cpu = results
    return {
        "check": "three steps",
        "shape": shape._asdict(),
        "same_bits": first[0] == second[0]
        and all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True)),
        "loss_apart_from_cpu": max(abs(a / b - 1) for a, b in zip(first[0], cpu[0], strict=True)),
    }


def race(shape: Shape, ceilings: dict[str, float], rounds: int) -> list[dict[str, Any]]:
    """Encode, decode and whole steps, eager and as a graph, beside torch's dense code."""
    x, weights = _on_gpu(shape)
    half, half_weight = x.bfloat16(), weights.w_enc.bfloat16()
    code = saefast.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k, precision="bf16")
    runs: dict[tuple[str, str, str], Callable[[], object]] = {
        ("encode", "torch.mm", "bf16"): lambda: torch.mm(half, half_weight.T),
        ("encode", "torch", "bf16 dense"): lambda: torch.mm(half, half_weight.T).topk(shape.k),
        ("decode", "saefast", "exact"): lambda: saefast.sparse_decode(
            code.values, code.indices, weights.w_dec, weights.b_dec
        ),
    }
    for precision in ("exact", "bf16"):
        runs["encode", "saefast", precision] = partial(
            saefast.topk_encode,
            x,
            weights.w_enc,
            weights.b_enc,
            k=shape.k,
            precision=precision,
        )
        step = saefast.FusedStep(_model(shape, weights, "cuda"), lr=_LR, precision=precision)
        step(x)
        runs["step", "saefast", precision] = partial(step, x)
        runs["step", "saefast", f"{precision} graph"] = partial(step.capture(x), x)
    for compiled in (False, True):
        name = "torch.compile" if compiled else "torch"
        runs["step", name, "bf16 dense"] = _dense_step(shape, weights, x, compiled=compiled)
    times = _time(list(runs.values()), rounds)
    floors = floors_of(shape, ceilings)
    return [
        {
            "case": case,
            "shape": shape._asdict(),
            "rival": rival,
            "mode": mode,
            "ms": round(ms, 4),
            "floor_share": round(floors[case] / ms, 3),
        }
        for (case, rival, mode), ms in zip(runs, times, strict=True)
    ]


def floors_of(shape: Shape, ceilings: dict[str, float]) -> dict[str, float]:
    """Milliseconds that the operations and bytes of each case take at this GPU's own rates."""
    flops, bandwidth = ceilings["bf16_flops"], ceilings["copy_bytes"]
    product = shape.gemm_flops / flops
    gather = 4.0 * shape.n * shape.k * shape.d / bandwidth
    adam = 26.0 * 2 * shape.m * shape.d / bandwidth
    return {
        "encode": product * 1e3,
        "decode": gather * 1e3,
        "step": (product + 3 * gather + adam) * 1e3,
    }


def ceilings() -> dict[str, float]:
    """The rate of a large product, and of a large copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    product, copy = _time([lambda: torch.mm(a, b), lambda: target.copy_(source)], 20)
    return {
        "bf16_flops": 2 * 8192**3 / (product * 1e-3),
        "copy_bytes": 2 * source.numel() * 4 / (copy * 1e-3),
    }


def sanitized() -> str:
    """What compute-sanitizer says of the correctness checks, if it is there."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer is not installed"
    command = [tool, "--error-exitcode", "1", sys.executable, "-m", "bench.gpu", "--only-check"]
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return "clean" if result.returncode == 0 else result.stdout[-2000:]


def _time(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each, in interleaved rounds."""
    seen: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 2):
        for times, run in zip(seen, runs, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            if number >= 2:
                times.append(float(begin.elapsed_time(end)))
    return [statistics.median(times) for times in seen]


def _dense_step(
    shape: Shape, weights: Weights, x: Tensor, *, compiled: bool
) -> Callable[[], object]:
    model = _model(shape, weights, "cuda")
    optimiser = torch.optim.Adam(model.parameters(), _LR, fused=True)

    def loss_of(x: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            scores = torch.addmm(model.b_enc, x - model.b_dec, model.W_enc.T)
            values, indices = scores.topk(shape.k, sorted=False)
            acts = torch.zeros_like(scores).scatter(1, indices, values.relu())
            out = acts @ model.W_dec + model.b_dec
        return (out.float() - x).square().sum(1).mean()

    function = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimiser.zero_grad()
        function(x).backward()
        optimiser.step()

    return step


def _on_gpu(shape: Shape) -> tuple[Tensor, Weights]:
    x, weights = draw(shape)
    return x.cuda(), Weights(*(weight.cuda() for weight in weights))


def _model(shape: Shape, weights: Weights, device: str) -> saefast.SAE:
    model = saefast.SAE(shape.d, shape.m, k=shape.k, seed=0, device=device)
    with torch.no_grad():
        for name, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
            getattr(model, name).copy_(value)
    return model


def main() -> int:
    """Check, then time, then write."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only-check", action="store_true", help="small shapes, no times")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu needs an NVIDIA GPU; torch sees none", file=sys.stderr)
        return 1
    checks = [row for shape in SMALL for row in check(shape)]
    for row in checks:
        print(row, flush=True)
    if arguments.only_check:
        return 0
    limits = ceilings()
    rows = []
    for shape in SHAPES:
        rows += race(shape, limits, arguments.rounds)
        torch.cuda.empty_cache()
    for row in rows:
        print(row, flush=True)
    if arguments.json:
        machine = {
            "gpu": torch.cuda.get_device_name(),
            "capability": torch.cuda.get_device_capability(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "backends": saefast.build_info()["backends"],
            **limits,
        }
        result = {
            "machine": machine,
            "commit": measure.commit(),
            "sanitizer": sanitized(),
            "checks": checks,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
