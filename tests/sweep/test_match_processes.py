"""A matching by several processes has the files of `match_all`, also after kills."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.full_disk import full_disk
from helpers.inline_workers import Inline, content, use
from helpers.worker_processes import children, is_worker

from saefast import SAE, load_dictionaries, match_all, save_sae
from saefast.cli import main
from saefast.disk.lock import Claim
from saefast.match.saved import read_pair
from saefast.sweep import match_by_processes, match_tasks
from saefast.sweep.match_tasks import pairs_of_share, tiles_of

OPTIONS: list[dict[str, Any]] = [
    {},
    {"one_to_one": True, "side": "both", "memory": 0.5},
    {"side": "encoder", "absolute": True, "floor": 0.3, "backend": "saefast"},
]


def written(folder: Path, sizes: list[int], d: int = 12) -> list[Path]:
    """Write SAEs whose features are random; some have no decoder or no encoder row."""
    paths = []
    for seed, size in enumerate(sizes):
        sae = SAE(d, size, k=2, seed=seed)
        with torch.no_grad():
            sae.W_dec[3:5] = 0
            sae.W_enc[7:10] = 0
        paths.append(save_sae(sae, folder / f"sae-{seed}"))
    return paths


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(tmp_path_factory.mktemp("saes"), [50, 40, 60, 30, 45, 50])


def by_one(saes: list[Path], out: Path, **options: Any) -> dict[str, bytes]:
    """Return the files of `match_all`."""
    encoder = options.get("side", "decoder") != "decoder"
    each = load_dictionaries(*saes, encoder=encoder)
    match_all(each, out=out, progress=False, **options)
    return content(out)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("workers", [1, 3])
def test_files_have_the_bytes_of_match_all(
    tmp_path: Path,
    saes: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    workers: int,
) -> None:
    hands = Inline()
    hands.groups = workers
    use(monkeypatch, hands)
    files = match_by_processes(*saes, out=tmp_path / "many", progress=False, **options)
    assert files == [tmp_path / "many" / f"{s}-{t}.parquet" for s, t in combinations(range(6), 2)]
    assert content(tmp_path / "many") == by_one(saes, tmp_path / "one", **options)
    assert sum(len(record["pairs"]) for record in hands.records) == 15
    assert len(hands.records) == {1: 6, 3: 15}[workers]


def test_a_dictionary_is_loaded_once_per_tile(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counted(path: str, **options: Any) -> Any:
        loaded.append(path)
        return load_dictionaries(path, **options)

    monkeypatch.setattr(match_tasks, "load_dictionaries", counted)
    use(monkeypatch, hands := Inline())
    hands.groups = 1
    match_by_processes(*saes, out=tmp_path / "many", progress=False)
    # Tiles of two by two: three of two dictionaries, and three of four.
    assert len(loaded) == 3 * 2 + 3 * 4
    for record in hands.records:
        assert len(record["paths"]) == len({number for pair in record["pairs"] for number in pair})


def test_memory_limits_tiles(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, hands := Inline())
    hands.groups, hands.memory = 1, 1
    match_by_processes(*saes, out=tmp_path / "many", progress=False)
    assert [len(record["pairs"]) for record in hands.records] == [1] * 15


@pytest.mark.parametrize("count", [2, 5, 9, 33])
@pytest.mark.parametrize("of", [1, 2, 7, 50])
def test_shares_have_every_pair_once(count: int, of: int) -> None:
    pairs = list(combinations(range(count), 2))
    shares = [pairs_of_share(pairs, (number, of)) for number in range(1, of + 1)]
    assert sorted(itertools.chain(*shares)) == pairs
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 16  # a tile
    if of == 1 or len(pairs) < of:
        assert max(lengths) <= max(1, len(pairs) // of)


def test_tiles_keep_workers_busy() -> None:
    pairs = list(combinations(range(32), 2))
    for workers, side in ((1, 4), (9, 4), (10, 2), (34, 2), (35, 1), (1000, 1)):
        tiles = tiles_of(pairs, workers)
        assert sorted(itertools.chain(*tiles)) == pairs
        assert len(tiles[0]) == side * side
        assert [len(tile) for tile in tiles] == sorted(map(len, tiles), reverse=True)


def test_independent_shares_write_one_folder(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    out = tmp_path / "many"
    found = [
        match_by_processes(*saes, out=out, share=(number, 4), progress=False)
        for number in (3, 1, 4, 2)
    ]
    assert all(found)
    assert len(set(itertools.chain(*found))) == 15
    assert content(out) == by_one(saes, tmp_path / "one")
    for share in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="share must be I/N with I from 1 to N"):
            match_by_processes(*saes, out=out, share=share)


def test_a_second_call_is_refused_but_for_shares(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    options: dict[str, Any] = {"out": tmp_path / "many", "progress": False}
    with Claim(tmp_path / "many", shared=True):
        match_by_processes(*saes, share=(1, 2), **options)
        with pytest.raises(BlockingIOError, match="by another process"):
            match_by_processes(*saes, resume=True, **options)


def test_either_way_resumes_the_other(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "many"
    use(monkeypatch, Inline(lambda number: None if number < 4 else "OSError: full"))
    with pytest.raises(RuntimeError, match=r"matching of pairs .* failed twice: OSError: full"):
        match_by_processes(*saes, out=out, progress=False)
    finished = {name: (out / name).stat().st_mtime_ns for name in content(out)}
    assert 0 < len(finished) < 15
    with pytest.raises(FileExistsError, match="resume=True"):
        match_by_processes(*saes, out=out, progress=False)
    use(monkeypatch, Inline())
    match_by_processes(*saes, out=out, resume=True, progress=False)
    whole = by_one(saes, tmp_path / "one")
    assert content(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    for file in (out / "0-1.parquet", out / "2-5.parquet"):
        file.unlink()
    found = match_all(load_dictionaries(*saes), out=out, resume=True, progress=False)
    assert len(found) == 30
    assert content(out) == whole


def test_other_dictionaries_are_matched_again(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    out = tmp_path / "many"
    match_by_processes(*saes, out=out, progress=False)
    changed = [*saes[1:], saes[0]]
    match_by_processes(*changed, out=out, resume=True, progress=False)
    assert content(out) == by_one(changed, tmp_path / "one")


def test_a_full_disk_leaves_whole_pairs(
    tmp_path: Path, saes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Inline())
    with full_disk(4), pytest.raises(RuntimeError, match="No space left on device"):
        match_by_processes(*saes, out=tmp_path / "many", progress=False)
    match_by_processes(*saes, out=tmp_path / "many", resume=True, progress=False)
    files = {name: its for name, its in content(tmp_path / "many").items() if name[-5:] != ".part"}
    assert files == by_one(saes, tmp_path / "one")


def test_bad_input_raises(tmp_path: Path, saes: list[Path]) -> None:
    out = tmp_path / "many"
    other = written(tmp_path, [40], d=11)
    with pytest.raises(ValueError, match="at least 2 SAEs of different seeds, got 1"):
        match_by_processes(saes[0], out=out)
    with pytest.raises(ValueError, match=r"sae-0 must have the width of .*sae-1, 12, got 11"):
        match_by_processes(saes[1], *other, out=out)
    with pytest.raises(ValueError, match="on must be local, ray or"):
        match_by_processes(*saes, out=out, on="slurm")
    with pytest.raises(TypeError, match="sides"):
        match_by_processes(*saes, out=out, sides="decoder")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="paths must be str or Path"):
        match_by_processes(saes, out=out)  # type: ignore[arg-type]
    assert not out.exists()


def test_errors_of_a_worker_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Inline())
    paths = written(tmp_path, [20, 20, 20])
    file = paths[2] / "sae_weights.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-7] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(RuntimeError, match=r"failed twice: ValueError: .*sae-2"):
        match_by_processes(*paths, out=tmp_path / "many", progress=False)


def test_the_command_matches_by_processes(
    tmp_path: Path, saes: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real processes, and two shares of one process each."""
    whole = by_one(saes[:3], tmp_path / "one")
    command = ["match", *map(str, saes[:3]), "--json", "--out"]
    assert main([*command, str(tmp_path / "two"), "--processes", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["shared_at_0.7"]) == ["0-1", "0-2", "1-2"]
    both = read_pair(tmp_path / "two" / "0-2.parquet")
    assert both is not None
    shared = (both[0].similarity >= 0.7).double().mean()
    assert facts["shared_at_0.7"]["0-2"] == pytest.approx(float(shared))
    assert content(tmp_path / "two") == whole
    for share in ("1/2", "2/2"):
        assert main([*command, str(tmp_path / "shares"), "--share", share]) == 0
    assert content(tmp_path / "shares") == whole
    assert main(["match", *map(str, saes[:3]), "--processes", "2"]) == 1
    assert "need out" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_killed_processes_leave_a_matching_that_resumes(tmp_path: Path, victim: str) -> None:
    """A killed worker is replaced; a killed command is repeated."""
    paths = written(tmp_path, [700] * 6, d=48)
    command = [sys.executable, "-P", "-m", "saefast", "match", *map(str, paths), "--one-to-one"]
    chance = random.Random(seed := int.from_bytes(os.urandom(4)))
    print(f"time drawn from {seed}")

    def begin() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / "many"), "--processes", "2"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    running = begin()
    while not list((tmp_path / "many").glob("*.parquet")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    workers = [pid for pid in children(running.pid) if is_worker(pid)]
    assert workers, "the matching ended before it could be killed"
    os.kill(workers[0] if victim == "worker" else running.pid, signal.SIGKILL)
    output, _ = running.communicate()
    assert (running.returncode == 0) == (victim == "worker"), output
    if victim == "driver":
        assert len(list((tmp_path / "many").glob("*.parquet"))) < 15
        again = begin()
        output, _ = again.communicate()
        assert again.returncode == 0, output
    assert content(tmp_path / "many") == by_one(paths, tmp_path / "one", one_to_one=True)
