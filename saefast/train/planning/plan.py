"""Plan of a training: memory, exchanged bytes and modelled time for a number of ranks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saefast import checks
from saefast.disk.tables import table_of
from saefast.train.config import TrainConfig
from saefast.train.planning.exchanges import Exchange, step_exchanges, usual_codes
from saefast.train.planning.machines import Machine
from saefast.train.planning.memory import PROCESS_BYTES, RankMemory, rank_memory
from saefast.train.planning.volumes import UPDATE_BYTES, gathered_bytes
from saefast.train.ranks.rows import batch_bytes

if TYPE_CHECKING:
    import pyarrow as pa

_RANKS = (1, 2, 4, 8, 16)
"""Numbers of ranks that can train a float32 SAE together."""
_STORED = 2
"""Bytes of a number of the activations, which are assumed to be stored in half precision."""


@dataclass(frozen=True)
class StepSeconds:
    """Modelled seconds of a step, without overlap."""

    encode: float
    """products of the encode"""
    gather: float
    """decode, and gradients from rows that are gathered"""
    update: float
    """Adam"""
    exchange: float
    """bytes and calls of collectives, except for those of the rows"""
    rows: float
    """bytes and calls of the rows, which one rank reads"""

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return self.encode + self.gather + self.update + self.exchange + self.rows


@dataclass(frozen=True)
class TrainPlan:
    """Cost of a training on a number of ranks; values are maxima over the ranks."""

    d: int
    """width of the rows"""
    config: TrainConfig
    """settings of the training"""
    ranks: int
    """number of ranks"""
    machine: Machine
    """speeds and memory of a rank"""
    together: bool
    """whether several ranks train each SAE; otherwise each rank trains some of the SAEs"""
    memory: RankMemory
    """bytes of memory of a rank for its SAEs"""
    exchanges: dict[str, Exchange]
    """bytes received and calls in a step, by part"""
    seconds: StepSeconds
    """modelled time of a step of all SAEs of a rank"""
    smallest: int | None
    """smallest number of ranks whose processes fit into the memory of one machine each; None:
    none of those that can train"""

    @property
    def bytes_per_rank(self) -> int:
        """Largest memory of a rank's process."""
        return PROCESS_BYTES + self.memory.peak

    @property
    def received(self) -> int:
        """Bytes that a rank receives in a step."""
        return sum(part.received for part in self.exchanges.values())

    @property
    def calls(self) -> int:
        """Collectives of a step."""
        return sum(part.calls for part in self.exchanges.values())

    @property
    def fits(self) -> bool:
        """Whether a rank fits into the memory of a machine of its own."""
        return self.bytes_per_rank <= self.machine.memory

    @property
    def fits_together(self) -> bool:
        """Whether all ranks fit into the memory of one machine."""
        return self.ranks * self.bytes_per_rank <= self.machine.memory

    def to_table(self) -> "pa.Table":
        """Return the plan as a pyarrow table with one row."""
        sizes = {
            "d": self.d,
            "latents": self.config.latents,
            "saes": len(self.config.seeds),
            "ranks": self.ranks,
            "machine": self.machine.name,
            "modelled": self.machine.modelled,
            "bytes_per_rank": self.bytes_per_rank,
            "received": self.received,
            "calls": self.calls,
            "seconds": self.seconds.total,
            "fits": self.fits,
            "smallest": self.smallest,
        }
        return table_of([sizes])

    def as_text(self) -> str:
        """Return the plan as text."""
        config, memory, seconds, machine = self.config, self.memory, self.seconds, self.machine
        saes = len(config.seeds)
        kind = "as a model" if machine.modelled else "measured speeds"
        divided = "each SAE divided among all ranks" if self.together else "whole SAEs on ranks"
        parts = ", ".join(
            f"{name} {_size(part.received)} in {part.calls}"
            for name, part in self.exchanges.items()
            if part.calls
        )
        smallest = "no number of ranks" if self.smallest is None else str(self.smallest)
        several = (
            [("all ranks on one machine", "fit" if self.fits_together else "do not fit")]
            if self.ranks > 1 and not machine.modelled
            else []
        )
        lines = [
            (
                "training",
                f"{saes} x {config.variant}, d {self.d:,}, {config.latents:,} latents, "
                f"k {config.k}, {config.batch_size:,} rows a step",
            ),
            ("ranks", f"{self.ranks}, {divided if self.ranks > 1 else 'one process'}"),
            ("machine of a rank", f"{machine.name} ({kind}), {_size(machine.memory)} of memory"),
            ("memory per rank", _size(self.bytes_per_rank)),
            ("  state", _size(memory.state)),
            ("  step", _size(memory.step)),
            ("  at the end", _size(memory.end)),
            ("  process", _size(PROCESS_BYTES)),
            ("a rank on its machine", "fits" if self.fits else "does not fit"),
            *several,
            ("smallest number that fits", f"{smallest}, one rank per machine"),
            ("received per step", f"{_size(self.received)} in {self.calls} calls"),
            *([("  by part", parts)] if parts else []),
            ("modelled time per step", f"{seconds.total * 1e3:.4g} ms"),
            ("  encode", f"{seconds.encode * 1e3:.4g} ms"),
            ("  gather", f"{seconds.gather * 1e3:.4g} ms"),
            ("  update", f"{seconds.update * 1e3:.4g} ms"),
            ("  exchange", f"{seconds.exchange * 1e3:.4g} ms"),
            ("  rows", f"{seconds.rows * 1e3:.4g} ms"),
            ("modelled time of all steps", f"{seconds.total * config.steps / 3600:.3g} h"),
        ]
        return "\n".join(f"{name:28}{value}" for name, value in lines)


