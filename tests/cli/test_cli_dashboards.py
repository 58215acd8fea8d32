"""`saefast dashboards`: features in the JSON of sae_dashboard; tests/peers reads it by its code."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saefast
from saefast.activations import StoreActivations
from saefast.cli import main
from saefast.disk.tables import add_columns, read_table
from saefast.run_folder import FEATURES, HELD_OUT_ROWS


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """Return a run up to its stability, some of whose features have explanations."""
    run = shutil.copytree(place / "run", place / "shown")
    count = read_table(run / FEATURES).num_rows
    explained = [f"rule {i}" if i % 2 else None for i in range(count)]
    columns = {"explanation": explained, "rule_score": np.where(np.arange(count) % 2, 0.75, np.nan)}
    add_columns(run / FEATURES, columns)
    return run


@pytest.fixture(scope="module")
def batches(run: Path, place: Path) -> list[dict[str, Any]]:
    assert main(["dashboards", str(run), "--out", str(place / "dashboards"), "--json"]) == 0
    found = sorted((place / "dashboards").glob("seed-*/batch-0.json"))
    return [json.loads(path.read_bytes()) for path in found]


def test_activations_match_the_sae_on_the_held_out_rows(
    run: Path, batches: list[dict[str, Any]]
) -> None:
    assert [each["sae_id_suffix"] for each in batches] == ["seed-0", "seed-1", "seed-2"]
    assert {(each["layer"], each["sae_set"], each["model_id"]) for each in batches} == {
        (1, "shown", "model")
    }
    store = StoreActivations(run / HELD_OUT_ROWS)
    x = store.read("activations", 0, store.rows).float()
    sae = saefast.load_sae(run / "seed-1")
    with torch.no_grad():
        dense = sae.encode(x).to_dense(sae.m)
    shown = {each["feature_index"]: each for each in batches[1]["features"]}
    assert set(shown) == set(dense.gt(0).any(0).nonzero()[:, 0].tolist())
    for latent, feature in shown.items():
        values = dense[:, latent]
        assert feature["frac_nonzero"] == pytest.approx(float((values > 0).float().mean()))
        assert sum(feature["freq_hist_data_bar_heights"]) == int((values > 0).sum())
        first = feature["activations"][0]
        at = first["qualifying_token_index"]
        assert first["values"][at] == pytest.approx(float(values.max()), abs=1e-3)
        assert (first["bin_min"], first["bin_contains"]) == (-1, -1)
        row = int(values.argmax())
        around = values[row - at : row - at + len(first["values"])]
        assert first["values"] == pytest.approx(around.tolist(), abs=1e-3)
        assert len(first["tokens"]) == len(first["values"])
        parts = [each for each in feature["activations"] if each["bin_min"] >= 0]
        for each in parts:
            value = each["values"][each["qualifying_token_index"]]
            assert each["bin_min"] - 2e-3 <= value <= each["bin_max"] + 2e-3
        shares = {each["bin_min"]: each["bin_contains"] for each in parts}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_tokens_have_the_greatest_and_least_logits(
    run: Path, batches: list[dict[str, Any]]
) -> None:
    from saefast.lm import load_model
    from saefast.lm.unembedding import unembed
    from saefast.pipeline import settings_of

    model = load_model(settings_of(run).data.model)  # type: ignore[union-attr]
    feature = batches[0]["features"][0]
    row = saefast.load_sae(run / "seed-0").W_dec[[feature["feature_index"]]].detach()
    logits = unembed(model, row)[0]
    assert feature["pos_values"] == pytest.approx(logits.topk(10).values.tolist(), abs=1e-3)
    assert feature["neg_values"][0] == pytest.approx(float(logits.min()), abs=1e-3)
    best = int(logits.argmax())
    assert feature["pos_str"][0] == model.tokenizer.convert_tokens_to_string(
        model.tokenizer.convert_ids_to_tokens([best])
    )
    assert feature["neuron_alignment_indices"] == row[0].topk(3).indices.tolist()


def test_stability_explanation_and_partners_are_further_facts(
    run: Path, batches: list[dict[str, Any]]
) -> None:
    rows = {(row["seed"], row["feature"]): row for row in read_table(run / FEATURES).to_pylist()}
    for batch, seed in zip(batches, (0, 1, 2), strict=True):
        for feature in batch["features"]:
            row, facts = rows[seed, feature["feature_index"]], feature["saefast"]
            assert facts["seed"] == seed
            assert facts["stability"]["group"] == row["group"]
            assert facts["stability"].get("score") == row["score"]
            assert facts.get("explanation", {}).get("explanation") == row["explanation"]
            partners = {each["seed"]: each["feature"] for each in facts["partners"]}
            assert partners == {
                other: partner
                for other, partner in enumerate(row["partner"])
                if other != seed and partner >= 0
            }


def test_few_features_without_further_facts(run: Path, tmp_path: Path) -> None:
    arguments = ["dashboards", str(run), "--out", str(tmp_path), "--features", "2", "--strict"]
    assert main([*arguments, "--name", "mine"]) == 0
    batch = json.loads((tmp_path / "seed-0" / "batch-0.json").read_bytes())
    assert batch["sae_set"] == "mine"
    assert len(batch["features"]) == 2
    assert all("saefast" not in feature for feature in batch["features"])


def test_a_run_without_a_language_model_is_refused(
    planted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboards", str(planted_run), "--out", str(tmp_path / "out")]) == 1
    assert "must be a run with a language model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_refusal_comes_before_the_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = saefast.TrainConfig(latents=32, k=4, tokens=256, batch_size=128, seeds=(0, 1))
    saefast.train_saes(torch.randn(256, 16), config, out=tmp_path / "run", progress=False)
    before = sorted((tmp_path / "run").rglob("*"))
    assert main(["dashboards", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 1
    assert "must be a run with a language model" in capsys.readouterr().err
    assert sorted((tmp_path / "run").rglob("*")) == before
