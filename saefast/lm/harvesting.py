"""Harvest activations of a language model into stores on disk."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast import checks
from saefast.activations import StoreActivations, StoreWriter
from saefast.activations.protocol import check_dtype
from saefast.activations.store import INDEX, read_index
from saefast.lm.builtin_corpus import or_builtin
from saefast.lm.corpus import Texts
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.packing import Packing, TokenBatch
from saefast.lm.sites import Site, capture, find_sites
from saefast.progress import ProgressBar

TOKENS, POSITIONS = "tokens", "positions"
"""Columns that a harvested store keeps beside the activations: token and position of a row."""

_SHARD_BYTES = 256 << 20
_SHARDS = 32  # a killed process loses at most one of them
_FEWEST_ROWS = 8192


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
        model: model from `load_model`, or a `LanguageModel` of your own parts.
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
    check_model(model)
    several = not isinstance(sites, int | str)
    chosen = find_sites(model.model, sites if several else [sites])  # type: ignore[arg-type,list-item]
    paths = [Path(out) / site.name if several else Path(out) for site in chosen]
    source = or_builtin(corpus)
    packing = Packing(context, batch_size, drop_bos, packed, prepend_bos)
    check_dtype(dtype)
    if tokens is not None:
        checks.whole("tokens", tokens, 1)
    described = {**model.description, "text": source.description, **packing.description}
    with ExitStack() as stack:
        stores = [
            stack.enter_context(
                _Store(path, site, width, dtype, tokens, rows_per_shard, described, resume)
            )
            for path, site, width in zip(paths, chosen, _widths(model, chosen), strict=True)
        ]
        written = _write(model, chosen, stores, packing.batches(source, model.tokenizer), progress)
    if tokens is not None and written < tokens:
        raise ValueError(
            f"corpus has only {written} of the {tokens} requested tokens, all of which are "
            f"written; use tokens={written}, or more text"
        )
    return paths


class _Store:
    """One store of a harvest, and its progress."""

    def __init__(
        self,
        path: Path,
        site: Site,
        d: int,
        dtype: torch.dtype,
        tokens: int | None,
        rows_per_shard: int | None,
        described: dict[str, Any],
        resume: bool,
    ) -> None:
        metadata = {"site": site.name, **described}
        before = None
        if resume and (path / INDEX).is_file():
            before = read_index(path)
            _check_same(path, before.metadata, metadata)
        if rows_per_shard is None:
            most = max(1, _SHARD_BYTES // (d * dtype.itemsize))
            share = most if tokens is None else -(-tokens // _SHARDS)
            rows_per_shard = min(most, max(_FEWEST_ROWS, share))
        self._writer = StoreWriter(
            path, d, dtype=dtype, rows_per_shard=rows_per_shard, metadata=metadata, resume=resume
        )
        self._before = StoreActivations(path) if before is not None and before.shards else None
        self._old = self._writer.rows
        self._path, self.tokens = path, tokens

    @property
    def rows(self) -> int:
        return self._writer.rows

    def wants(self, end: int) -> bool:
        """Return whether rows before number `end` are missing."""
        return self._writer.rows < (end if self.tokens is None else min(end, self.tokens))

    def check_tokens(self, first: int, tokens: Tensor) -> None:
        """Raise ValueError if existing rows from `first` on belong to other tokens."""
        end = min(first + len(tokens), self._old)
        if self._before is None or end <= first:
            return
        if not bool((self._before.read(TOKENS, first, end) == tokens[: end - first]).all()):
            raise ValueError(
                f"{self._path} holds activations of other text from row {first} on; continue with "
                f"the original corpus, or choose another path"
            )

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
    with ProgressBar("harvest", total=total, unit="tokens", progress=progress, done=done) as bar:
        for batch in batches:
            end = first + int(batch.kept.sum())
            kept = batch.kept
            tokens = batch.ids[kept].to(torch.int32)
            for store in stores:
                store.check_tokens(first, tokens)
            if any(store.wants(end) for store in stores):
                seen = capture(model.model, sites, batch.ids)
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


def _widths(model: LanguageModel, sites: Sequence[Site]) -> list[int]:
    """Return the width of each site's activations, from a pass over a few tokens."""
    seen = capture(model.model, sites, torch.zeros(2, 2, dtype=torch.int64))
    return [activations.shape[2] for activations in seen]


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    # The batch size affects bits at most, and may have to be smaller on another machine.
    differ = [name for name in differ if name != "batch_size"]
    if differ:
        changes = ", ".join(
            f"{name} was {old.get(name)!r} and is now {new.get(name)!r}" for name in differ
        )
        raise ValueError(
            f"{path} cannot be resumed, since it was started with other settings: {changes}; use "
            f"the original settings, or choose another path"
        )
