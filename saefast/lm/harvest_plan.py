"""Plan of a harvest: sites, widths, stores and their metadata."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast import checks
from saefast.activations import StoreActivations
from saefast.activations.protocol import check_dtype
from saefast.activations.store import INDEX, read_index
from saefast.activations.writer import check_not_more
from saefast.lm.builtin_corpus import or_builtin
from saefast.lm.corpus import Corpus, Texts
from saefast.lm.model import LanguageModel, check_context, check_model
from saefast.lm.packing import Packing
from saefast.lm.sites import Site, capture, find_sites

TOKENS, POSITIONS = "tokens", "positions"
"""Columns that a harvested store keeps beside the activations: token and position of a row."""

_SHARD_BYTES = 256 << 20
_SHARDS = 32  # a killed process loses at most one of them
_FEWEST_ROWS = 8192
_DEVICE, _CPU = "device", "cpu"
"""Metadata that names the type of the model's device; stores without it are from a CPU"""


@dataclass(frozen=True)
class PlannedStore:
    """Store of one site."""

    path: Path
    """folder of the store"""
    site: Site
    """module whose output is stored"""
    d: int
    """width of a row"""
    rows_per_shard: int
    """number of rows in a shard"""
    metadata: dict[str, Any]
    """metadata of the store: site, model, text and packing"""

    def check_resumed(self, tokens: int | None) -> None:
        """Raise ValueError if the store exists and was begun with other settings.

        Args:
            tokens: number of rows to write, which the store must not exceed; None: any.
        """
        if not (self.path / INDEX).is_file():
            return
        index = read_index(self.path)
        _check_same(self.path, index.metadata, self.metadata)
        check_not_more(self.path, index.rows, tokens)

    def existing(self) -> StoreActivations | None:
        """Return the rows of the store; None if it has none."""
        if not (self.path / INDEX).is_file() or not read_index(self.path).shards:
            return None
        return StoreActivations(self.path)

    def check_tokens(self, before: StoreActivations | None, first: int, tokens: Tensor) -> None:
        """Raise ValueError if existing rows belong to other tokens.

        Args:
            before: rows of the store.
            first: number of the row of the first token.
            tokens: [n] int32, tokens of the rows from `first` on.
        """
        end = 0 if before is None else min(first + len(tokens), before.rows)
        if before is None or end <= first:
            return
        if not bool((before.read(TOKENS, first, end) == tokens[: end - first]).all()):
            raise ValueError(
                f"{self.path} holds activations of other text from row {first} on; continue with "
                f"the original corpus, or choose another path"
            )


@dataclass(frozen=True)
class HarvestPlan:
    """Stores of a harvest, and the text that is read for them."""

    stores: tuple[PlannedStore, ...]
    """store of each site"""
    source: Corpus
    """text"""
    packing: Packing
    """rules by which the text becomes contexts"""
    dtype: torch.dtype
    """dtype of the stores"""
    tokens: int | None
    """number of rows; None: all tokens of the text"""

    @property
    def sites(self) -> list[Site]:
        """Site of each store."""
        return [store.site for store in self.stores]

    def check_written(self, rows: int) -> None:
        """Raise ValueError if the text ended before the requested number of rows."""
        if self.tokens is not None and rows < self.tokens:
            raise ValueError(
                f"corpus has only {rows} of the {self.tokens} requested tokens, all of which are "
                f"written; use tokens={rows}, or more text"
            )


def plan_harvest(
    model: LanguageModel,
    sites: int | str | Sequence[int | str],
    out: str | Path,
    *,
    tokens: int | None,
    corpus: Texts | None,
    packing: Packing,
    dtype: torch.dtype,
    rows_per_shard: int | None,
) -> HarvestPlan:
    """Check the arguments of a harvest and determine its stores; see `harvest`."""
    check_model(model)
    one = isinstance(sites, int | str)
    chosen = find_sites(model.model, [sites] if isinstance(sites, int | str) else sites)
    check_context(model, packing.context)
    source = or_builtin(corpus)
    check_dtype(dtype)
    if tokens is not None:
        checks.whole("tokens", tokens, 1)
    described = {**model.description, "text": source.description, **packing.description}
    if model.device.type != _CPU:
        described[_DEVICE] = model.device.type
    stores = tuple(
        PlannedStore(
            Path(out) if one else Path(out) / site.name,
            site,
            d,
            _usual_shard(d, dtype, tokens) if rows_per_shard is None else rows_per_shard,
            {"site": site.name, **described},
        )
        for site, d in zip(chosen, _widths(model, chosen), strict=True)
    )
    return HarvestPlan(stores, source, packing, dtype, tokens)


def _usual_shard(d: int, dtype: torch.dtype, tokens: int | None) -> int:
    """Return the number of rows in a shard, unless the caller chooses it."""
    most = max(1, _SHARD_BYTES // (d * dtype.itemsize))
    share = most if tokens is None else -(-tokens // _SHARDS)
    return min(most, max(_FEWEST_ROWS, share))


def _widths(model: LanguageModel, sites: Sequence[Site]) -> list[int]:
    """Return the width of each site's activations, from a pass over a few tokens."""
    seen = capture(model.model, sites, torch.zeros(2, 2, dtype=torch.int64))
    return [activations.shape[2] for activations in seen]


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = {_DEVICE: _CPU, **old}, {_DEVICE: _CPU, **new}
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
