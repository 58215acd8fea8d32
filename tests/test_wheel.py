"""The installed package is the tested one, complete, and quick to import."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT

import saefast


def run_isolated(code: str, folder: Path, **environment: str) -> str:
    """Run Python in another folder, without the checkout or the tests on its path."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_tested_package_is_the_installed_one() -> None:
    assert CHECKOUT / "saefast" not in Path(saefast.__file__).resolve().parents


def test_the_wheel_is_complete() -> None:
    files = {str(file) for file in importlib.metadata.files("saefast") or []}
    sources = {
        f"saefast/{path.relative_to(CHECKOUT / 'saefast')}"
        for path in (CHECKOUT / "saefast").rglob("*")
        if path.suffix in (".py", ".pyi", ".typed", ".tsv", ".css", ".js")
    }
    kernels = {
        f"saefast/kernels/{path.relative_to(CHECKOUT / 'kernels')}"
        for path in (CHECKOUT / "kernels").rglob("*.py")
    }
    assert sources | kernels <= files
    assert any(name.startswith("saefast/_native.") and name.endswith(".so") for name in files)
    outside = {name for name in files if not name.startswith(("saefast", "../"))}
    assert not outside, "the wheel must not ship tests, bench or csrc"


def test_the_package_works_outside_of_the_checkout(tmp_path: Path) -> None:
    code = """
import torch, saefast
from saefast import reference
x, w = torch.randn(50, 33), torch.randn(400, 33)
code = saefast.topk_encode(x, w, k=7)
assert torch.equal(code.indices, reference.topk_encode(x, w, k=7).indices)
out = saefast.sparse_decode(*code, w)
torch.testing.assert_close(out, code.to_dense(400) @ w)
print("works")
"""
    assert run_isolated(code, tmp_path).strip() == "works"


def test_import_loads_no_heavy_packages(tmp_path: Path) -> None:
    """Counts modules that `import saefast` looks for in addition to torch, installed or not."""
    code = """
import sys, json
asked = []
class Listener:
    def find_spec(self, name, path=None, target=None):
        asked.append(name.split(".")[0])
sys.meta_path.insert(0, Listener())
import torch
before = len(asked)
import saefast
print(json.dumps(sorted(set(asked[before:]) | set(sys.modules) & {"faiss", "transformers"})))
"""
    asked = set(json.loads(run_isolated(code, tmp_path)))
    assert "saefast" in asked
    heavy = {"triton", "faiss", "transformers", "pyarrow", "pandas", "plotly", "tyro", "scipy"}
    heavy |= {"huggingface_hub", "yaml", "sae_lens"}
    assert not asked & heavy


@pytest.mark.alone
def test_import_is_quick(tmp_path: Path) -> None:
    code = """
import time, torch
start = time.perf_counter()
import saefast
print(time.perf_counter() - start)
"""
    assert min(float(run_isolated(code, tmp_path)) for _ in range(3)) < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_serves_torch_and_saefast(tmp_path: Path) -> None:
    code = """
import torch, saefast
saefast.topk_encode(torch.randn(300, 8), torch.randn(300, 8), k=3)
maps = open("/proc/self/maps").read().split()
print(len({path for path in maps if "gomp" in path or "iomp" in path or "libomp" in path}))
"""
    assert run_isolated(code, tmp_path).strip() == "1"


def test_an_instruction_set_can_be_forced(tmp_path: Path) -> None:
    code = "import saefast; print(saefast.build_info()['isa']['active'])"
    assert run_isolated(code, tmp_path, SAEFAST_ISA="scalar").strip() == "scalar"
    result = subprocess.run(
        [sys.executable, "-c", "import saefast"],
        env={"SAEFAST_ISA": "mmx"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "instruction set level must be one of scalar" in result.stderr
