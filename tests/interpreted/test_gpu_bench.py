"""The GPU checks and contests of bench/, at sizes for the interpreter."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
from helpers.kernel_sources import kernels_in_source
from torch import Tensor

from bench.cases import Shape
from bench.gpu import checks, encode_checks, smoke, training_checks
from bench.gpu.contest import Contest
from bench.gpu.encodes import encodes
from bench.gpu.finding import drawn_on
from saefast.kernels.codes import latent_sum, sparse_decode
from saefast.kernels.encode import select_triton, threshold_encode
from saefast.kernels.update import latent_update
from saefast.ops.gpu_screens import SCREENS, GpuScreen

SMALL = Shape(9, 33, 3, 3)
ON_THE_CPU = ("trainings", "defaults")


@pytest.fixture(autouse=True)
def _fewer_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep only the screens in use, with lists by Triton."""
    monkeypatch.setattr(encode_checks.gpu, "has_cuda", lambda: False)
    monkeypatch.setattr(encode_checks, "SCREENS", SCREENS[:4])


@pytest.mark.parametrize("check", [one for one in checks.CHECKS if one.__name__ not in ON_THE_CPU])
def test_every_check_holds(check: Callable[..., Iterator[Any]]) -> None:
    """Steps take too long here; tests/bench/test_gpu_contests.py runs them on the CPU's kernels."""
    found = list(check(SMALL, *drawn_on(SMALL, "cpu")))
    assert [finding for finding in found if not finding.holds] == []
    assert len(found) == len({finding.check for finding in found}) > 0


def test_a_training_is_checked() -> None:
    data = drawn_on(SMALL, "cpu")
    finding = training_checks.training(SMALL, *data, "exact", auxk=True)
    assert finding.holds, finding


def exact_training(*data: Any) -> Iterator[Any]:
    """Return one check of a training."""
    yield training_checks.training(*data, "exact", auxk=False)


def failing(*checks: Callable[..., Iterator[Any]]) -> set[str]:
    """Return checks with failures; one screen that serves both precisions is enough."""
    encode_checks.SCREENS = (GpuScreen("fused", "bfloat16"),)
    data = drawn_on(SMALL, "cpu")
    return {
        check.__name__
        for check in checks
        if not all(finding.holds for finding in check(SMALL, *data))
    }


def test_checks_detect_a_wrong_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_best(keys: Tensor, counts: Tensor, values: Tensor, indices: Tensor) -> None:
        n, k = values.shape
        more = values.new_empty(n, k + 1), indices.new_empty(n, k + 1)
        choose(keys, counts, *more)
        values.copy_(more[0][:, 1:])
        indices.copy_(more[1][:, 1:])

    choose = select_triton.choose
    monkeypatch.setattr(select_triton, "choose", second_best)
    encodes = (
        encode_checks.exact_encodes,
        encode_checks.rounded_encodes,
        encode_checks.integer_encodes,
    )
    assert len(failing(*encodes)) == 3


def test_checks_detect_ignored_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_every_other(*arguments: Any, **options: Any) -> object:
        found = column_bounds(*arguments, **options)
        found.shift[::2] = -torch.inf
        return found

    column_bounds = threshold_encode.column_bounds
    monkeypatch.setattr(threshold_encode, "column_bounds", without_every_other)
    assert len(failing(encode_checks.thresholds, encode_checks.integer_thresholds)) == 2


def test_checks_detect_a_sum_without_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    sort_by_latent = latent_sum.sort_by_latent

    def without_the_first(indices: Tensor, latents: int, **options: Any) -> object:
        by_latent = sort_by_latent(indices, latents, **options)
        by_latent.start[int(indices[0, 0])] += 1
        return by_latent

    for module in (latent_sum, latent_update):
        monkeypatch.setattr(module, "sort_by_latent", without_the_first)
    assert len(failing(training_checks.gradients, exact_training)) == 2


def test_checks_detect_changing_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_residual, calls = sparse_decode.decode_residual, iter(range(1000))

    def unsteady(*arguments: object) -> tuple[Tensor, ...]:
        residual, *others = decode_residual(*arguments)
        return residual * (1 + 2.0**-23 * (next(calls) % 2)), *others

    monkeypatch.setattr(sparse_decode, "decode_residual", unsteady)
    assert len(failing(training_checks.residuals, exact_training)) == 2


def test_checks_detect_scores_with_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded_otherwise(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        values, *others = encode(*arguments, **options)
        return values * (1 + 2.0**-23), *others

    encode = threshold_encode.encode
    monkeypatch.setattr(threshold_encode, "encode", rounded_otherwise)
    assert failing(encode_checks.same_scores)


def test_every_encode_runs_and_agrees() -> None:
    contest = Contest(Shape(9, 33, 3, 4), "cpu")
    seen = {}
    for one in encodes(contest):
        # A compiler is not available.
        if one.rival == "torch.compile":
            continue
        values = one.build()()
        assert isinstance(values, Tensor)
        assert one.agrees(values), one.name
        assert not one.agrees(torch.roll(values, 1, 0) + 1), one.name
        seen[f"{one.rival} {one.mode}"] = one
    assert {"saefast bf16 fused", "saefast bf16 chunked", "torch bf16 dense"} <= set(seen)


def test_smoke_launches_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = set()

    def recorded(self: Any, *arguments: Any, **options: Any) -> Any:
        launched.add(self.fn.__name__)
        return call(self, *arguments, **options)

    executor = triton.runtime.interpreter.GridExecutor
    call = executor.__call__
    monkeypatch.setattr(executor, "__call__", recorded)
    monkeypatch.setattr(smoke, "_HOT", 4)
    for name, use in smoke.uses(Shape(5, 12, 2, 2), "cpu"):
        [row] = smoke._row(name, use)
        assert row["holds"], name
    assert kernels_in_source() <= launched
