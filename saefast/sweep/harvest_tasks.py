"""Tasks of a harvest by several processes: shards of its stores."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from saefast.lm.harvest_part import part_from, write_part
from saefast.lm.model import LanguageModel, load_model
from saefast.train.planning.memory import PROCESS_BYTES

HARVEST_PART = "harvest part"


@dataclass(frozen=True)
class HarvestPart:
    """Some shards of the stores of a harvest."""

    kind: str
    """`HARVEST_PART`"""
    model: str
    """name for `load_model`"""
    device: str
    """type of the model's device"""
    description: dict[str, Any]
    """`LanguageModel.description` of the driver's model"""
    model_bytes: int
    """bytes of the model's weights"""
    tokens: str
    """path of the file of tokens"""
    about: str
    """hash of that file"""
    drop_bos: bool
    """as in the `Packing`"""
    dtype: str
    """dtype of the stores"""
    stores: tuple[dict[str, Any], ...]
    """results of `part_to_dict`"""

    @property
    def label(self) -> str:
        """Name of the task for messages."""
        numbers = [shard[0] for store in self.stores for shard in store["shards"]]
        return f"the harvest of shards {min(numbers)} to {max(numbers)}"

    @property
    def memory(self) -> int:
        """Bytes of memory of the process that performs it."""
        return PROCESS_BYTES + 2 * self.model_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the task as a dict that JSON can represent, for `harvest_part_from`."""
        return asdict(self)

    def perform(self) -> None:
        """Load the model, unless this process has it, and write the shards."""
        model = _loaded(self.model, self.description["model_dtype"], self.device)
        if model.description != self.description:
            raise ValueError(
                f"{self.model} is another model in this process than in the one that started the "
                f"harvest; harvest with a model of load_model, whose files have not changed"
            )
        write_part(
            model,
            [part_from(record) for record in self.stores],
            Path(self.tokens),
            self.about,
            drop_bos=self.drop_bos,
            dtype=getattr(torch, self.dtype),
        )


def harvest_part_from(record: dict[str, Any]) -> HarvestPart:
    """Restore a task from the result of `HarvestPart.to_dict`."""
    return HarvestPart(**(record | {"stores": tuple(record["stores"])}))


def forget_model() -> None:
    """Free the language model that this process keeps from one part to the next."""
    _loaded.cache_clear()


@lru_cache(maxsize=1)
def _loaded(name: str, dtype: str, device: str) -> LanguageModel:
    return load_model(name, dtype=dtype, device=device, progress=False)
