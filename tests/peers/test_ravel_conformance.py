"""RAVEL as in SAEBench: right answers, and the activations after interchanges."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import saefast
from saefast.evaluation.editing.interchange import Swap
from saefast.evaluation.editing.ravel import accepted
from saefast.integrations.sae_bench import SaeBenchSae

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("sae_bench", reason="needs sae-bench 0.6.0")
    from sae_bench.evals.ravel.mdbm import MDBM
    from sae_bench.evals.ravel.validation import evaluate_completion

VALUES = {
    "Country": (
        *("Italy", "United Kingdom", "United States", "South Korea", "Norway", "Niger", "Nigeria"),
        *("Korea, North", "Ireland", "Guinea", "Papua New Guinea"),
    ),
    "Continent": ("Africa", "Asia", "Europe", "North America", "South America", "Oceania"),
    "Language": ("English", "Mandarin Chinese", "Malay", "English,Malay", "Spanish", "Japanese"),
}
TEMPLATES = {
    "Country": "{} is in the country of",
    "Continent": "{} is on the continent of",
    "Language": "People in {} speak the language",
}
LOOSER = {
    "Country": {
        ("United States", "England"),  # one rule for both
        ("South Korea", "Korea, North"),
        ("Korea, North", "Korea"),
        ("Niger", "Nigeria"),  # an answer that is a prefix of the value is right, too
        ("Nigeria", "Niger"),  # and so is an answer that the value starts with
    },
    "Continent": set(),
    "Language": {("English", "English,Malay")},
}
"""values with their aliases there; here first tokens decide"""


@pytest.mark.parametrize("attribute", VALUES)
def test_right_answers_agree(attribute: str) -> None:
    looser = set()
    for value in VALUES[attribute]:
        for answer in {each for other in VALUES[attribute] for each in accepted(other, attribute)}:
            theirs = evaluate_completion(TEMPLATES[attribute], value, f" {answer}")
            if answer in accepted(value, attribute):
                assert theirs
            elif theirs:
                looser.add((value, answer))
    assert looser == LOOSER[attribute]


@pytest.mark.parametrize("add_error", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", ["topk", "jumprelu", "relu"])
def test_interchanges_give_the_same_activations(
    variant: str, training: bool, add_error: bool
) -> None:
    d, m, n, length = 24, 96, 10, 5
    generator = torch.Generator().manual_seed(3)
    sae = saefast.SAE(d, m, variant=variant, k=6, seed=0).requires_grad_(False)
    sae.b_enc.normal_(std=0.1, generator=generator)
    sae.b_dec.normal_(std=0.1, generator=generator)
    if variant == "jumprelu":
        assert sae.threshold is not None
        sae.threshold.fill_(0.3)
    rows = torch.randn(2 * n, d, generator=generator)
    base, source = torch.arange(n), torch.arange(n) + n
    logit = torch.randn(m, generator=generator)
    theirs = MDBM(
        SimpleNamespace(device="cpu"),
        None,
        SimpleNamespace(llm_batch_size=4),
        SaeBenchSae(sae, "model", hook_layer=0),
    )
    theirs.binary_mask.data.copy_(logit)
    theirs.temperature = 0.5
    sequence = torch.randn(n, length, d, generator=generator)
    place = torch.randint(length, (n,), generator=generator)
    sequence[base, place] = rows[base]
    hook = theirs.create_intervention_hook(rows[source], place, training, add_error)
    (found,) = hook(None, (), (sequence.clone(),))
    weights = torch.sigmoid(logit / 0.5) if training else (logit > 0).float()
    change = Swap(sae, rows).change(weights, with_error=add_error)
    ours = change(base, source, rows[base])
    torch.testing.assert_close(ours, found[base, place].detach(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, rows[base], atol=1e-2)
