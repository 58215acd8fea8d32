"""evaluations: scores of the demo's SAEs beside SAEs with and without an L2 penalty, and times.

`python -m bench evaluations --json FILE`; `--run DIR` takes the folder of an earlier `saefast
demo`. `--budgets quick` leaves out the full sizes; rows of them that are in the file remain, with
the commit at which they were measured. SAEs beside the run are trained on its rows,
in folders next to it. Each budget is one `saefast evaluate` in a process of its own, so that time
and memory are measured for the whole command.

The penalty is defined in arXiv:2603.04198. It is compared with SAEs whose decoder norms are free,
too, since rows that are normalised after every step hardly feel a penalty.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import record
from saefast.pipeline import PRESETS, run_pipeline
from saefast.train import Penalty, Rules, train_saes

WEIGHT = 1e-4
"""Weight of the penalty on the sum of squares of each side"""
KEPT = {
    "probe": ("auroc at 1", "auroc at 5"),
    "explain": ("specificity", "explained by surface"),
    "steer": ("success by rule above mismatched", "success by self above mismatched"),
    "edit": ("h", "cause", "isolation"),
    "absorb": ("absorption fraction", "F1 of main latents"),
}
"""By evaluation, the measures whose scores are written: the primary one first"""
_BUDGETS = ("quick", "full")


def main(arguments: list[str]) -> int:
    """Run the demo, or continue it, train the SAEs beside it, and evaluate all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench evaluations", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write machine, commit and scores to")
    parser.add_argument("--run", type=Path, help="folder of the run (default: a temporary one)")
    parser.add_argument("--budgets", nargs="+", choices=_BUDGETS, default=_BUDGETS)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.run or Path(folder) / "demo"
        run_pipeline(PRESETS["demo"], run, resume=True, tell=_tell)
        beside = [_trained_beside(run, "free"), _trained_beside(run, "l2", WEIGHT)]
        budgets = {
            budget: {"commit": record.commit(), **_evaluated(run, beside, budget)}
            for budget in chosen.budgets
        }
    for budget, found in budgets.items():
        print(f"{budget}: {found['seconds']} s, {found['peak_gb']} GB")
        print("\n".join(finding["text"] for finding in found["findings"]))
    if chosen.json:
        known = json.loads(chosen.json.read_text())["budgets"] if chosen.json.exists() else {}
        together = {name: budgets.get(name) or known.get(name) for name in _BUDGETS}
        result = {
            "machine": record.machine(),
            "commit": record.commit(),
            "budgets": {name: found for name, found in together.items() if found},
        }
        record.write(chosen.json, result)
    return 0


def _trained_beside(run: Path, name: str, weight: float = 0.0) -> Path:
    """Train two SAEs like the run's, with free decoder norms and a penalty on both sides."""
    out = run.with_name(f"{run.name}-{name}") / name
    penalties = tuple(Penalty(side, "fro_squared", weight) for side in ("encoder", "decoder"))
    config = dataclasses.replace(
        PRESETS["demo"].train,
        seeds=(0, 1),
        rules=Rules(clip=1.0, unit_norm=False, penalties=penalties if weight else ()),
    )
    train_saes(str(run / "store" / "train"), config, out=out, resume=True, keep_training=False)
    return out


def _evaluated(run: Path, beside: list[Path], budget: str) -> dict[str, Any]:
    """Evaluate the run again, and return its scores, seconds and peak memory."""
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    command = [sys.executable, "-P", "-m", "saefast", "evaluate", str(run), *KEPT]
    command += ["--budget", budget, "--json", "--beside", *map(str, beside)]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        seconds = time.perf_counter() - start
        output.seek(0)
        printed = json.load(output)
    return {
        "seconds": round(seconds, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        **reduced(printed),
    }


def reduced(printed: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the output of `saefast evaluate --json` that is committed."""
    return {
        "stages": {name: printed["stages"][name]["seconds"] for name in KEPT},
        "notes": {name: printed[name]["notes"] for name in KEPT},
        "scores": [
            {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in s.items()
            }
            for name, measures in KEPT.items()
            for s in printed[name]["scores"]
            if s["measure"] in measures
        ],
        "findings": [finding for name in KEPT for finding in printed[name]["findings"]],
    }


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
