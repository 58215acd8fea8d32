"""Entry point of training: many SAEs, trained in parallel on one stream of activations."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saefast import checks
from saefast.activations import open_activations
from saefast.activations.protocol import Activations, ActivationSource
from saefast.disk.lock import Claim
from saefast.sae import SAE
from saefast.train.checkpoint import RunFile
from saefast.train.config import TrainConfig, check_one_stream, check_shared, labels_of
from saefast.train.loggers import LOGGERS, loggers
from saefast.train.loop import TrainingLoop
from saefast.train.ranks.division import check_device, returns_files
from saefast.train.ranks.group import Ranks
from saefast.train.ranks.processes import world
from saefast.train.ranks.words import check_agreement
from saefast.train.run_facts import as_json, begun_or_resumed
from saefast.train.stored_saes import StoredSAEs
from saefast.train.trained_run import Member


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
    ranks: Ranks | None = None,
) -> Sequence[SAE]:
    """Train one SAE for each seed of the config, or of each of several configs.

    The activations are read, scaled and moved to the device once for all SAEs. An SAE is bitwise
    identical whether it is trained alone or with others, and on the CPU for any number of threads.

    On a CUDA device, rows are copied ahead of the steps in the dtype in which they are stored (an
    `Activations` object states it as its `dtype`), and are cast, checked and scaled there. A step
    of the fused path is recorded as a CUDA graph and replayed, after a few steps and once the
    number of active latents is constant; if recording fails, for example for lack of memory, a
    warning is issued and steps continue without a graph. Checkpoints are copied to pinned memory,
    which takes as much as the state of all SAEs, and written while the training continues.

    Args:
        activations: rows [n, d]: a tensor or array, a path, an iterator, or an `Activations`
            object; see `saefast.activations.open_activations`. Of several ranks one reads them for
            all.
        config: one config, or several that agree in `batch_size`, `tokens`, `data_seed` and
            `activation_scaling`.
        initial: initial SAEs, one for each SAE of the run in the order of configs and seeds, such
            as pooled SAEs to be fine-tuned. They take unscaled activations and are not modified;
            `tied`, `directions`, `decoder_norm` and `b_dec` of the configs are then ignored. None:
            SAEs initialised from the seeds.
        out: folder of the run. None: nothing is written.
        resume: whether to continue the run in `out` from its last checkpoint, with a result
            bitwise identical to that of an uninterrupted run. If there is none, a run is started.
        progress: whether to show a progress bar on stderr.
        device: device to train on; None: a CUDA device if there is one, otherwise the CPU.
        checkpoint_minutes: minutes between two checkpoints. A checkpoint is also written at the end
            and when the run is interrupted by Ctrl-C or SIGTERM.
        log_every: number of steps between two lines for each SAE in OUT/metrics.jsonl.
        log_to: additional loggers: "tensorboard" writes to OUT/tensorboard, "wandb" to the active
            run or a new one. Their packages must be installed separately.
        keep_training: whether to keep the state needed for a resume after the run has finished.
        ranks: ranks that train together, each of which calls this function with the same
            arguments; None: the processes that torchrun started, or this one alone. With at least
            as many SAEs as ranks, each rank trains some of the SAEs; with fewer, all train each SAE
            together. The SAEs have the bits of one process. Ranks train on CPUs, and share a file
            system.

    Returns:
        The SAEs in the order of configs and seeds, on every rank. They take unscaled activations.
        With several ranks and a folder `out`, no rank collects them: a sequence is returned that
        loads an SAE from its folder in `out` when it is first accessed. Without `out`, every rank
        gets all SAEs, and needs the memory for them.

    Raises:
        FileExistsError: `out` holds a run and `resume` is False.
        ValueError: the run in `out` has other settings or activations, training diverged, or ranks
            cannot train these SAEs together.
        ConnectionError: another rank failed.
    """
    configs = tuple(config) if isinstance(config, Sequence) else (config,)
    check_shared(configs)
    run = Training(configs, None if out is None else Path(out), initial)
    (saes,) = train_runs(
        activations,
        [run],
        resume=resume,
        progress=progress,
        device=device,
        checkpoint_minutes=checkpoint_minutes,
        log_every=log_every,
        log_to=log_to,
        keep_training=keep_training,
        ranks=ranks,
    )
    return saes


class Training(NamedTuple):
    """Run to be trained."""

    configs: tuple[TrainConfig, ...]
    """configs of the run"""
    out: Path | None
    """folder of the run; None: nothing is written"""
    initial: SAE | Sequence[SAE] | None = None
    """initial SAEs, as in `train_saes`"""


def train_runs(
    activations: ActivationSource,
    runs: Sequence[Training],
    *,
    resume: bool = False,
    progress: bool = True,
    device: torch.device | str | None = None,
    checkpoint_minutes: float = 10.0,
    log_every: int = 50,
    log_to: Sequence[str] = (),
    keep_training: bool = True,
    ranks: Ranks | None = None,
) -> list[Sequence[SAE]]:
    """Train several runs in one pass over the activations, each into a folder of its own.

    A finished folder has the bytes that `train_saes` writes for that run alone. Runs to be resumed
    that stopped at different steps are trained one after another, those of one step together.

    Args:
        activations: rows, as in `train_saes`; read once for each step at which runs stopped.
        runs: runs whose configs share `batch_size`, `tokens`, `data_seed` and
            `activation_scaling`.
        resume: whether to continue runs from their last checkpoints.
        progress: whether to show a progress bar on stderr.
        device: device to train on; None: a CUDA device if there is one, otherwise the CPU.
        checkpoint_minutes: minutes between two checkpoints.
        log_every: number of steps between two lines for each SAE.
        log_to: additional loggers, as in `train_saes`.
        keep_training: whether to keep the state needed for a resume after a run has finished.
        ranks: ranks that train together, as in `train_saes`.

    Returns:
        The SAEs of each run, in the order of configs and seeds.
    """
    check_one_stream([config for each in runs for config in each.configs])
    check_reports(log_to, log_every, checkpoint_minutes)
    together = world() if ranks is None else ranks
    try:
        where = device_of(device)
        check_device(together, where)
        # Weights created in inference mode could not be trained, nor their changes be noticed.
        with torch.inference_mode(False):
            return _train_runs(
                activations,
                runs,
                together,
                resume=resume,
                progress=progress and together.rank == 0,
                where=where,
                checkpoint_minutes=checkpoint_minutes,
                log_every=log_every,
                log_to=log_to,
                keep_training=keep_training,
            )
    except BaseException as error:
        together.fail(error)
        raise


def _train_runs(
    activations: ActivationSource,
    runs: Sequence[Training],
    ranks: Ranks,
    *,
    resume: bool,
    progress: bool,
    where: torch.device,
    checkpoint_minutes: float,
    log_every: int,
    log_to: Sequence[str],
    keep_training: bool,
) -> list[Sequence[SAE]]:
    source = open_activations(activations, dtype=None)
    found: dict[int, Sequence[SAE]] = {}
    with ExitStack() as held:
        waiting: dict[int, dict[int, Member]] = {}
        for number, each in enumerate(runs):
            configs = tuple(config.resolved() for config in each.configs)
            starts = _starts(each.initial, configs)
            if each.out is not None and ranks.rank == 0:
                held.enter_context(Claim(each.out))
            run = None
            if each.out is not None:
                run = begun_or_resumed(each.out, configs, source, starts, resume)
                run.ranks = ranks
            # Nothing is written before all ranks have read the existing files.
            check_agreement(ranks, "settings, activations and run", _seen(run, configs, source))
            if run is not None and run.finished:
                if not keep_training and ranks.rank == 0:
                    run.forget(labels_of(configs))  # a kill may have prevented it
                stored = StoredSAEs(run.out / label for label in run.labels)
                found[number] = stored
                if not returns_files(ranks):
                    found[number] = [sae.to(where) for sae in stored]
                continue
            folder, after = (None, 0) if run is None else (run.out, run.step)
            log = []
            if ranks.rank == 0:
                log = loggers(folder, after, log_to, {"configs": as_json(configs)})
            for logger in log:
                held.callback(logger.close)
            waiting.setdefault(after, {})[number] = Member(configs, run, starts, log)
        for members in waiting.values():
            loop = TrainingLoop(list(members.values()), source, where, ranks)
            with closing(loop) as training:
                training.train(log_every, checkpoint_minutes, progress)
                training.finish(keep_training)
                found.update(zip(members, training.results(), strict=True))
    return [found[number] for number in range(len(runs))]


def check_reports(log_to: Sequence[str], log_every: int, checkpoint_minutes: float) -> None:
    """Raise an error unless these can be arguments of `train_saes`."""
    if isinstance(log_to, str):
        raise TypeError(f"log_to must be a sequence of loggers, such as ({log_to!r},), got a str")
    for name in log_to:
        checks.one_of("log_to", name, LOGGERS)
    checks.whole("log_every", log_every, 1)
    checks.at_least("checkpoint_minutes", checkpoint_minutes, 0)


def _seen(run: RunFile | None, configs: Sequence[TrainConfig], source: Activations) -> Any:
    """Return the facts that must be the same on all ranks."""
    facts = {"configs": as_json(configs), "data": source.fingerprint}
    return facts if run is None else {**run.facts, **facts}


def device_of(device: torch.device | str | None) -> torch.device:
    """Return the device to train on; raise a ValueError if torch does not have it."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return checks.device_here("device", device)


def _starts(
    initial: SAE | Sequence[SAE] | None, configs: Sequence[TrainConfig]
) -> Sequence[SAE | None]:
    """Return the initial SAE of each SAE of the run, None for those initialised from seeds."""
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
