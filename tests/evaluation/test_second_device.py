"""Functions with a model on another device than the SAEs give the results of one on the CPU."""

import string
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs saefast[lm]")

from helpers import linear_lm, tiny_lm
from helpers.second_device import DEVICE, second_device

from saefast.activations import StoreActivations
from saefast.evaluation.absorption import absorb
from saefast.evaluation.editing.evaluation import edit
from saefast.evaluation.editing.knowledge import known_facts
from saefast.lm import LanguageModel, evaluate_patched, harvest

pytestmark = pytest.mark.usefixtures("light")


def tiny() -> LanguageModel:
    """Return a Llama whose attention does the same on both devices."""
    model = tiny_lm.llama()
    model.model.set_attn_implementation("eager")
    return model


def there(model: LanguageModel) -> LanguageModel:
    model.model.to(DEVICE)
    assert model.device == DEVICE
    return model


def test_tensors_of_two_devices_do_not_mix() -> None:
    with second_device():
        x = torch.tensor([1, 2, 3], device=DEVICE)
        assert (x + x).tolist() == [2, 4, 6]
        assert x[[0, 2]].cpu().tolist() == [1, 3]
        with pytest.raises(RuntimeError, match=r"add.Tensor got tensors of the CPU and of meta"):
            x + torch.arange(3)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()


def test_rows_are_harvested(tmp_path: Path) -> None:
    options: dict[str, Any] = {"corpus": tiny_lm.TEXTS, "context": 16, "progress": False}
    (one,) = harvest(tiny(), ["mlp.1"], out=tmp_path / "here", **options)
    with second_device():
        (other,) = harvest(there(tiny()), ["mlp.1"], out=tmp_path / "there", **options)
    a, b = StoreActivations(one), StoreActivations(other)
    assert a.rows == b.rows > 100
    for name in ("activations", "tokens", "positions"):
        assert torch.equal(a.read(name, 0, a.rows), b.read(name, 0, b.rows))


def test_reconstructions_are_patched_in() -> None:
    sae = tiny_lm.random_sae()
    groups = {"even": torch.arange(sae.m) % 2 == 0}
    options: dict[str, Any] = {"corpus": tiny_lm.TEXTS, "context": 16, "progress": False}
    found = evaluate_patched(tiny(), 1, sae, groups, **options)
    with second_device():
        assert evaluate_patched(there(tiny()), 1, sae, groups, **options) == found


@pytest.mark.parametrize("selector", ["attribution", "mask"])
def test_latents_are_edited(selector: str) -> None:
    options: dict[str, Any] = {"n": (1, linear_lm.VALUES), "pairs": 40, "progress": False}
    options |= {"selector": selector, "diffmean": True, "mdas": selector == "attribution"}
    sae = linear_lm.true_sae()

    def edited(model: LanguageModel) -> Any:
        known = known_facts(model, linear_lm.facts(), progress=False)
        return edit(model, 0, sae, known, **options)

    found = edited(linear_lm.linear_lm())
    assert found.overall("h").value > 0.9
    with second_device():
        assert str(edited(there(linear_lm.linear_lm())).scores) == str(found.scores)


def test_absorption_is_measured() -> None:
    letters = string.ascii_letters
    task = {letter: "vowel" if letter.lower() in "aeiou" else "other" for letter in letters}
    options: dict[str, Any] = {"task": task, "examples": 2, "progress": False}
    sae = tiny_lm.random_sae()
    found = absorb(tiny(), "model.embed_tokens", sae, **options)
    assert found.scores
    with second_device():
        again = absorb(there(tiny()), "model.embed_tokens", sae, **options)
    assert str(again.scores) == str(found.scores)
