"""Memory that a worker keeps from one task to the next."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from saefast.sweep import attempts, harvest_tasks
from saefast.sweep.attempts import attempt
from saefast.sweep.harvest_tasks import HARVEST_PART, HarvestPart
from saefast.sweep.match_tasks import MATCH_TILE
from saefast.sweep.tasks import HARVEST, STAGES, TRAIN

ABOUT = {"model_dtype": "float32"}
PART = HarvestPart(HARVEST_PART, "tiny", "cpu", ABOUT, 0, "tokens", "", True, "float32", ())


class Model:
    """Stand-in for a large language model."""

    description = ABOUT


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["weakref.ref[Model]"]]:
    """Return the models that are loaded in a test."""
    seen: list[weakref.ref[Model]] = []

    def load(*_: object, **__: object) -> Model:
        model = Model()
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(harvest_tasks, "load_model", load)
    monkeypatch.setattr(harvest_tasks, "write_part", lambda *_, **__: None)
    harvest_tasks._loaded.cache_clear()
    yield seen
    harvest_tasks._loaded.cache_clear()


@pytest.mark.parametrize("kind", [HARVEST, TRAIN, STAGES, MATCH_TILE])
def test_other_tasks_begin_without_the_model_of_a_harvest(
    kind: str, loaded: list["weakref.ref[Model]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[bool] = []

    class Other:
        def perform(self) -> None:
            gc.collect()
            alive.append(loaded[0]() is not None)

    def read(_: dict[str, Any]) -> Any:
        return Other()

    monkeypatch.setitem(attempts._READERS, kind, read)
    assert attempt(PART.to_dict()) is None
    assert attempt({"kind": kind}) is None
    assert len(loaded) == 1
    assert alive == [False]


def test_parts_of_a_harvest_share_the_model(loaded: list["weakref.ref[Model]"]) -> None:
    assert attempt(PART.to_dict()) is None
    assert attempt(PART.to_dict()) is None
    assert len(loaded) == 1
    assert loaded[0]() is not None
