"""Plans of trainings: numbers of ranks, costs against the guide, and the command."""

import dataclasses
import json

import pytest

from saefast import AuxK, Rules, TrainConfig
from saefast.cli import main
from saefast.train.planning import MACHINES, Machine, measured_machine, plan_training

CPU = Machine("cpu", 1e11, 1e10, 1e10, network=1e9, latency=1e-4, memory=10**10)


@pytest.mark.parametrize(
    ("d", "latents", "kind", "ranks", "least", "most"),
    [
        (4096, 131_072, "h100-nvlink", 8, 1.0, 1.1),
        (4096, 131_072, "h100-400g", 16, 1.15, 1.25),
        (4096, 1_048_576, "h100-nvlink", 8, 1.0, 1.05),
        (4096, 1_048_576, "h100-400g", 16, 1.0, 1.05),
        (4096, 131_072, "h100-25g", 16, 1.4, 2.1),
        (768, 32_768, "h100-25g", 8, 1.9, 2.2),
    ],
)
def test_two_saes_on_all_ranks_cost_what_the_guide_states(
    d: int, latents: int, kind: str, ranks: int, least: float, most: float
) -> None:
    """Beside one SAE on half of the ranks, as in two groups, and without the rows of both."""
    two, one = (
        TrainConfig(latents, 64, batch_size=8192, auxk=None, rules=Rules(), seeds=seeds)
        for seeds in ((0, 1), (0,))
    )
    together = plan_training(two, d, MACHINES[kind], ranks=ranks)
    group = plan_training(one, d, MACHINES[kind], ranks=ranks // 2)
    seconds = [plan.seconds.total - plan.seconds.rows for plan in (together, group)]
    received = [plan.received - plan.exchanges["rows"].received for plan in (together, group)]
    assert least < seconds[0] / seconds[1] < most
    assert 0.4 < received[1] / received[0] < 0.7
    # Rows and signals are exchanged once, for all SAEs.
    assert together.calls - 3 == 2 * (group.calls - 3)
    assert together.bytes_per_rank == pytest.approx(group.bytes_per_rank, rel=0.05)


def test_the_smallest_number_of_ranks_is_the_first_that_fits() -> None:
    config = TrainConfig(131_072, 32, batch_size=1024)
    sizes = {
        ranks: plan_training(config, 768, CPU, ranks=ranks).bytes_per_rank for ranks in (1, 2, 4, 8)
    }
    assert sizes[8] < sizes[4] < min(sizes[1], sizes[2])
    between = dataclasses.replace(CPU, memory=(min(sizes[1], sizes[2]) + sizes[4]) // 2)
    plans = {ranks: plan_training(config, 768, between, ranks=ranks) for ranks in (1, 4)}
    assert [plans[1].fits, plans[4].fits, plans[4].fits_together] == [False, True, False]
    assert plans[1].smallest == plans[4].smallest == 4
    assert "smallest number that fits   4," in plans[1].as_text()
    nothing = plan_training(config, 768, dataclasses.replace(CPU, memory=10**8))
    assert nothing.smallest is None
    assert "no number of ranks" in nothing.as_text()


def test_whole_saes_on_ranks_exchange_rows_and_signals_alone() -> None:
    config = TrainConfig(1024, 8, seeds=(0, 1, 2, 3), batch_size=256)
    one, two = (plan_training(config, 64, CPU, ranks=ranks) for ranks in (1, 2))
    of_rows = 256 * (2 * 64 + 8)
    assert (one.received, one.calls) == (0, 0)
    assert two.exchanges == {"rows": (of_rows, 2), "signals": (2, 1)}
    assert two.seconds.encode == one.seconds.encode / 2
    assert two.memory.state == one.memory.state / 2
    eight = plan_training(config, 64, CPU, ranks=8)
    single = plan_training(dataclasses.replace(config, seeds=(0,)), 64, CPU, ranks=8)
    (row,) = eight.to_table().to_pylist()
    assert (row["ranks"], row["saes"], row["received"]) == (8, 4, eight.received)
    assert row["seconds"] == eight.seconds.total
    once = single.exchanges["signals"].received + of_rows
    assert eight.received - once == 4 * (single.received - once)


def test_dead_latents_are_planned() -> None:
    config = TrainConfig(1024, 8, batch_size=256, auxk=AuxK(k=16))
    none, some = (plan_training(config, 64, CPU, ranks=4, dead=dead) for dead in (0, 100))
    # Lists of values and latents, merged lists and products there and back, as in the guide.
    assert some.received - none.received >= 24 * 256 * 16 * 3 // 4
    assert some.seconds.gather > none.seconds.gather


def test_models_are_labelled_and_close_to_the_floors_of_the_design() -> None:
    """The floors of one H100 for this SAE add up to 23.5 ms."""
    config = TrainConfig(131_072, 64, batch_size=8192)
    one = plan_training(config, 4096, MACHINES["h100-nvlink"])
    assert one.seconds.total == pytest.approx(23.5e-3, rel=0.05)
    assert "H100, NVLink (as a model)" in one.as_text()


def test_numbers_that_cannot_train_are_refused() -> None:
    config = TrainConfig(1024, 8)
    with pytest.raises(ValueError, match=r"ranks must be one of 1, 2, 4, 8, 16 .*, got 3"):
        plan_training(config, 64, CPU, ranks=3)
    with pytest.raises(ValueError, match="ranks must be 1, or at most the number of SAEs"):
        plan_training(dataclasses.replace(config, variant="gated"), 64, CPU, ranks=2)
    with pytest.raises(ValueError, match="products must be at least 1, got 0"):
        dataclasses.replace(CPU, products=0)


def test_this_machine_is_measured() -> None:
    machine = measured_machine(64)
    assert not machine.modelled
    assert min(machine.products, machine.gather, machine.update) > 1e6


def test_the_command_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--d", "4096", "--latents", "131072", "--k", "64", "--batch-size", "8192"]
    command = ["plan", "train", *options, "--seeds", "0", "--ranks", "8", "--kind", "h100-400g"]
    config = TrainConfig(131_072, 64, batch_size=8192)
    planned = plan_training(config, 4096, MACHINES["h100-400g"], ranks=8)
    assert main(command) == 0
    assert capsys.readouterr().out == planned.as_text() + "\n"
    assert main([*command, "--json", "--memory", "3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["received"], facts["calls"]) == (planned.received, planned.calls)
    assert facts["fits"] is False
