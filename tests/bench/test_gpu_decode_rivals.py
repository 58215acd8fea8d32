"""The GPU benchmark of flexsae's decoder, with a stand-in for its module."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench.cases import Shape
from bench.gpu import decode_rivals
from bench.gpu.contest import Contest
from saefast import reference


@pytest.fixture(scope="module")
def contest() -> Contest:
    return Contest(Shape(16, 512, 4, 600), "cpu")


@pytest.fixture
def _flexsae(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(indices: Tensor, weight: Tensor, values: Tensor) -> Tensor:
        return reference.sparse_decode(values, indices, weight)

    def loss(
        indices: Tensor, weight: Tensor, values: Tensor, bias: Tensor, target: Tensor
    ) -> Tensor:
        return (decode(indices, weight, values) + bias - target).float().square().mean()

    module = SimpleNamespace(
        xFormersEmbeddingBag=SimpleNamespace(apply=decode), triton_topk_sae_loss=loss
    )
    monkeypatch.setattr(decode_rivals.importlib, "import_module", lambda name: module)


@pytest.mark.usefixtures("_flexsae")
@pytest.mark.parametrize("case", decode_rivals.RIVAL_CASES)
def test_both_decoders_run_and_agree(contest: Contest, case: str) -> None:
    seen = set()
    for one in decode_rivals.RIVAL_CASES[case](contest):
        result = one.build()()
        assert one.agrees(result), one.name
        assert not one.agrees(1.1 * result + 0.1), one.name
        seen.add((one.case, one.rival, one.mode))
    cases = {"decode", "decode+backward"} if case == "decode" else {case}
    assert seen == {
        (each, rival, mode)
        for each in cases
        for rival in ("saefast", "flexsae")
        for mode in ("fp32", "bf16")
    }


def test_the_true_loss_matches_all_rows(contest: Contest) -> None:
    decoded = reference.sparse_decode(*contest.code, contest.weights.w_dec, contest.weights.b_dec)
    expected = float((decoded - contest.x).square().mean())
    assert decode_rivals._true_loss(contest) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_computed_in_a_loss(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []
    grad = torch.autograd.grad

    def counted(output: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wanted.append(len(leaves))
        return grad(output, leaves)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    first = next(decode_rivals.RIVAL_CASES[decode_rivals.LOSS](contest))
    first.build()()
    assert wanted == [3]
