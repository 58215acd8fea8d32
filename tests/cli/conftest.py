"""A run of a small language model, for tests of evaluations."""

import csv
import random
from pathlib import Path

import pytest
from helpers.tiny_run import SETTINGS, as_toml

from saefast.cli import main


def _text(drawn: random.Random, letters: str) -> str:
    words = ["".join(drawn.choices(letters, k=drawn.randint(1, 6))) for _ in range(12)]
    return " ".join(words)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, texts, a table of labelled texts and a run up to stability."""
    from helpers.tiny_lm import harvest_of, saved

    folder = tmp_path_factory.mktemp("evaluated")
    saved(folder / "model")
    (folder / "texts").mkdir()
    drawn = random.Random(0)
    for number in range(60):
        (folder / "texts" / f"{number:02}.txt").write_text(_text(drawn, "etaoinshrdlu"))
    settings = {
        "harvest": harvest_of(folder, tokens=2500, held_out=300),
        "train": SETTINGS["train"] | {"latents": 48, "tokens": 10_000, "seeds": [0, 1, 2]},
        "evaluate": {"baselines": ["frozen_decoder"]},
    }
    (folder / "tiny.toml").write_text(as_toml(settings))
    with (folder / "labelled.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for number in range(80):
            table.writerow([_text(drawn, "aeiou" if number % 2 else "bcdfg"), number % 2])
    arguments = ["run", str(folder / "tiny.toml"), "--out", str(folder / "run")]
    assert main([*arguments, "--until", "stability"]) == 0
    return folder
