"""Dashboards of features, read by the classes of sae_dashboard that Neuronpedia's files are of."""

import json
from typing import Any

import torch
from helpers.tiny_lm import tokenizer
from sae_dashboard.neuronpedia.neuronpedia_dashboard import (
    NeuronpediaDashboardActivation,
    NeuronpediaDashboardBatch,
    NeuronpediaDashboardFeature,
)

import saefast
from saefast.evaluation.explaining.contexts import text_of_sequences
from saefast.evaluation.explaining.firings import firings
from saefast.report.neuronpedia import Corpus, dashboard_feature


def a_batch() -> dict[str, Any]:
    letters = tokenizer()
    text = text_of_sequences([letters("the quick brown fox").input_ids] * 20, letters)
    x = torch.randn(text.rows, 12, generator=torch.Generator().manual_seed(0))
    sae = saefast.SAE(12, 30, k=4, seed=0)
    (fired,) = firings(sae, x, progress=False)
    corpus = Corpus(text, 20, 19, "a corpus")
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(1))

    def strings_of(ids: list[int]) -> list[str]:
        return [f"t{number}" for number in ids]

    rows = sae.W_dec.detach()
    features = [
        dashboard_feature(latent, rows[latent], logits[latent], strings_of, fired, corpus)
        for latent in range(30)
    ]
    return {
        "model_id": "gpt2-small",
        "layer": 8,
        "sae_set": "res-mine",
        "sae_id_suffix": "seed-0",
        "features": features,
    }


def test_their_classes_hold_every_field() -> None:
    content = json.loads(json.dumps(a_batch()))
    assert NeuronpediaDashboardBatch(**content).to_dict() == content


def test_no_field_of_theirs_is_missing() -> None:
    feature = a_batch()["features"][0]
    assert feature.keys() == NeuronpediaDashboardFeature().to_dict().keys()
    assert feature["activations"][0].keys() == NeuronpediaDashboardActivation().to_dict().keys()
