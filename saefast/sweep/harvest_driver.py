"""Harvest of activations by several processes into the same stores."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from saefast.activations.joiner import PlannedShard, StoreJoiner
from saefast.activations.protocol import dtype_name
from saefast.activations.store import Kept
from saefast.disk.atomic import PART
from saefast.lm.corpus import Texts
from saefast.lm.harvest_part import PartOfStore, part_to_dict
from saefast.lm.harvest_plan import POSITIONS, TOKENS, HarvestPlan, PlannedStore, plan_harvest
from saefast.lm.model import LanguageModel
from saefast.lm.packing import Packing
from saefast.lm.stored_tokens import StoredTokens, write_tokens
from saefast.progress import ProgressBar
from saefast.sweep.harvest_tasks import HARVEST_PART, HarvestPart
from saefast.sweep.pool import check_on, open_workers, perform_all
from saefast.sweep.workers import Workers

_TOKENS_FILE = f"tokens.safetensors{PART}"
_EXTRAS = {name: Kept(torch.int32, ()) for name in (TOKENS, POSITIONS)}
_FEWEST_BATCHES = 32
"""Batches of a part, unless there are too few: one of them may be computed twice"""


def harvest_by_processes(
    model: LanguageModel,
    sites: int | str | Sequence[int | str],
    *,
    out: str | Path,
    processes: int,
    on: str = "local",
    workers: Workers[Any] | None = None,
    tokens: int | None = None,
    corpus: Texts | None = None,
    context: int = 256,
    batch_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    drop_bos: bool = True,
    packed: bool = True,
    prepend_bos: bool | None = None,
    rows_per_shard: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write the stores of `saefast.lm.harvest` by several processes.

    The text is tokenized once, by the caller. Workers run the model on fixed batches of contexts
    and write whole shards; the caller joins them in the index. The stores have the bytes of a
    harvest by one process with as many threads as each worker has, and either can resume the
    other.

    Args:
        model: model from `load_model`, which every worker loads for itself.
        sites: see `harvest`.
        out: see `harvest`; on Ray, a path that all nodes share.
        processes: number of worker processes, which divide the threads of the machine; on Ray, the
            maximum number of concurrent tasks.
        on: "local", "ray" or "ray://HOST", as for `run_sweep`.
        workers: idle workers that perform the parts, and stay open, instead of new ones `on` a
            place.
        tokens: see `harvest`.
        corpus: see `harvest`.
        context: see `harvest`.
        batch_size: see `harvest`. To resume, the same as before.
        dtype: see `harvest`.
        drop_bos: see `harvest`.
        packed: see `harvest`.
        prepend_bos: see `harvest`.
        rows_per_shard: see `harvest`.
        resume: continue existing stores.
        progress: show a progress bar on stderr.

    Returns:
        Path of each store, in the order of `sites`.

    Raises:
        RuntimeError: the same part failed twice; finished shards are kept.
    """
    check_on(on, processes)
    packing = Packing(context, batch_size, drop_bos, packed, prepend_bos)
    plan = plan_harvest(
        model,
        sites,
        out,
        tokens=tokens,
        corpus=corpus,
        packing=packing,
        dtype=dtype,
        rows_per_shard=rows_per_shard,
    )
    with ExitStack() as stack:
        joiners = [
            stack.enter_context(_joiner(store, dtype, tokens, resume)) for store in plan.stores
        ]
        file = plan.stores[0].path / _TOKENS_FILE
        about = write_tokens(file, packing.batches(plan.source, model.tokenizer), tokens)
        stored = StoredTokens(file)
        _check_tokens(plan, stored, model)
        rows = stored.rows if tokens is None else min(stored.rows, tokens)
        for joiner in joiners:
            joiner.join(rows, about)
        parts = _parts(model, plan, joiners, stored, (file, about), rows, processes)
        done = min(joiner.rows for joiner in joiners)
        with ProgressBar("harvest", total=rows, unit="tokens", progress=progress, done=done) as bar:

            def finished(_: HarvestPart) -> None:
                nonlocal done
                now = min(joiner.join(rows, about) for joiner in joiners)
                bar.update(now - done)
                done = now

            if parts:
                opened = nullcontext(workers) if workers else None
                with opened or open_workers(on, processes, len(parts)) as hands:
                    perform_all(parts, hands, finished)
        for joiner in joiners:
            joiner.finish()
    plan.check_written(rows)
    return [store.path for store in plan.stores]


def _joiner(
    store: PlannedStore, dtype: torch.dtype, tokens: int | None, resume: bool
) -> StoreJoiner:
    if resume:
        store.check_resumed(tokens)
    return StoreJoiner(
        store.path,
        store.d,
        extras=_EXTRAS,
        dtype=dtype,
        rows_per_shard=store.rows_per_shard,
        metadata=store.metadata,
        resume=resume,
    )


def _check_tokens(plan: HarvestPlan, stored: StoredTokens, model: LanguageModel) -> None:
    """Raise ValueError if existing rows belong to other tokens than the stored ones."""
    for store in plan.stores:
        before = store.existing()
        if before is None:
            continue
        for number in stored.numbers(0, min(before.rows, stored.rows)):
            batch = stored.batch(number, model.tokenizer, plan.packing.drop_bos)
            tokens = batch.ids[batch.kept].to(torch.int32)
            store.check_tokens(before, stored.ends[number], tokens)


def _parts(
    model: LanguageModel,
    plan: HarvestPlan,
    joiners: Sequence[StoreJoiner],
    stored: StoredTokens,
    tokens: tuple[Path, str],
    rows: int,
    processes: int,
) -> list[HarvestPart]:
    """Divide the missing shards into parts of successive rows."""
    missing = [joiner.missing(rows, tokens[1]) for joiner in joiners]
    batches = len(stored.ends) - 1
    count = max(processes, batches // _FEWEST_BATCHES)
    step = max(max(store.rows_per_shard for store in plan.stores), -(-rows // count))
    weights = sum(each.numel() * each.element_size() for each in model.model.parameters())
    file, about = tokens
    found = []
    for first in range(0, rows, step):
        stores = [
            PartOfStore(store.path.resolve(), store.site.name, mine)
            for store, shards in zip(plan.stores, missing, strict=True)
            if (mine := _beginning_in(shards, first, first + step))
        ]
        if stores:
            part = HarvestPart(
                HARVEST_PART,
                model.name,
                model.device.type,
                model.description,
                weights,
                str(file.resolve()),
                about,
                plan.packing.drop_bos,
                dtype_name(plan.dtype),
                tuple(part_to_dict(store) for store in stores),
            )
            found.append(part)
    return found


def _beginning_in(shards: Sequence[PlannedShard], first: int, end: int) -> list[PlannedShard]:
    return [shard for shard in shards if first <= shard.first < end]
