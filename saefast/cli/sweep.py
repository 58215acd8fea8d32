"""Command sweep: runs over a grid of settings."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from saefast.cli.output import Json, positional, print_result


def sweep(
    config: Annotated[tyro.conf.Positional[Path], positional("FILE")],
    out: Path,
    until: str = "report",
    on: str = "local",
    processes: int | None = None,
    share: str | None = None,
    plan: bool = False,
    remake: bool = False,
    json_output: Json = False,
) -> None:
    """Run all cells of a grid of settings, with shared harvests and trainings and one table.

    For example: saefast sweep sweep.toml --out sweeps/first

    The file has a base, which is a preset or a file for saefast run, and a table [grid] with a list
    of values for each setting, such as "train.k" = [16, 32]. Every cell is a run in OUT/cells;
    OUT/results.parquet has a row for each cell and SAE, and OUT/report.html shows every measure
    over every axis of the grid. A failed cell is retried once; if it fails again, its reason is
    reported, and the other cells continue.

    Args:
        config: File of the sweep (.toml).
        out: Folder of the sweep. Cells that are finished there are skipped.
        until: Last stage of every cell, as for saefast run.
        on: Where cells run: local, in processes of this machine; ray, on the cluster that
            RAY_ADDRESS names or that runs here; or ray://HOST.
        processes: Number of concurrent tasks, which share the threads. None: one for each GPU, or
            for each processor core if there is no GPU.
        share: Run one of several fixed shares of the cells, such as 3/16, for independent jobs.
            None: all cells.
        plan: Only print the number of cells, time, disk space and memory, from measured speeds;
            write nothing.
        remake: Run cells again whose settings in the file have changed.
    """
    from saefast.sweep import plan_sweep, read_sweep, run_sweep

    def show(line: str) -> None:
        if not json_output:
            print(line, file=sys.stderr, flush=True)

    cells, part = read_sweep(config), share_from(share)
    if plan:
        if on != "local":
            raise ValueError(
                f"on must be local for a plan, which measures this machine, got {on!r}"
            )
        planned = plan_sweep(cells, out, until=until, processes=processes, share=part, tell=show)
        print_result(planned.as_text(), dataclasses.asdict(planned), [], json_output)
        return
    outcome = run_sweep(
        cells,
        out,
        until=until,
        on=on,
        processes=processes,
        share=part,
        remake=remake,
        tell=show,
    )
    done = outcome.cells - len(outcome.failed)
    of = f" of share {share}" if share else ""
    sentence = f"{done} of {outcome.cells} cells{of} are finished"
    if outcome.skipped:
        sentence += f", {outcome.skipped} of them before this call"
    lines = [sentence, *(f"{name} failed: {why}" for name, why in outcome.failed.items())]
    if outcome.leftover:
        lines.append(f"not in the file and left unchanged: {', '.join(outcome.leftover)}")
    written = [outcome.results, outcome.report]
    facts = dataclasses.asdict(outcome)
    facts |= {"results": str(outcome.results), "report": str(outcome.report)}
    print_result("\n".join(lines), facts, written, json_output)
    if outcome.failed:
        raise OSError(
            f"{len(outcome.failed)} of {outcome.cells} cells failed; {outcome.results} lists the "
            f"reasons; run the same command again to retry them"
        )


def share_from(given: str | None) -> tuple[int, int] | None:
    """Parse I/N into the number of a share and the number of shares."""
    if given is None:
        return None
    number, _, of = given.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise ValueError(f"share must be I/N with I from 1 to N, such as 3/16, got {given!r}")
    return int(number), int(of)
