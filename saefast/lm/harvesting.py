"""Harvest activations of a language model into stores on disk."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.activations import StoreWriter
from saefast.lm.corpus import Texts
from saefast.lm.harvest_plan import POSITIONS, TOKENS, PlannedStore, plan_harvest
from saefast.lm.model import LanguageModel
from saefast.lm.packing import Packing, TokenBatch
from saefast.lm.padded import BatchCapture
from saefast.lm.sites import Site
from saefast.progress import ProgressBar


def harvest(
    model: LanguageModel,
    sites: int | str | Sequence[int | str],
    *,
    out: str | Path,
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
    """Write the activations of one or several modules as stores, in one pass of the model.

    A forward pass stops after the last module that is needed. Beside each activation the store
    keeps its token and its position in the context.

    Args:
        model: model from `load_model`, or a `LanguageModel` built from parts.
        sites: number of a layer for the residual stream after it, "mlp.3", "attn.3", or the name of
            any module; see `saefast.lm.find_site`.
        out: path of the store; if `sites` is a list, of a folder with a store for each site, named
            after it.
        tokens: number of rows to write; None: all tokens of the corpus.
        corpus: text to read; None: the part of `builtin_corpus()` that is not held out.
        context: number of tokens in a context.
        batch_size: number of contexts in a forward pass.
        dtype: dtype of the stores.
        drop_bos: leave out first positions, whose activations are outliers, and BOS. Padding of
            short contexts is never written.
        packed: fill every context, with documents separated by an empty line; False: every document
            begins a new context.
        prepend_bos: begin every context with BOS; None: if the tokenizer does by default.
        rows_per_shard: number of rows in a shard, which a killed process may lose; None: a 32nd of
            the tokens, but at least 8192 rows and at most 256 MiB.
        resume: continue existing stores. With the same `batch_size` the bits are those of an
            uninterrupted harvest.
        progress: show a progress bar on stderr.

    Returns:
        Path of each store, in the order of `sites`.
    """
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
        stores = [
            stack.enter_context(_Store(planned, dtype, tokens, resume)) for planned in plan.stores
        ]
        batches = packing.batches(plan.source, model.tokenizer)
        written = _write(model, plan.sites, stores, batches, progress)
    plan.check_written(written)
    return [planned.path for planned in plan.stores]


class _Store:
    """One store of a harvest, and its progress."""

    def __init__(
        self, planned: PlannedStore, dtype: torch.dtype, tokens: int | None, resume: bool
    ) -> None:
        if resume:
            planned.check_resumed(tokens)
        self._writer = StoreWriter(
            planned.path,
            planned.d,
            dtype=dtype,
            rows_per_shard=planned.rows_per_shard,
            metadata=planned.metadata,
            resume=resume,
        )
        try:
            self._before = planned.existing()
        except BaseException:  # such as a missing shard
            self._writer.close()
            raise
        self._planned, self.tokens = planned, tokens

    @property
    def rows(self) -> int:
        return self._writer.rows

    def wants(self, end: int) -> bool:
        """Return whether rows before number `end` are missing."""
        return self._writer.rows < (end if self.tokens is None else min(end, self.tokens))

    def check_tokens(self, first: int, tokens: Tensor) -> None:
        """Raise ValueError if existing rows from `first` on belong to other tokens."""
        self._planned.check_tokens(self._before, first, tokens)

    def take(self, first: int, rows: Tensor, extras: dict[str, Tensor]) -> None:
        """Append the missing rows among those from number `first` on."""
        begin = self._writer.rows - first
        end = len(rows) if self.tokens is None else min(len(rows), self.tokens - first)
        mine = {name: values[begin:end] for name, values in extras.items()}
        self._writer.append(rows[begin:end], **mine)

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)


def _write(
    model: LanguageModel,
    sites: Sequence[Site],
    stores: Sequence[_Store],
    batches: Iterator[TokenBatch],
    progress: bool,
) -> int:
    """Fill the stores from the batches, and return the number of rows in the shortest."""
    total = stores[0].tokens
    first = 0
    done = min(store.rows for store in stores)
    captured = BatchCapture(model, sites)
    with ProgressBar("harvest", total=total, unit="tokens", progress=progress, done=done) as bar:
        for batch in batches:
            end = first + int(batch.kept.sum())
            kept = batch.kept
            tokens = batch.ids[kept].to(torch.int32)
            for store in stores:
                store.check_tokens(first, tokens)
            if any(store.wants(end) for store in stores):
                seen = captured(batch)
                positions = kept.nonzero()[:, 1].to(torch.int32)
                extras = {TOKENS: tokens, POSITIONS: positions}
                for store, activations in zip(stores, seen, strict=True):
                    if store.wants(end):
                        store.take(first, activations[kept.to(activations.device)].cpu(), extras)
                now = min(store.rows for store in stores)
                bar.update(now - done)
                done = now
            first = end
            if total is not None and first >= total:
                break
    return min(store.rows for store in stores)
