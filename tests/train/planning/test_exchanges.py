"""Planned exchanges equal those that simulated ranks count."""

from typing import Any

import pytest
import torch
from helpers.shared_steps import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saefast import SAE, AuxK, FusedStep, Penalty, Rules, TrainConfig, train_saes
from saefast.train.auxk import dead_latents
from saefast.train.objectives import objective_of
from saefast.train.planning.exchanges import Codes, Search, step_exchanges
from saefast.train.ranks import Ranks, Simulated, encoder
from saefast.train.ranks.rows import batch_bytes
from saefast.types import SparseCode, ThresholdCode

VARIANTS = ["topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu"]
PENALTIES = tuple(
    Penalty(side, norm, 0.01)
    for side in ("encoder", "decoder")
    for norm in ("fro", "fro_squared", "mean_abs")
)


class Lists:
    """Lengths of the lists that ranks exchange, noted when codes are merged."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ranked: dict[int, list[int]] = {}
        self.longest: dict[int, list[int]] = {}
        self.widths: list[int] = []
        largest, above = encoder.merged_largest, encoder.merged_above

        def merged_largest(share: Any, code: Any, k: int, *others: Any, **more: Any) -> SparseCode:
            self.ranked.setdefault(share.ranks.rank, []).append(k)
            return largest(share, code, k, *others, **more)

        def merged_above(share: Any, found: ThresholdCode, width: int) -> ThresholdCode:
            longest = min(int(found.counts.amax()), width)
            self.longest.setdefault(share.ranks.rank, []).append(longest)
            merged = above(share, found, width)
            if share.ranks.rank == 0:
                self.widths.append(merged.values.shape[1])
            return merged

        patch.setattr(encoder, "merged_largest", merged_largest)
        patch.setattr(encoder, "merged_above", merged_above)

    def clear(self) -> None:
        self.ranked, self.longest, self.widths = {}, {}, []

    def codes(self, size: int, width: int) -> Codes:
        by_search = zip(*(self.longest.get(rank, ()) for rank in range(size)), strict=True)
        searches = zip(by_search, self.widths, strict=True)
        return Codes(
            tuple(self.ranked.get(0, ())), tuple(Search(*each) for each in searches), width
        )


def assert_planned(config: TrainConfig, d: int, size: int, *, d_out: int | None = None) -> int:
    """Compare every step of a few with its plan; return the most dead latents of a step."""
    n, most_dead, compared = config.batch_size, 0, 0
    sae = SAE(
        d, config.latents, k=config.k, variant=config.variant, by_norm=config.by_norm, d_out=d_out
    )
    if config.variant in ("relu", "jumprelu"):  # dense codes are not planned
        with torch.no_grad():
            sae.b_enc.fill_(-60.0)
    group = Simulated(size)

    def begin(ranks: Ranks) -> FusedStep:
        return FusedStep(
            sae,
            lr=1e-2,
            rules=config.rules,
            objective=objective_of(config, sae),
            precision=config.precision,
            auxk=config.auxk,
            ranks=ranks,
        )

    with pytest.MonkeyPatch.context() as patch:
        lists = Lists(patch)
        steps = group.run(begin)
        for x in rows(3, n, d, 0, torch.float32):
            dead = None
            if config.auxk is not None:
                listed = dead_latents(steps[0].idle, config.auxk).latents
                ends = [steps[0].share.rows_of(rank) for rank in range(size)]  # type: ignore[union-attr]
                dead = [int(((listed >= a.start) & (listed < a.stop)).sum()) for a in ends]
                most_dead = max(most_dead, sum(dead))
            lists.clear()
            group.received, group.calls = [0] * size, [0] * size
            target = None if d_out is None else x[:, :d_out]
            # Every rank's step refers to its rank of the first run.
            results = group.run(lambda ranks, x=x, t=target: steps[ranks.rank](x, t))
            if results[0].path == "autograd":
                continue
            compared += 1
            codes = lists.codes(size, results[0].code.values.shape[1])
            for rank in range(size):
                parts = step_exchanges(config, d, rank, size, d_out=d_out, codes=codes, dead=dead)
                del parts["signals"]  # of a run, not of a step
                assert group.received[rank] == sum(part.received for part in parts.values())
                assert group.calls[rank] == sum(part.calls for part in parts.values())
    assert compared > 0
    return most_dead


@given(
    variant=st.sampled_from(VARIANTS),
    size=st.sampled_from([2, 4, 8, 16]),
    m=st.sampled_from([7, 64, 100, 700]),
    d=st.sampled_from([16, 17, 40]),
    n=st.sampled_from([1, 7, 33]),
    k=st.integers(1, 6),
    clip=st.sampled_from([None, 0.3]),
    auxk=st.sampled_from(
        [
            None,
            AuxK(k=3, dead_after=1),
            AuxK(dead_after=1, normalised=False),
            AuxK(k=900, dead_after=1),
        ]
    ),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_planned_exchanges_equal_counted_ones(
    variant: str, size: int, m: int, d: int, n: int, k: int, clip: float | None, auxk: AuxK | None
) -> None:
    config = TrainConfig(m, k, variant, batch_size=n, rules=Rules(clip=clip), auxk=auxk)
    assert_planned(config, d, size)


@pytest.mark.parametrize(
    "changes",
    [
        {"rules": Rules(penalties=PENALTIES, clip=0.5)},
        {"rules": Rules(penalties=PENALTIES[4:5])},
        {"rules": Rules(penalties=PENALTIES[:1], unit_norm=False)},
        {"rules": Rules(remove_parallel=False)},
        {"rules": Rules(frozen="decoder", clip=1.0)},
        {"rules": Rules(frozen="encoder", clip=1.0)},
        {"precision": "bf16_weights"},
        {"by_norm": True, "rules": Rules(unit_norm=False)},
    ],
)
def test_every_rule_is_planned(changes: dict[str, Any]) -> None:
    auxk = AuxK(k=6, dead_after=60)
    assert assert_planned(TrainConfig(300, 4, batch_size=50, auxk=auxk, **changes), 40, 4) > 0


def test_a_transcoder_is_planned() -> None:
    assert_planned(TrainConfig(300, 4, batch_size=50), 40, 4, d_out=24)


def test_a_run_adds_rows_and_signals_alone() -> None:
    """Two runs differ by the exchanges of two steps; their beginnings and ends are equal."""
    received, calls = [], []
    (data,) = rows(1, 6 * 32, 24, 0, torch.float32)
    for steps in (4, 6):  # of as many digits in the agreed settings
        config = TrainConfig(200, 4, batch_size=32, tokens=32 * steps, auxk=AuxK(dead_after=999))
        group = Simulated(4)
        group.run(lambda ranks, c=config: train_saes(data, c, ranks=ranks, progress=False))  # type: ignore[misc]
        received.append(group.received[1])
        calls.append(group.calls[1])
    parts = step_exchanges(config, 24, 1, 4).values()
    of_rows = batch_bytes(32, (24,), 4)
    more = received[1] / 2 - received[0] / 2 - of_rows - sum(part.received for part in parts)
    assert 0 < more < 500  # the headers of batches
    assert calls[1] - calls[0] == 2 * (2 + sum(part.calls for part in parts))
