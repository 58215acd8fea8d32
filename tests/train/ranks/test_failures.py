"""When a rank fails, all end soon with one message, and the last checkpoint can be resumed."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.rank_processes import EVERY, SOON, Fault, RankProcesses
from helpers.training_runs import ROWS, checkpoint_of, command, saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rows, and a run of one process."""
    folder = tmp_path_factory.mktemp("failures")
    torch.save(ROWS, folder / "rows.pt")
    assert RankProcesses(1, command("alone"), folder).ended(SOON) == [0]
    return folder


def assert_goes_on(folder: Path, out: str, size: int) -> None:
    ranks = RankProcesses(size, command(out), folder)
    assert ranks.ended(SOON) == [0] * size, ranks.printed()
    assert saved(folder / out) == saved(folder / "alone")


STOPPED = "the training stopped, since "
ENDED = "ended or did not answer"
REFUSED = "the checkpoint of step 8 is not written and that of step 7 is intact, since "


@pytest.mark.parametrize(
    ("size", "fault", "sentence_part"),
    [
        (4, Fault("killed", 2), f"{STOPPED}rank 2 {ENDED}"),
        (4, Fault("killed in an exchange", 0), f"{STOPPED}rank 0 {ENDED}"),
        (2, Fault("full disk", 1), f"{STOPPED}rank 1 failed: .*checkpoint of step 8 could not be"),
        (2, Fault("full disk", 0), "checkpoint of step 8 could not be .*step 7 is intact; resume"),
        (2, Fault("NaN in W_enc", 1), "step 7, .* NaN or infinit"),
        (2, Fault("NaN in W_dec", 1), "step 7, .* NaN or infinit"),
        (4, Fault("NaN in W_enc", 2, after=True), f"since rank 2 failed: {REFUSED}W_enc of"),
        (2, Fault("NaN in W_dec", 0, after=True), f"saefast: {REFUSED}W_dec of seed-0"),
        (4, Fault("NaN in b_dec", EVERY, after=True), f"saefast: {REFUSED}b_dec of seed-0"),
        (
            2,
            Fault("infinity in a moment", 1, after=True),
            f"rank 1 failed: {REFUSED}the second moment of W_dec of seed-0",
        ),
    ],
    ids=lambda value: value.what + " after" * value.after if isinstance(value, Fault) else None,
)
def test_all_ranks_end_with_one_message_and_an_intact_checkpoint(
    size: int, fault: Fault, sentence_part: str, folder: Path
) -> None:
    out = f"{fault.what}-{fault.rank}-{fault.after}"
    killed = fault.what.startswith("killed")
    ranks = RankProcesses(size, command(out), folder, fault=fault)
    codes = ranks.ended(SOON, without=[fault.rank] if killed else ())
    assert codes == [1] * (size - killed), ranks.printed()
    (sentence,) = ranks.messages
    assert re.search(sentence_part, sentence), sentence
    assert checkpoint_of(folder / out) == 7
    assert_goes_on(folder, out, size)


@pytest.mark.parametrize("store_in_rank", [False, True], ids=["torchrun", "store in rank 0"])
def test_a_stalled_rank_is_given_up(store_in_rank: bool, folder: Path) -> None:
    out = f"stopped-{store_in_rank}"
    ranks = RankProcesses(
        2 if store_in_rank else 4,
        command(out),
        folder,
        fault=Fault("stopped", 0),
        patience=10,
        store_in_rank=store_in_rank,
    )
    codes = ranks.ended(SOON, without=[0])
    assert codes == [1] * len(codes)
    (sentence,) = ranks.messages
    named = "another rank ended" if store_in_rank else f"rank 0 {ENDED} for 10 s"
    assert f"{STOPPED}{named}" in sentence
    assert checkpoint_of(folder / out) == 7
    assert_goes_on(folder, out, 2)


def test_a_rank_that_stalls_for_a_while_costs_time_only(folder: Path) -> None:
    ranks = RankProcesses(2, command("paused"), folder, fault=Fault("stopped", 1))
    while not is_stopped(ranks.pids[1]):
        assert len(ranks.running) == 2
        time.sleep(0.05)
    os.kill(ranks.pids[1], signal.SIGCONT)
    assert ranks.ended(SOON) == [0, 0]
    assert saved(folder / "paused") == saved(folder / "alone")


def test_sigterm_of_one_rank_ends_all_after_the_same_step(folder: Path) -> None:
    ranks = RankProcesses(2, command("terminated"), folder, fault=Fault("terminated", 1))
    assert ranks.ended(SOON) == [130, 130]
    assert ranks.messages == ["saefast: interrupted; run the same command again to resume"]
    assert checkpoint_of(folder / "terminated") == 8
    assert_goes_on(folder, "terminated", 4)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
