"""Hints of `saefast info` that would make a machine faster."""

import os
import re

import pytest
import torch

import saefast
from saefast import info
from saefast.cli import main
from saefast.info import Machine, hints, this_machine

FAST = Machine(
    nvidia=False,
    torch_cuda=None,
    sees_gpu=False,
    triton=False,
    cuda_kernels=False,
    openmp=True,
    threads=8,
    cores=8,
    usable_levels=("scalar", "avx2", "avx512"),
    level="avx512",
    screen="native-bfloat16",
    screen_ms={"native-float32": 4.0, "native-bfloat16": 2.0},
    faiss=True,
)
GPU = FAST._replace(nvidia=True, torch_cuda="13.0", sees_gpu=True, triton=True, cuda_kernels=True)


@pytest.mark.parametrize("machine", [FAST, GPU], ids=["cpu", "gpu"])
def test_a_complete_machine_lacks_nothing(machine: Machine) -> None:
    assert hints(machine) == []


SLOW = {
    "torch without CUDA": (GPU, {"torch_cuda": None, "sees_gpu": False}, "a CUDA build of torch"),
    "a driver": (GPU, {"sees_gpu": False}, "update its driver for CUDA 13.0"),
    "Triton": (GPU, {"triton": False}, r"'saefast\[gpu\]' for the Triton kernels"),
    "CUDA C++": (GPU, {"cuda_kernels": False}, "-C cmake.define.SAEFAST_CUDA=ON"),
    "OpenMP": (FAST, {"openmp": False, "threads": 1}, "built without OpenMP"),
    "threads": (FAST, {"threads": 3}, r"3 of 8 processor cores: call torch.set_num_threads\(8\)"),
    "an instruction set": (
        FAST,
        {"level": "avx2"},
        "run avx512 instead of avx2: unset SAEFAST_ISA",
    ),
    "a screen": (FAST, {"screen": "native-float32"}, "slower than native-bfloat16 here: unset SAE"),
    "FAISS": (FAST, {"faiss": False}, r"pip install 'saefast\[cpu\]'"),
    "FAISS for GPUs": (GPU, {"faiss": False}, r"pip install 'saefast\[gpu\]'"),
}


@pytest.mark.parametrize("case", SLOW)
def test_one_lack_is_one_hint_with_its_remedy(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    machine, change, expected = SLOW[case]
    (hint,) = hints(machine._replace(**change))
    assert re.search(expected, hint)
    assert "\n" not in hint


def test_the_variable_that_limits_the_threads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hints(FAST._replace(threads=3)) == [
        "torch uses 3 of 8 processor cores: unset OMP_NUM_THREADS"
    ]


def test_the_greatest_gain_comes_first() -> None:
    slow = GPU._replace(triton=False, threads=1, faiss=False)
    assert [hint.split(" ")[1] for hint in hints(slow)] == ["GPU", "uses", "of"]


def test_the_facts_are_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, torch_threads: None, level: str
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(info, "_cores", lambda: 2)
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda _name: None)
    found = this_machine()
    assert (found.threads, found.cores, found.faiss, found.triton) == (1, 2, False, False)
    assert found.level == level
    assert found.usable_levels[-1] in saefast.build_info()["isa"]["usable"]
    assert found.sees_gpu == torch.cuda.is_available()


def test_cores_are_those_that_are_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight hardware threads on four cores, six are allowed; then a container grants two."""
    files = {
        f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}"
        for n in range(8)
    }
    monkeypatch.setattr(info, "_text", lambda path: files.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 4, 5, 6}, raising=False)
    assert info._cores() == 3
    files["/sys/fs/cgroup/cpu.max"] = "150000 100000"
    assert info._cores() == 2
    files["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert info._cores() == 3
    files.clear()
    assert info._cores() == 6


def test_info_prints_the_hint_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "this_machine", lambda: FAST)
    assert main(["info"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "faster: nothing that this machine could use is missing"
    monkeypatch.setattr(info, "this_machine", lambda: FAST._replace(faiss=False, level="avx2"))
    assert main(["info"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("faster: the processor could run avx512")
    assert "; matching of large" in last