def plan_training(
    config: TrainConfig,
    d: int,
    machine: Machine,
    *,
    ranks: int = 1,
    d_out: int | None = None,
    dead: int = 0,
) -> TrainPlan:
    """Plan a training of the SAEs of a config on ranks of one kind of machine.

    Exchanges are counted by the code that a training runs; lengths that depend on the rows are
    assumed as in `usual_codes`, and activations to be stored in half precision. Times are those of
    a model without overlap: work divided by speed.

    Args:
        config: settings of the training.
        d: width of the rows.
        machine: `measured_machine`, one of `MACHINES`, or custom speeds.
        ranks: number of ranks.
        d_out: width of the reconstructed rows; None: d.
        dead: number of dead latents that AuxK revives in a step, spread evenly over ranks.

    Returns:
        The plan; `as_text()` formats it.
    """
    checks.whole("d", d, 1)
    checks.whole("ranks", ranks, 1)
    checks.whole("dead", dead, 0)
    together = ranks > len(config.seeds)
    saes = len(config.seeds) if together else -(-len(config.seeds) // ranks)
    size = ranks if together else 1
    if together and not machine.modelled:
        _check_ranks(config, ranks, d if d_out is None else d_out)
    each = [dead * (rank + 1) // size - dead * rank // size for rank in range(size)]
    exchanges = _exchanges(config, d, ranks, size, saes, d_out, each)
    return TrainPlan(
        d,
        config,
        ranks,
        machine,
        together,
        _memory(config, d, size, saes, d_out),
        exchanges,
        _seconds(config, d, machine, size, saes, d_out, dead, exchanges),
        _smallest(config, d, machine, d_out),
    )


def _check_ranks(config: TrainConfig, ranks: int, width: int) -> None:
    if ranks not in _RANKS:
        raise ValueError(
            f"ranks must be one of {', '.join(map(str, _RANKS))} to train an SAE together, or at "
            f"most the number of SAEs, {len(config.seeds)}, got {ranks}"
        )
    checks.between("ranks", ranks, 1, width, "the width of the rows")
    if config.variant == "gated" or config.loss is not None or config.rules.tether is not None:
        raise ValueError(
            "ranks must be 1, or at most the number of SAEs, for gated, a loss of your own and a "
            f"tether, got {ranks}"
        )


def _exchanges(
    config: TrainConfig,
    d: int,
    ranks: int,
    size: int,
    saes: int,
    d_out: int | None,
    dead: list[int],
) -> dict[str, Exchange]:
    """Return the exchanges of the rank that receives most, for all SAEs."""
    if ranks == 1:
        return {}
    widths = (d,) if d_out is None else (d, d_out)
    # The size of a message, and the message.
    rows = {"rows": Exchange(batch_bytes(config.batch_size, widths, _STORED), 2)}
    if size == 1:  # besides, whether a rank was interrupted, and whether a checkpoint is due
        return {**rows, "signals": Exchange(2 * (ranks - 1), 1)}
    of_ranks = [
        step_exchanges(config, d, rank, size, d_out=d_out, dead=dead) for rank in range(size)
    ]
    most = max(of_ranks, key=lambda parts: sum(part.received for part in parts.values()))
    return rows | {
        name: part if name == "signals" else Exchange(saes * part.received, saes * part.calls)
        for name, part in most.items()
    }


def _memory(config: TrainConfig, d: int, size: int, saes: int, d_out: int | None) -> RankMemory:
    each = [rank_memory(config, d, rank, size, d_out=d_out) for rank in range(size)]
    most = max(each, key=lambda memory: memory.peak)
    return RankMemory(saes * most.state, most.step, saes * most.end)


def _smallest(config: TrainConfig, d: int, machine: Machine, d_out: int | None) -> int | None:
    """Return the smallest number of ranks of one SAE, or of whole ones, that fits."""
    seeds, width = len(config.seeds), d if d_out is None else d_out
    candidates: list[int] = sorted({*range(1, seeds + 1), *_RANKS})
    for ranks in candidates:
        together = ranks > seeds
        if together and (ranks not in _RANKS or ranks > width):
            continue
        saes = seeds if together else -(-seeds // ranks)
        memory = _memory(config, d, ranks if together else 1, saes, d_out)
        if PROCESS_BYTES + memory.peak <= machine.memory:
            return ranks
    return None


def _seconds(
    config: TrainConfig,
    d: int,
    machine: Machine,
    size: int,
    saes: int,
    d_out: int | None,
    dead: int,
    exchanges: dict[str, Exchange],
) -> StepSeconds:
    width, n, latents = d if d_out is None else d_out, config.batch_size, config.latents
    active = config.k if config.variant in ("topk", "abstopk") else usual_codes(config, 1).width / 2
    listed = 0
    if config.auxk is not None and dead:
        listed = min(config.auxk.actives(width), dead)
    encoded, entries = (latents + dead) / size, active + listed
    sort = n * entries / machine.sort if machine.sort else 0.0
    gathered = gathered_bytes(n * entries, d / size, width / size, machine.entry)
    exchanged = {
        name: part.received / machine.network + part.calls * machine.latency
        for name, part in exchanges.items()
    }
    of_rows = exchanged.pop("rows", 0.0)
    return StepSeconds(
        encode=saes * 2.0 * n * d * encoded / machine.products,
        gather=saes * (gathered / machine.gather + sort),
        update=saes * UPDATE_BYTES * latents * (d + width) / size / machine.update,
        exchange=sum(exchanged.values()),
        rows=of_rows,
    )


def _size(count: float) -> str:
    """Format bytes in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
