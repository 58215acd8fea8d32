"""The GPU benchmark from text to SAEs, with a tiny language model on the CPU."""

from pathlib import Path

import pytest
import torch
from helpers.worker_rows import worked

from bench.gpu import end_to_end
from bench.gpu.end_to_end import Setting
from bench.gpu.parts import part
from bench.shapes import Shape

tiny_lm = pytest.importorskip("helpers.tiny_lm", reason="needs saefast[lm]")


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(end_to_end, "_CONTEXTS", 2)
    monkeypatch.setattr(end_to_end, "_LAP", 2)
    corpus = ["".join(chr(97 + (i * j) % 26) for i in range(400)) for j in range(40)]
    for name in ("harvest", "LMActivations"):
        whole = getattr(end_to_end, name)
        monkeypatch.setattr(
            end_to_end,
            name,
            lambda *given, whole=whole, **options: whole(
                *given, corpus=corpus, context=64, **options
            ),
        )
    return Setting(tiny_lm.llama, Shape(tiny_lm.D, 64, 4, 256), 1, 2560, "cpu")


def test_all_stages_are_timed(setting: Setting) -> None:
    rows = worked(end_to_end.runs(setting))
    assert all("raised" not in row for row in rows), rows
    assert [row["mode"].partition(";")[0] for row in rows] == [
        "harvest to a store",
        "train from the store, 1 SAE",
        "train from the store, 4 SAEs",
        "train from the model, 1 SAE",
        "train from the model, 4 SAEs",
    ]
    for row in rows:
        assert row["mode"].endswith("; tiny llama")
        assert row["tokens_per_second"] == pytest.approx(1e3 * 256 / row["ms"], rel=0.01)
        assert row["tokens"] == 2560
    assert [row["rounds"] for row in rows] == [1, 3, 3, 3, 3]
    assert all(0 <= row["input_wait"] <= 1 for row in rows[1:])
    assert part("end_to_end", {}).table == "rows"


def test_a_training_works_without_the_harvest_before_it(setting: Setting) -> None:
    items = end_to_end.runs(setting)
    next(items)
    [row] = next(items).run()
    assert row["mode"] == "train from the store, 1 SAE; tiny llama"


def test_a_training_that_does_not_learn_gives_no_row(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(held: object, config: object, **options: object) -> None:
        log = end_to_end.importlib.import_module("saefast.train.train").loggers()[0]
        for mse in (1.0, 2.0):
            log.write("", 0, {"mse": mse, "seed": 0})

    monkeypatch.setattr(end_to_end.saefast, "train_saes", train)
    *_, last = worked(end_to_end.runs(setting))
    assert last["raised"].startswith("RuntimeError: does not learn: mse 1.0 and then 2.0")


def test_a_folder_without_weights_gives_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_lm.saved(tmp_path / "Tiny")
    monkeypatch.setenv(end_to_end.MODEL, str(folder))
    trained = end_to_end.language_model("cpu")
    assert trained.name == "Tiny, bf16"
    for file in folder.glob("*.safetensors"):
        file.unlink()
    drawn, again = (end_to_end.language_model("cpu") for _ in range(2))
    assert drawn.name == "Tiny, random weights, bf16"
    first, second = (next(iter(one.model.parameters())) for one in (drawn, again))
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)
    assert not torch.equal(first, next(iter(trained.model.parameters())))
