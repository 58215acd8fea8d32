"""Initial weights, schedules of settings, and errors of bad settings."""

from functools import partial
from typing import Any

import pytest
import torch
from helpers.tolerance import assert_same_bits
from torch import Tensor

from saefast import SAE, Penalty, Rules, TrainConfig
from saefast.sae import VARIANTS
from saefast.train.initial import Sample, Scales, begin, folded, scales_of
from saefast.train.seed_trainer import k_at, lr_at, pressure_at

NONE = Scales(1.0, 1.0)


def rows(n: int = 3000, d: int = 6) -> Tensor:
    """Draw correlated rows away from the origin, with a few outliers."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    x = torch.randn(n, d, generator=generator) @ mix + 3
    x[: n // 100] *= 100
    return x


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**({"latents": 40, "k": 3} | changes))


def test_directions_have_the_covariance_of_rows() -> None:
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 7)
    many = config(latents=20_000, directions="cov")
    drawn = begin(many, 0, Sample(x + 50, None), NONE).W_dec.detach()
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(20_000))
    # Of a normal vector with this covariance, normalised.
    expected = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(2))
    expected *= torch.arange(1.0, 7)
    expected /= expected.norm(dim=1, keepdim=True)
    second = drawn.T @ drawn / len(drawn)
    torch.testing.assert_close(second, expected.T @ expected / len(expected), rtol=0, atol=0.02)
    iso = begin(config(latents=20_000), 0, Sample(x, None), NONE).W_dec.detach()
    torch.testing.assert_close(iso.T @ iso / len(iso), torch.eye(6) / 6, rtol=0, atol=0.01)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("changes", [{"directions": "cov"}, {"b_dec": "geometric_median"}, {}])
def test_initial_weights_have_the_same_bits_for_any_number_of_threads(
    changes: dict[str, Any],
) -> None:
    started = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sample = Sample(rows(), None)
        started.append(begin(config(**changes), 7, sample, scales_of(sample, "root_d")))
    for sae in started[1:]:
        for name, value in started[0].state_dict().items():
            assert_same_bits(sae.state_dict()[name], value)


def test_initial_weights_differ_by_seed_and_can_be_tied() -> None:
    sample = Sample(rows(), None)
    first, second = (begin(config(), seed, sample, NONE) for seed in (0, 1))
    assert not torch.equal(first.W_dec, second.W_dec)
    assert torch.equal(first.W_enc, first.W_dec)
    assert_same_bits(first.W_dec.detach(), SAE(6, 40, k=3, seed=0).W_dec.detach())
    loose = begin(config(tied=False), 0, sample, NONE)
    assert torch.equal(loose.W_dec, first.W_dec)
    assert (loose.W_enc * loose.W_dec).sum(1).abs().max() < 0.999


def test_the_decoder_bias_is_the_centre() -> None:
    x = rows()
    sample = Sample(x, None)
    mean = begin(config(b_dec="mean"), 0, sample, NONE).b_dec.detach()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-4, atol=1e-4)
    median = begin(config(b_dec="geometric_median"), 0, sample, NONE).b_dec.detach()
    # The sum of unit vectors towards the rows vanishes there, and only there.
    towards = x - median
    pull = (towards / towards.norm(dim=1, keepdim=True)).mean(0).norm()
    assert pull < 1e-4
    assert ((x - mean) / (x - mean).norm(dim=1, keepdim=True)).mean(0).norm() > 1e-2
    assert not begin(config(b_dec="zeros"), 0, sample, NONE).b_dec.any()


def test_a_median_on_a_row_is_found() -> None:
    x = torch.zeros(9, 3)
    x[0] = 5.0
    found = begin(config(b_dec="geometric_median"), 0, Sample(x, None), NONE).b_dec.detach()
    torch.testing.assert_close(found, torch.zeros(3), rtol=0, atol=1e-4)


def test_scales_give_rows_the_root_of_their_width() -> None:
    x, target = rows(), rows(d=9) * 7
    scales = scales_of(Sample(x, target), "root_d")
    assert float((x * scales.x).norm(dim=1).mean()) == pytest.approx(6**0.5, rel=1e-5)
    assert float((target * scales.target).norm(dim=1).mean()) == pytest.approx(3, rel=1e-5)
    assert scales_of(Sample(x, target), "none") == NONE
    assert scales_of(Sample(torch.zeros(5, 4), None), "root_d") == NONE


@pytest.mark.parametrize("d_out", [None, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_undoes_scaling(variant: str, d_out: int | None) -> None:
    sae = SAE(6, 40, variant=variant, k=3, seed=0, d_out=d_out, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in sae.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
        if variant == "jumprelu":
            sae.jump_threshold.abs_()
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    scales = Scales(0.25, 0.125 if d_out else 0.25)
    out = folded(sae, scales)
    torch.testing.assert_close(out(x), sae(x * scales.x) / scales.target)
    assert out.encode(x).indices.equal(sae.encode(x * scales.x).indices)
    torch.testing.assert_close(out.encode(x).values, sae.encode(x * scales.x).values / scales.x)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    plan = config(tokens=1000, batch_size=1, lr=2.0, lr_warmup=0.1, lr_decay_share=0.2)
    rates = [lr_at(plan, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[99:801] == [2.0] * 702
    assert rates[900] == pytest.approx(1.0)
    assert rates[999] == pytest.approx(0.01)
    cosine = config(tokens=1000, batch_size=1, lr=2.0, lr_decay="cosine", lr_decay_share=0.2)
    assert lr_at(cosine, 900) == pytest.approx(1.0)
    assert lr_at(cosine, 950) < 0.5
    assert {lr_at(cosine, step) for step in range(10, 801)} == {2.0}
    flat = config(tokens=1000, batch_size=1, lr=2.0, lr_decay="none", lr_warmup=0.0)
    assert {lr_at(flat, step) for step in range(1000)} == {2.0}
    assert lr_at(config(latents=16384, lr_warmup=0.0), 0) == 2e-4
    assert lr_at(config(latents=65536, lr_warmup=0.0), 0) == 1e-4


def test_k_and_pressure_reach_their_final_values() -> None:
    plan = config(tokens=100, batch_size=1, k_start=23, k_anneal=0.2, sparsity_warmup=0.5)
    assert [k_at(plan, step) for step in (0, 10, 20, 99)] == [23, 13, 3, 3]
    assert k_at(config(), 0) == 3
    assert [pressure_at(plan, step) for step in (0, 24, 49, 99)] == [0.02, 0.5, 1.0, 1.0]
    assert pressure_at(config(sparsity_warmup=0.0), 0) == 1.0


@pytest.mark.parametrize(
    ("wrong", "kind", "complaint"),
    [
        ({"latents": 0}, ValueError, "latents must be at least 1"),
        ({"k_start": 2.5}, TypeError, "k_start must be an int"),
        ({"k_start": 41}, ValueError, "k_start must be from 1 to 40"),
        (
            {"k": 41},
            ValueError,
            "k must be at most latents, got k=41 and latents=40",
        ),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"tokens": 1.5}, TypeError, "tokens must be an int"),
        ({"variant": "top-k"}, ValueError, "variant must be one of topk, abstopk, batchtopk"),
        ({"seeds": ()}, TypeError, "seeds must be a tuple with at least one"),
        ({"seeds": (1, 1)}, ValueError, "seeds must differ"),
        ({"seeds": (2**64,)}, ValueError, "seeds must be from"),
        ({"data_seed": -1}, ValueError, "data_seed must be at least 0"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be above 0"),
        ({"lr": -1.0}, ValueError, "lr must be at least 0"),
        ({"lr_warmup": -0.1}, ValueError, "lr_warmup must be at least 0"),
        ({"lr_warmup": 20}, ValueError, "lr_warmup must be a share of the run"),
        ({"lr_decay": "exponential"}, ValueError, "lr_decay must be one of none, linear, cosine"),
        ({"directions": "pca"}, ValueError, "directions must be one of iso, cov"),
        ({"b_dec": "median"}, ValueError, "b_dec must be one of zeros, mean, geometric_median"),
        ({"precision": "fp8"}, ValueError, "precision must be one of exact, bf16, bf16_weights"),
        (
            {"by_norm": True, "variant": "relu"},
            ValueError,
            "by_norm must be False unless variant is one of topk, abstopk",
        ),
        ({"name": "a/b"}, ValueError, "name must be a valid part of a folder's name"),
        ({"sparsity": "high"}, TypeError, "sparsity must be a number"),
        ({"group_shares": 0.5}, TypeError, "group_shares must be a tuple of shares, got 0.5"),
        ({"loss": 3}, TypeError, "loss must be callable or None, got 3"),
        (
            {"precision": "bf16_weights", "variant": "relu"},
            ValueError,
            "precision='bf16_weights' needs variant topk or .* and no loss, got relu$",
        ),
        (
            {"precision": "bf16_weights", "loss": max},
            ValueError,
            "precision='bf16_weights' needs .* and no loss, got topk with a loss",
        ),
        ({"group_shares": (-0.1,)}, ValueError, "group_shares must be at least 0"),
    ],
)
def test_inconsistent_settings_raise(
    wrong: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        config(**wrong)


def test_rules_of_wrong_types_raise() -> None:
    with pytest.raises(TypeError, match=r"betas must be two numbers, such as .*, got \(0.9,\)"):
        Rules(betas=(0.9,))
    for wrong in (Penalty("encoder", "fro", 1.0), ({"norm": "fro"},)):
        with pytest.raises(TypeError, match="penalties must be a tuple of saefast"):
            Rules(penalties=wrong)


def test_the_name_of_a_loss_has_no_address() -> None:
    """A resume in another process would otherwise find another loss."""

    def named(weight: float) -> object:
        return config(loss=partial(test_rules_of_wrong_types_raise, weight)).to_dict()["loss"]

    assert named(1.0) == named(1.0) != named(2.0)
    assert "test_rules_of_wrong_types_raise" in str(named(1.0))
    assert " at 0x" not in str(named(1.0))
