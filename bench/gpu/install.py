"""Installation of saefast on a machine with torch and a compiler, but no network.

A wheel in .whl/ for this Python that holds the Python files of this checkout is unpacked; otherwise
an installed saefast is used if it has these files; otherwise the checkout is built, with its CUDA
C++ kernels if nvcc is there. The result lies in build/on_gpu, which bench/on_gpu.sh puts on
PYTHONPATH. Without CUDA C++ kernels the selection runs in Triton, which the row reports as a
failure.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.gpu.worker import Item

CHECKOUT = Path(__file__).resolve().parents[2]
TARGET = CHECKOUT / "build" / "on_gpu"
_PROBE = """
import importlib.util, json, sys
sys.path[:] = [entry for entry in sys.path if entry not in ("", {checkout!r})]
import saefast, saefast._native, saefast.kernels.encode.topk_encode
cuda = importlib.util.find_spec("saefast._cuda") is not None
print(json.dumps({{"folder": saefast.__path__[0], "cuda": cuda}}))
"""


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the only item."""
    yield Item("install", installed)


def installed() -> Iterable[dict[str, Any]]:
    """Install, and yield what was done, or raise the errors of all attempts."""
    begin = time.perf_counter()
    found = wheel(CHECKOUT / ".whl", CHECKOUT)
    said = []
    for how, attempt in (
        ("wheel", lambda: found is not None and _pip(str(found))),
        ("as it was", lambda: True),
        ("built, CUDA", lambda: bool(shutil.which("nvcc")) and _pip(".", *_cuda_settings())),
        ("built", lambda: _pip(".")),
    ):
        try:
            if not attempt():
                continue
            info = _probe()
            if stale := differences(_in_folder(Path(info["folder"])), CHECKOUT):
                said.append(f"{how}: {', '.join(stale[:3])} are not those of the checkout")
                continue
        except subprocess.CalledProcessError as error:
            print(error.stdout, flush=True)
            said.append(f"{how}: {_last_line(error.stdout)}")
        else:
            seconds = round(time.perf_counter() - begin, 1)
            cuda = {"holds": True} if info["cuda"] else _without_cuda(how)
            yield {"how": how, "seconds": seconds, **cuda, "failed_before": said, "info": info}
            return
    raise RuntimeError("; ".join(said))


def _without_cuda(how: str) -> dict[str, Any]:
    """Return the entries of a failure, since a session asks for the CUDA C++ kernels."""
    reason = f"{how}: no CUDA C++ kernels, so the selection runs in Triton"
    return {
        "holds": False,
        "reason": reason if shutil.which("nvcc") else f"{reason}; nvcc is not on PATH",
    }


def wheel(folder: Path, checkout: Path) -> Path | None:
    """Return a folder's wheel for this Python with the Python files of the checkout, or None."""
    for file in sorted(folder.glob("saefast-*.whl")):
        if not _is_for_this_python(file.stem):
            print(f"{file.name} is not for this Python or processor", flush=True)
            continue
        with zipfile.ZipFile(file) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        if not (stale := differences(held.get, checkout)):
            return file
        print(f"{file.name} is not of this checkout: {', '.join(stale[:3])} differ", flush=True)
    return None


def _is_for_this_python(name: str) -> bool:
    """Return whether the tags at the end of a wheel's name are of this Python and processor."""
    *_, python, _, system = name.split("-")
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return own in python.split(".") and system.endswith(platform.machine())


def differences(read: Callable[[str], bytes | None], checkout: Path) -> list[str]:
    """Return the Python files of the checkout that are missing or different in an installation."""
    folders = {"saefast": checkout / "saefast", "saefast/kernels": checkout / "kernels"}
    return [
        place
        for package, folder in folders.items()
        for file in sorted(folder.rglob("*.py"))
        # A checkout may link its kernels into the package.
        if (place := f"{package}/{file.relative_to(folder)}").startswith("saefast/kernels/")
        == (package == "saefast/kernels")
        and read(place) != file.read_bytes()
    ]


def _in_folder(installed: Path) -> Callable[[str], bytes | None]:
    """Return a reader of an installed package's files, by their paths in a wheel."""

    def read(place: str) -> bytes | None:
        file = installed.parent / place
        return file.read_bytes() if file.is_file() else None

    return read


def _pip(what: str, *settings: str) -> bool:
    """Install a package into `TARGET` without a registry."""
    shutil.rmtree(TARGET, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--target", str(TARGET), *settings, what]
    _run(command, CHECKOUT)
    return True


def _cuda_settings() -> list[str]:
    """Return the settings of a build with the CUDA C++ kernels for the GPU of this machine."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    architecture = (said.split() or ["9.0"])[0].replace(".", "")
    return [
        "-Ccmake.define.SAEFAST_CUDA=ON",
        f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={architecture}-real",
    ]


def _probe() -> Any:
    """Return the facts that an import of saefast in a new process reports."""
    said = _run([sys.executable, "-c", _PROBE.format(checkout=str(CHECKOUT))], TARGET.parent.parent)
    return json.loads(said.splitlines()[-1])


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
