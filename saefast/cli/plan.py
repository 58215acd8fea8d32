"""Command plan."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from saefast.cli.output import Json, positional, print_result
from saefast.cli.train_options import chosen, train_options


def plan(
    what: Annotated[tyro.conf.Positional[Literal["train"]], positional("train")],
    d: int,
    options: Annotated[Any, tyro.conf.arg(name="", constructor=train_options())],
    d_out: int | None = None,
    ranks: int = 1,
    kind: Literal["this", "h100-nvlink", "h100-400g", "h100-25g"] = "this",
    network: float = 10.0,
    latency: float = 100.0,
    memory: float | None = None,
    dead: int = 0,
    json_output: Json = False,
) -> None:
    """Print the memory, exchanged bytes and modelled time of a training; write nothing.

    For example: saefast plan train --d 4096 --latents 131072 --seeds 0 --ranks 8

    Bytes and calls are exact, unless they depend on the rows, for activations that are stored in
    half precision. The speeds of this machine are
    measured in a few seconds, and every process is assumed to have such a machine for itself. GPUs
    are models: several processes cannot train on them yet.

    Args:
        what: The command to plan: train, whose options are the same.
        d: Width of the rows.
        d_out: Width of the reconstructed rows of a transcoder. None: d.
        ranks: Number of processes.
        kind: Machine of a process: this one, or a model of a GPU with its network.
        network: Gigabits per second that a process receives, with --kind this.
        latency: Microseconds of an exchange without data, with --kind this.
        memory: Gigabytes of memory of a machine. None: as usual for its kind.
        dead: Number of dead latents that AuxK revives in a step.
    """
    from saefast.train.planning import MACHINES, measured_machine, plan_training

    config, _ = chosen(options)
    if kind == "this":
        machine = measured_machine(
            d, config.precision, network=network * 1e9 / 8, latency=latency / 1e6
        )
    else:
        machine = MACHINES[kind]
    if memory is not None:
        machine = dataclasses.replace(machine, memory=int(memory * 1e9))
    planned = plan_training(config, d, machine, ranks=ranks, d_out=d_out, dead=dead)
    facts = {
        "ranks": ranks,
        "machine": dataclasses.asdict(machine),
        "bytes_per_rank": planned.bytes_per_rank,
        "memory": planned.memory._asdict(),
        "received": planned.received,
        "calls": planned.calls,
        "exchanges": {name: part._asdict() for name, part in planned.exchanges.items()},
        "seconds": {**dataclasses.asdict(planned.seconds), "total": planned.seconds.total},
        "fits": planned.fits,
        "fits_together": planned.fits_together,
        "smallest": planned.smallest,
    }
    print_result(planned.as_text(), facts, [], json_output)
