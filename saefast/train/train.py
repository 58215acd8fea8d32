"""train_saes: many SAEs, trained side by side on one stream of activations."""

import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from saefast import checks
from saefast.activations import open_activations
from saefast.activations.protocol import Activations, ActivationSource
from saefast.disk.lock import Claim
from saefast.disk.resume import refuse_existing
from saefast.sae import SAE
from saefast.storage import load_sae
from saefast.train.checkpoint import RUN, RunFile, differences
from saefast.train.config import TrainConfig, check_shared, labels_of
from saefast.train.loggers import LOGGERS, loggers
from saefast.train.loop import TrainingLoop
from saefast.train.meter import CONVENTIONS


def train_saes(
    activations: ActivationSource,
    config: TrainConfig | Sequence[TrainConfig],
    *,
    initial: SAE | Sequence[SAE] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    device: torch.device | str | None = None,
    checkpoint_minutes: float = 10.0,
    log_every: int = 50,
    log_to: Sequence[str] = (),
    keep_training: bool = True,
) -> list[SAE]:
    """Train one SAE for each seed of the config, or of each of several configs.

    The activations are read, scaled and moved once for all. An SAE has the same bits whatever
    others are trained beside it, and on the CPU for any number of threads.

    On a CUDA device rows are copied ahead of the steps, in the dtype they are stored in (an object
    of the protocol decides on it by its `dtype`), and cast, checked and scaled there. A step of the
    fused path is recorded in a CUDA graph and replayed, once the number of active latents stays as
    it is and a few steps were taken; where recording it fails, for want of memory say, a warning
    tells so and steps go on without. Checkpoints are copied to pinned memory, as much as the state
    of all SAEs, and written while the training goes on.

    Args:
        activations: what `saefast.activations.open_activations` takes: a tensor or array, a path,
            an iterator, or an object of that protocol.
        config: one, or several that share `batch_size`, `tokens`, `data_seed` and
            `activation_scaling`.
        initial: what the SAEs begin as, one for each in the order of configs and seeds, such as
            pooled ones to be fine-tuned; they take activations as they come and are not changed.
            None: directions drawn from the seeds. With it a config's `tied`, `directions`,
            `decoder_norm` and `b_dec` mean nothing.
        out: the folder of the run. Without it nothing is written.
        resume: go on with the run in `out` at its last checkpoint, to the bits of a run that was
            never stopped. Where there is none, begin.
        progress: show a progress bar on stderr.
        device: where to train; None: a CUDA device if there is one.
        checkpoint_minutes: time between two checkpoints. There is one at the end as well, and one
            when the run is interrupted from the keyboard.
        log_every: steps between two lines for each SAE in OUT/metrics.jsonl.
        log_to: besides, "tensorboard", into OUT/tensorboard, and "wandb", into the run that is
            active or else into a new one; such packages are the caller's to install.
        keep_training: leave in OUT what a resume needs after the run has ended, too.

    Returns:
        The SAEs in the order of configs and seeds. They take activations as they come.
    """
    configs = tuple(config) if isinstance(config, Sequence) else (config,)
    check_shared(configs)
    configs = tuple(each.resolved() for each in configs)
    check_reports(log_to, log_every, checkpoint_minutes)
    where = _device(device)
    source = open_activations(activations, dtype=None)
    starts = _starts(initial, configs)
    with nullcontext() if out is None else Claim(Path(out)):
        run = None if out is None else _run_file(Path(out), configs, source, starts, resume)
        if run is not None and run.finished:
            return [load_sae(run.out / label).to(where) for label in labels_of(configs)]
        folder, after = (None, 0) if run is None else (run.out, run.step)
        log = loggers(folder, after, log_to, {"configs": _as_json(configs)})
        try:
            training = TrainingLoop(configs, source, where, run, starts)
            training.train(log, log_every, checkpoint_minutes, progress)
        finally:
            for logger in log:
                logger.close()
        training.finish(keep_training)
        return training.results()


def check_reports(log_to: Sequence[str], log_every: int, checkpoint_minutes: float) -> None:
    """Raise an error unless these can be arguments of `train_saes`."""
    for name in log_to:
        checks.one_of("log_to", name, LOGGERS)
    checks.whole("log_every", log_every, 1)
    checks.at_least("checkpoint_minutes", checkpoint_minutes, 0)


def _device(device: torch.device | str | None) -> torch.device:
    """Where to train; a GPU only where torch has one."""
    has_gpu = torch.cuda.is_available()
    if device is None:
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be cpu, cuda or cuda:<number>, got {device!r}") from error
    if where.type == "cuda" and not has_gpu:
        raise ValueError(
            f"device must be one that this torch, {torch.__version__}, has, got {device!r}, but it "
            f"has no CUDA GPU; use device='cpu' or None"
        )
    return where


def _starts(
    initial: SAE | Sequence[SAE] | None, configs: Sequence[TrainConfig]
) -> Sequence[SAE | None]:
    """What each SAE begins as, None for one that is drawn."""
    count = len(labels_of(configs))
    if initial is None:
        return [None] * count
    starts = [initial] if isinstance(initial, SAE) else list(initial)
    for number, sae in enumerate(starts):
        if not isinstance(sae, SAE):
            raise TypeError(f"initial[{number}] must be a saefast.SAE, got {type(sae).__name__}")
    if len(starts) != count:
        raise ValueError(f"initial must be one for each SAE of the run, {count}, got {len(starts)}")
    return starts


def _run_file(
    out: Path,
    configs: Sequence[TrainConfig],
    source: Activations,
    starts: Sequence[SAE | None],
    resume: bool,
) -> RunFile:
    """That of a new run, or of the one to be resumed."""
    facts: dict[str, Any] = {
        "saefast": version("saefast"),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "conventions": CONVENTIONS,
        "configs": _as_json(configs),
        "data": {"fingerprint": source.fingerprint, "rows": source.rows, "d": source.d},
        "initial": [None if start is None else _fingerprint(start) for start in starts],
        "checkpoint": 0,
        "finished": False,
    }
    refuse_existing(out / RUN, resume)
    run = RunFile.read(out)
    if run is None:
        return RunFile(out, facts)
    run.facts.setdefault("initial", [None] * len(starts))  # runs of versions that knew of none
    for key in ("configs", "data", "initial"):
        changed = differences(run.facts[key], facts[key], key)
        if changed:
            raise ValueError(
                f"{out} cannot be resumed, for {'; '.join(changed)}; give it what it was begun "
                f"with, or choose another folder"
            )
    return run


def _fingerprint(sae: SAE) -> str:
    """A short string that changes with any bit of the weights."""
    digest = hashlib.sha256()
    for name, values in sae.state_dict().items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()[:32]}"


def _as_json(configs: Sequence[TrainConfig]) -> Any:
    return json.loads(json.dumps([config.to_dict() for config in configs]))
