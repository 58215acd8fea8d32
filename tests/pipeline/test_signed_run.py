"""A run of AbsTopK, in which opposite directions count as similar."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import SETTINGS

from saefast import load_dictionaries, load_sae, score_stability
from saefast.disk.tables import read_json, read_table
from saefast.nulls.cosines import BestOfRandom
from saefast.pipeline import run_pipeline
from saefast.pipeline.settings_file import settings_from
from saefast.run_folder import FEATURES, OVERLAP, STABILITY
from saefast.storage import save_sae

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture(scope="module")
def settings() -> dict[str, dict[str, Any]]:
    train = SETTINGS["train"] | {"variant": "abstopk", "seeds": [0, 1], "tokens": 20_000}
    return SETTINGS | {"train": train, "pool": {"compare": False}}


def test_a_run_of_abstopk_is_scored_up_to_sign(
    settings: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_pipeline(settings_from(settings), run, until="train", progress=False)
    # Negate every other latent of the second SAE, which leaves the SAE the same.
    second = load_sae(run / "seed-1")
    with torch.no_grad():
        for values in (second.W_enc, second.b_enc, second.W_dec):
            values[::2] *= -1
    save_sae(second, tmp_path / "negated")
    shutil.copy(tmp_path / "negated" / WEIGHTS, run / "seed-1" / WEIGHTS)
    run_pipeline(
        settings_from(settings), run, until=("pool", "report"), resume=True, progress=False
    )
    table = read_table(run / FEATURES)
    alive = torch.from_numpy(table["firing_rate"].to_numpy() > 0).split(48)
    options = {"alive": alive, "progress": False}
    found = score_stability(load_dictionaries(run), absolute=True, **options)
    assert found.mean() > 1.2 * score_stability(load_dictionaries(run), **options).mean()
    scores = torch.from_numpy(table["score"].to_numpy().copy())
    assert torch.equal(scores, torch.cat(found.score))
    record = read_json(run / STABILITY)
    assert record["rule"]["absolute"] is True
    assert record["chance"] == found.chance.tolist()
    rows = read_table(run / OVERLAP).to_pylist()
    assert {row["sign"] for row in rows} == {"absolute"}
    mmcs = next(
        row for row in rows if (row["name"], row["of"], row["side"]) == ("mmcs", "a", "decoder")
    )
    alive = int(found.alive[1].sum())
    assert mmcs["null"] == pytest.approx(BestOfRandom(alive, 24, absolute=True).mean())
    report = (run / "report.html").read_text()
    assert "nearest by decoder rows, absolute cosine of at least 0.7" in report
    assert "threshold (absolute cosine)" in report
