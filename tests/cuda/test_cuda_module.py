"""`saefast._cuda`: it can be imported and called up to its kernels without a GPU."""

import ast
import re
from pathlib import Path

import pytest
import torch

import saefast
from saefast import _cuda
from saefast.kernels.encode import select_cuda
from saefast.kernels.encode.lists import Bounds, Lists, Screened
from saefast.ops import gpu

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_encodes_use_the_cuda_lists() -> None:
    assert gpu.has_cuda()
    assert gpu.select("auto") is gpu.select("cuda") is select_cuda


def test_the_architectures_of_the_build_are_listed() -> None:
    assert _cuda.architectures
    assert all(re.fullmatch(r"\d+-(real|virtual)", name) for name in _cuda.architectures)


def test_the_stub_has_the_arguments_in_order() -> None:
    stub = ast.parse((Path(saefast.__file__).parent / "_cuda.pyi").read_text())
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == ["keep_best", "choose"]
    for function in functions:
        signature = getattr(_cuda, function.name).__doc__.splitlines()[0]
        names = re.findall(r"(\w+): ", signature)
        assert names == [argument.arg for argument in function.args.args]


def lists(rows: int, capacity: int) -> Lists:
    return Lists.allocate(rows, capacity, torch.device("cpu"))


@pytest.mark.parametrize("capacity", [63, 1 << 14])
def test_a_capacity_without_a_kernel_is_refused(
    capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select_cuda, "_stream", lambda: 0)
    values, indices = torch.empty(4, 2), torch.empty(4, 2, dtype=torch.int64)
    keys, counts, *_ = lists(4, capacity)
    with pytest.raises(ValueError, match=f"capacity must be a power of two .*, got {capacity}"):
        select_cuda.choose(keys, counts, values, indices)


@without_gpu
def test_errors_of_cuda_launches_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select_cuda, "_stream", lambda: 0)
    rows, columns, k, block = 4, 64, 2, 16
    kept = lists(rows, 64)
    bounds = Bounds(*(torch.zeros(size) for size in (columns, columns, columns, rows, rows)))
    screened = Screened(torch.zeros(rows, columns), None, None, 0, columns, columns)
    with pytest.raises(RuntimeError, match="a CUDA kernel could not start"):
        select_cuda.keep_best(screened, bounds, kept, k, block, bounded=True)
    values, indices = torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="a CUDA kernel could not start"):
        select_cuda.choose(kept.keys, kept.counts, values, indices)
