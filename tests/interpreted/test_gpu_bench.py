"""The checks and contests that bench/ makes on a GPU, at sizes that the interpreter can bear."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

from saefast.kernels import (
    latent_sum,
    latent_update,
    select_triton,
    sparse_decode,
    threshold_encode,
)

from bench import gpu_checks
from bench.cases import Shape
from bench.gpu_contests import CASES, Contest

SMALL = Shape(9, 33, 3, 3)


@pytest.fixture(autouse=True)
def _lists_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks.gpu, "has_cuda", lambda: False)


@pytest.mark.parametrize("shape", [SMALL, Shape(5, 8, 8, 2)])
def test_every_check_holds(shape: Shape) -> None:
    found = list(gpu_checks.findings(shape, "cpu"))
    assert [finding for finding in found if not finding.holds] == []
    names = [finding.check for finding in found]
    assert len(set(names)) == len(names) == 6 + 2 + 12 + 6 + 4 + 2 + 4


def failing(*checks: Callable[..., Iterator[gpu_checks.Finding]]) -> set[str]:
    """Those that have something to say."""
    data = gpu_checks.drawn_on(SMALL, "cpu")
    return {
        check.__name__
        for check in checks
        if not all(finding.holds for finding in check(SMALL, *data))
    }


def test_checks_see_a_wrong_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_best(keys: Tensor, counts: Tensor, values: Tensor, indices: Tensor) -> None:
        n, k = values.shape
        more = values.new_empty(n, k + 1), indices.new_empty(n, k + 1)
        choose(keys, counts, *more)
        values.copy_(more[0][:, 1:])
        indices.copy_(more[1][:, 1:])

    choose = select_triton.choose
    monkeypatch.setattr(select_triton, "choose", second_best)
    encodes = (gpu_checks.exact_encodes, gpu_checks.rounded_encodes, gpu_checks.integer_encodes)
    assert len(failing(*encodes)) == 3


def test_checks_see_columns_that_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_every_other(*arguments: Any) -> Tensor:
        shift = shift_of(*arguments).clone()
        shift[::2] = -torch.inf
        return shift

    shift_of = threshold_encode.shift_of
    monkeypatch.setattr(threshold_encode, "shift_of", without_every_other)
    assert len(failing(gpu_checks.thresholds, gpu_checks.integer_thresholds)) == 2


def test_checks_see_a_sum_that_misses_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    sort_by_latent = latent_sum.sort_by_latent

    def without_the_first(indices: Tensor, latents: int) -> object:
        by_latent = sort_by_latent(indices, latents)
        by_latent.start[int(indices[0, 0])] += 1
        return by_latent

    for module in (latent_sum, latent_update):
        monkeypatch.setattr(module, "sort_by_latent", without_the_first)
    assert len(failing(gpu_checks.gradients, gpu_checks.trainings)) == 2


def test_checks_see_bits_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_residual, calls = sparse_decode.decode_residual, iter(range(1000))

    def unsteady(*arguments: object) -> tuple[Tensor, ...]:
        residual, *others = decode_residual(*arguments)
        return residual * (1 + 2.0**-23 * (next(calls) % 2)), *others

    monkeypatch.setattr(sparse_decode, "decode_residual", unsteady)
    assert len(failing(gpu_checks.residuals, gpu_checks.trainings)) == 2


@pytest.fixture(scope="module")
def contest() -> Contest:
    return Contest(Shape(16, 48, 3, 8), "cpu")


def entered(contest: Contest, case: str) -> Iterator[tuple[str, object]]:
    """Ours and eager torch's: compilers and peers need what is not here."""
    for one in contest.contestants(case, peers=False):
        if one.rival != "torch.compile" and "graph" not in one.mode:
            yield f"{one.case} {one.rival} {one.mode}", one


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning")
def test_every_contestant_runs_and_agrees(contest: Contest, case: str) -> None:
    seen = {}
    for name, one in entered(contest, case):
        # The interpreter's bfloat16 is wrong.
        if one.rival == "saefast" and one.mode == "bf16" and case == "decode":
            continue
        run = one.build()
        assert one.agrees(run()), name
        seen[name] = one
        result = run()
        if isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1:
            assert not one.agrees(torch.roll(result, 1, 0) + 1), name
    assert any(" saefast " in name for name in seen)
    assert any(" torch " in name for name in seen)


def test_the_rule_for_bf16_can_be_set_from_what_is_timed(contest: Contest) -> None:
    names = [name for name, _ in entered(contest, "encode")]
    assert {"encode saefast bf16 fused", "encode saefast bf16 chunked"} <= set(names)
