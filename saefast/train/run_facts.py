"""Facts of a run in its run file, by which a run is begun, or recognised when it is resumed."""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from saefast.activations.protocol import Activations
from saefast.disk.resume import refuse_existing
from saefast.sae import SAE
from saefast.train.checkpoint import RUN, RunFile, differences
from saefast.train.config import TrainConfig
from saefast.train.meter import CONVENTIONS


def begun_or_resumed(
    out: Path,
    configs: Sequence[TrainConfig],
    source: Activations,
    starts: Sequence[SAE | None],
    resume: bool,
) -> RunFile:
    """Return the run file of a new run, or of the run to be resumed."""
    facts: dict[str, Any] = {
        "saefast": version("saefast"),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "conventions": CONVENTIONS,
        "configs": as_json(configs),
        "data": {"fingerprint": source.fingerprint, "rows": source.rows, "d": source.d},
        "initial": [None if start is None else _fingerprint(start) for start in starts],
        "checkpoint": 0,
        "finished": False,
    }
    refuse_existing(out / RUN, resume)
    run = RunFile.read(out)
    if run is None:
        return RunFile(out, facts)
    run.facts.setdefault("initial", [None] * len(starts))  # absent from runs of older versions
    for key in ("configs", "data", "initial"):
        changed = differences(run.facts[key], facts[key], key)
        if changed:
            raise ValueError(
                f"{out} cannot be resumed, since {'; '.join(changed)}; use the original arguments, "
                f"or choose another folder"
            )
    return run


def _fingerprint(sae: SAE) -> str:
    """Return a short string that identifies the bits of the weights."""
    digest = hashlib.sha256()
    for name, values in sae.state_dict().items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()[:32]}"


def as_json(configs: Sequence[TrainConfig]) -> Any:
    """Return configs as the values that a JSON file gives back."""
    return json.loads(json.dumps([config.to_dict() for config in configs]))
