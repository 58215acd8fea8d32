"""Origin of results (machine, versions, commit), and the files that keep them.

torch and saefast are imported on demand: results can be written where neither can be imported.
"""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_NOT_RESULTS = ":!bench/results"
_PEERS = ("sae-lens", "eai-sparsify", "dictionary-learning")


def write(file: Path, result: dict[str, Any]) -> None:
    """Replace a JSON file atomically, so that a reader sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(file)


def machine() -> dict[str, Any]:
    """Return the facts about this machine that results depend on."""
    import torch

    import saefast

    info = saefast.build_info()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions("saefast", "torch", *_PEERS),
        "isa": info["isa"]["active"],
        "screen": info["screen"],
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of these packages, "not installed" for missing ones."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def gpu() -> dict[str, Any]:
    """Return the current GPU, its driver and the versions of its software."""
    import torch

    import saefast

    return {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "memory_gb": round(torch.cuda.get_device_properties().total_memory / 1e9, 1),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions("saefast", "torch", "triton", "faiss-gpu", *_PEERS),
        "backends": {
            name: saefast.ops.backends.why_not_live(name) or "live" for name in ("triton", "cuda")
        },
    }


def driver() -> str:
    """Return the version of the driver that nvidia-smi reports."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"
    return result.stdout.splitlines()[0].strip()


def _cpu_name() -> str:
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor()
    return (
        f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')}), "
        f"{facts.get('cpu MHz')} MHz"
    )


def commit() -> str:
    """Return the checkout's commit, marked "-dirty" if files other than bench/results differ."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", _NOT_RESULTS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
