"""A harvest by several processes has the bytes of one by a single process, also after kills."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inline_workers import Inline, content, use
from helpers.tiny_lm import TEXTS, llama, saved
from helpers.worker_processes import children, is_worker

from saefast.lm import LanguageModel, harvest, load_model
from saefast.sweep import harvest_by_processes

SITES = [1, "mlp.3"]
ROWS = 601
SETTINGS: dict[str, Any] = {"corpus": TEXTS * 8, "context": 16, "batch_size": 3}
SETTINGS |= {"rows_per_shard": 50, "progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_model(saved(tmp_path_factory.mktemp("model")), progress=False)


@pytest.fixture(autouse=True)
def one_thread(light: None) -> Iterator[None]:
    """Workers of two processes have a thread each on two cores; bits depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("drop_bos", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens", [ROWS, None])
def test_bytes_match_one_process(
    tmp_path: Path,
    model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    drop_bos: bool,
    tokens: int | None,
) -> None:
    settings = {**SETTINGS, "tokens": tokens, "packed": packed, "drop_bos": drop_bos}
    harvest(model, SITES, out=tmp_path / "one", **settings)
    hands = use(monkeypatch, Inline())
    paths = harvest_by_processes(model, SITES, out=tmp_path / "many", processes=3, **settings)
    assert [path.name for path in paths] == ["resid.1", "mlp.3"]
    assert len(hands.records) > 2
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_stores_of_different_shards_share_a_pass(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits are wider than the layers, so their shards have fewer rows."""
    monkeypatch.setattr("saefast.lm.harvest_plan._SHARD_BYTES", 40_000)
    settings = {**SETTINGS, "rows_per_shard": None, "tokens": ROWS}
    sites = [1, "lm_head"]
    harvest(model, sites, out=tmp_path / "one", **settings)
    use(monkeypatch, Inline())
    harvest_by_processes(model, sites, out=tmp_path / "many", processes=2, **settings)
    there = content(tmp_path / "one")
    assert len([name for name in there if name.startswith("lm_head")]) == 9
    assert len([name for name in there if name.startswith("resid.1")]) == 2
    assert content(tmp_path / "many") == there


def test_text_is_read_once_and_finished_shards_are_kept(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest(model, SITES, out=tmp_path / "one", tokens=ROWS, **SETTINGS)
    out = tmp_path / "many"
    options: dict[str, Any] = {**SETTINGS, "out": out, "processes": 3, "tokens": ROWS}
    # The last part fails twice: the others are finished and recorded.
    use(monkeypatch, Inline(lambda number: None if number in (2, 3) else "OSError: full"))
    with pytest.raises(RuntimeError, match=r"shards .* failed twice: OSError: full") as error:
        harvest_by_processes(model, SITES, **options)
    assert "resume=True" in str(error.value)
    records = list(out.rglob("activations-*.json.part"))
    assert records
    with pytest.raises(FileExistsError, match="resume=True"):
        harvest_by_processes(model, SITES, **options)
    hands = use(monkeypatch, Inline())
    harvest_by_processes(model, SITES, resume=True, **options)
    again = [shard[0] for record in hands.records for shard in record["stores"][0]["shards"]]
    kept = {int(record.name[12:17]) for record in records}
    assert kept
    assert not kept & set(again)
    assert content(out) == content(tmp_path / "one")


@pytest.mark.parametrize("first", ["one", "many"])
def test_either_way_resumes_the_other(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    use(monkeypatch, Inline())
    whole, out = tmp_path / "whole", tmp_path / "store"
    harvest(model, 1, out=whole, tokens=250, **SETTINGS)
    harvest(model, 1, out=whole, tokens=ROWS, resume=True, **SETTINGS)

    def by(way: str, tokens: int) -> None:
        if way == "one":
            harvest(model, 1, out=out, tokens=tokens, resume=True, **SETTINGS)
        else:
            options = {"processes": 2, "resume": True, **SETTINGS}
            harvest_by_processes(model, 1, out=out, tokens=tokens, **options)

    by(first, 250)
    by("many" if first == "one" else "one", ROWS)
    assert content(out) == content(whole)


def test_other_text_and_settings_are_refused(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    options: dict[str, Any] = {**SETTINGS, "out": tmp_path / "s", "processes": 2, "resume": True}
    harvest_by_processes(model, 1, tokens=150, **options)
    with pytest.raises(ValueError, match="context was 16 and is now 8"):
        harvest_by_processes(model, 1, tokens=ROWS, **{**options, "context": 8})
    other = [TEXTS[0][:40], *TEXTS * 8]
    with pytest.raises(ValueError, match="of other text from row 0 on"):
        harvest_by_processes(model, 1, tokens=ROWS, **{**options, "corpus": other})
    with pytest.raises(ValueError, match=r"has only \d+ of the 100000 requested"):
        harvest_by_processes(model, 1, tokens=100_000, **options)
    with pytest.raises(ValueError, match="on must be local, ray or"):
        harvest_by_processes(model, 1, tokens=150, on="slurm", **options)


def test_shards_of_other_text_are_written_again(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record beside the index belongs to the tokens that its harvest stored."""
    out = tmp_path / "many"
    options: dict[str, Any] = {**SETTINGS, "out": out, "processes": 3, "tokens": ROWS}
    use(monkeypatch, Inline(lambda number: None if number in (1,) else "OSError: full"))
    with pytest.raises(RuntimeError, match="failed twice"):
        harvest_by_processes(model, 1, **options)
    assert list(out.glob("activations-*.json.part"))
    text = {**SETTINGS, "corpus": list(reversed(TEXTS)) * 8, "tokens": ROWS}
    harvest(model, 1, out=tmp_path / "one", **text)
    use(monkeypatch, Inline())
    harvest_by_processes(model, 1, **{**options, **text, "resume": True})
    assert content(out) == content(tmp_path / "one")


def test_a_model_of_own_parts_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    with pytest.raises(RuntimeError, match="name must be 'smollm2', a folder"):
        harvest_by_processes(llama(), 1, out=tmp_path / "s", processes=2, tokens=ROWS, **SETTINGS)


def test_another_model_of_the_same_name_is_refused(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    changed = load_model(model.name, progress=False)
    changed.model.model.norm.weight.data[3] += 1
    options: dict[str, Any] = {"processes": 2, "tokens": ROWS, **SETTINGS}
    with pytest.raises(RuntimeError, match="is another model in this process"):
        harvest_by_processes(changed, 1, out=tmp_path / "s", **options)


@pytest.fixture(scope="module")
def by_one(
    model: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, bytes]]:
    """Return a command without `--out`, and the files of its harvest by one process."""
    folder = tmp_path_factory.mktemp("one")
    text = folder / "text.txt"
    text.write_text("\n\n".join(TEXTS * 100))
    command = [sys.executable, "-P", "-m", "saefast", "harvest", model.name, "--site", "1"]
    command += ["--tokens", "30000", "--text", str(text), "--context", "16"]
    command += ["--model-dtype", "float32"]
    # A hash of the document decides whether it is held out.
    command += [] if _is_train(text) else ["--held-out"]
    one = _begin(command, folder / "store")
    output, _ = one.communicate()
    assert one.returncode == 0, output
    return command, content(folder / "store")


def _begin(command: list[str], out: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*command, "--out", str(out), *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_killed_processes_leave_a_harvest_that_resumes(
    tmp_path: Path, by_one: tuple[list[str], dict[str, bytes]], victim: str
) -> None:
    """A killed worker is replaced; a killed command is repeated."""
    command, expected = by_one
    running = _begin(command, tmp_path / "many", "--processes", "2")
    while not list((tmp_path / "many").glob("activations-*.json.part")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    workers = [pid for pid in children(running.pid) if is_worker(pid)]
    os.kill(workers[0] if victim == "worker" else running.pid, signal.SIGKILL)
    output, _ = running.communicate()
    assert (running.returncode == 0) == (victim == "worker"), output
    if victim == "driver":
        again = _begin(command, tmp_path / "many", "--processes", "2")
        output, _ = again.communicate()
        assert again.returncode == 0, output
    assert content(tmp_path / "many") == expected


def _is_train(text: Path) -> bool:
    from saefast.lm import text_files

    return bool(list(text_files(text).train()))
