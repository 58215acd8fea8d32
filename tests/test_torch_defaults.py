"""Torch's default dtype, default device and inference mode do not affect results."""

from collections.abc import Iterator

import pytest
import torch
from helpers.tolerance import assert_same_bits
from helpers.training_runs import assert_same_sae, config, train

import saefast
from saefast import SAE
from saefast.ops import screens
from saefast.ops.encode_cpu import Screen
from saefast.ops.screens import usable_screens
from saefast.sae import VARIANTS
from saefast.types import SparseCode


@pytest.fixture(params=["float64", "bfloat16", "device"])
def other_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Change a default; tensors on the meta device stand for those on a GPU."""
    if request.param == "device":
        with torch.device("meta"):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.param))
    yield
    torch.set_default_dtype(before)


X = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


def short(variant: str) -> SAE:
    """Train for a few steps."""
    (sae,) = train(config(variant=variant, tokens=1024))
    return sae


@pytest.fixture(scope="module")
def plain() -> dict[str, SAE]:
    """SAEs trained under torch's own defaults."""
    return {variant: short(variant) for variant in ("topk", "relu")}


@pytest.fixture(scope="module")
def codes() -> dict[str, SparseCode]:
    """Codes under torch's own defaults."""
    return {variant: SAE(16, 64, k=4, variant=variant, seed=0).encode(X) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_sae_is_the_same(
    variant: str, codes: dict[str, SparseCode], other_default: None
) -> None:
    code = SAE(16, 64, k=4, variant=variant, seed=0).encode(X)
    for actual, expected in zip(code, codes[variant], strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("screen", usable_screens(), ids=str)
def test_every_screen_serves(
    screen: Screen, other_default: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "best_screen", lambda: screen)
    weight = SAE(16, 64, k=4, seed=0).W_enc.detach()
    assert saefast.topk_encode(X, weight, k=4).values.device.type == "cpu"


def test_screens_are_measured(other_default: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screens, "_measured", {})
    assert screens.measure_screens().best in usable_screens()


@pytest.mark.parametrize("variant", ["topk", "relu"])
def test_a_training_is_the_same(variant: str, plain: dict[str, SAE], other_default: None) -> None:
    assert_same_sae(short(variant), plain[variant])


def test_a_matching_is_certified(other_default: None) -> None:
    first, second = (SAE(16, 64, k=4, seed=seed) for seed in (0, 1))
    assert saefast.match_features(first, second, one_to_one=True, progress=False).certified


def test_a_threshold_keeps_its_digits(other_default: None) -> None:
    sae = saefast.sae_from(X, k=4, variant="batchtopk", threshold=0.3)
    assert sae.batch_threshold.item() == pytest.approx(0.3, rel=1e-7)


def test_training_in_inference_mode(plain: dict[str, SAE]) -> None:
    with torch.inference_mode():
        sae = short("topk")
    assert_same_sae(sae, plain["topk"])
    assert not sae.W_enc.is_inference()
