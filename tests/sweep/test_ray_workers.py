"""Calls of sweeps to a stand-in for Ray, and the use of its results; `test_ray.py` has Ray."""

import builtins
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.small_sweep import small_sweep

from saefast.sweep import SweepFolder, ray_workers, run_sweep
from saefast.sweep.ray_workers import RayWorkers, Share, share_of
from saefast.sweep.tasks import Schedule, Task, training_bytes
from saefast.train.planning.memory import PROCESS_BYTES

GB = 10**9
NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 64.0 * GB}


@pytest.mark.parametrize(
    ("nodes", "processes", "tasks", "wanted"),
    [
        ([NODE, NODE], None, 100, Share(4, 4, 1, 32 * GB, 64 * GB)),
        ([NODE, NODE], None, 1, Share(1, 8, 1, 128 * GB, 64 * GB)),
        ([NODE, NODE], 16, 100, Share(16, 1, 1, 8 * GB, 64 * GB)),
        ([{"CPU": 8.0, "memory": 8.0 * GB}], None, 100, Share(8, 1, 0, GB, 8 * GB)),
        ([{"CPU": 8.0, "memory": 8.0 * GB}], 2, 100, Share(2, 4, 0, 4 * GB, 8 * GB)),
        ([{}], None, 5, Share(1, 1, 0, 0, 0)),
        ([], None, 5, Share(1, 1, 0, 0, 0)),
    ],
)
def test_a_task_has_a_part_of_the_cluster_that_fits_a_node(
    nodes: list[dict[str, float]], processes: int | None, tasks: int, wanted: Share
) -> None:
    assert share_of(nodes, processes, tasks) == wanted


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback of\nmany lines")
        self.cause = cause


class FakeRay:
    """Ray as far as sweeps use it; answers are given by a test."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.begun: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self.open = False

    def is_initialized(self) -> bool:
        return self.open

    def init(self, **options: Any) -> None:
        self.begun.append(options)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": NODE}, {"Alive": False, "Resources": NODE}]

    def remote(self, function: Any) -> Any:
        return SimpleNamespace(options=self.options)

    def options(self, **options: Any) -> Any:
        self.asked.append(options)
        return SimpleNamespace(remote=lambda printed, threads: len(self.asked))

    def wait(self, running: list[int], **_: Any) -> tuple[list[int], list[int]]:
        return running[:1], running[1:]

    def get(self, _done: int) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self, task: int) -> None:
        self.cancelled.append(task)

    def shutdown(self) -> None:
        self.begun.append({"shutdown": True})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay([])
    monkeypatch.setattr(ray_workers, "_imported", lambda: fake)
    return fake


def task(number: int = 0, bytes_of_cells: tuple[int, ...] = (1000,)) -> Task:
    return Task("train", "/sweep", "report", (f"k-{number}",), ({},), bytes_of_cells)


def test_ray_is_asked_for_cores_gpus_and_memory(fake: FakeRay) -> None:
    with RayWorkers("ray", None, 2) as hands:
        assert (hands.groups, hands.memory) == (2, 32 * GB)
        hands.start(task())
        hands.start(task(1, (10**12,)))
        assert hands.free()
        fake.answers = [None, "ValueError: NaN"]
        assert hands.wait() == (task(), None, False)
        assert hands.wait() == (task(1, (10**12,)), "ValueError: NaN", False)
    common = {"num_cpus": 4, "num_gpus": 1, "max_retries": 3}
    assert fake.asked == [
        {**common, "memory": PROCESS_BYTES + 1000, "name": "saefast train k-0"},
        {**common, "memory": 64 * GB, "name": "saefast train k-1"},
    ]
    assert [each.get("address") for each in fake.begun] == [None, None]
    assert fake.begun[1] == {"shutdown": True}
    assert fake.cancelled == []


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("ray", None),
        ("ray://head", "ray://head:10001"),
        ("ray://10.0.0.1:9999", "ray://10.0.0.1:9999"),
    ],
)
def test_the_address_matches_the_cluster(fake: FakeRay, given: str, address: str | None) -> None:
    with RayWorkers(given, None, 1):
        assert fake.begun[0]["address"] == address


def test_a_cluster_that_does_not_answer_is_named(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("timeout")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(ConnectionError, match=r"answers at ray://head:10001: timeout"):
        RayWorkers("ray://head", None, 1)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ConnectionError, match=r"answers at RAY_ADDRESS = head:6379: timeout"):
        RayWorkers("ray", None, 1)


def test_a_session_that_is_open_is_used_and_stays(fake: FakeRay) -> None:
    fake.open = True
    with RayWorkers("ray", None, 1):
        pass
    assert fake.begun == []


def test_processes_limit_the_tasks(fake: FakeRay) -> None:
    with RayWorkers("ray", 1, 4) as hands:
        assert hands.free()
        hands.start(task())
        assert not hands.free()


def test_a_killed_part_is_distinguished_from_a_failed_one(fake: FakeRay) -> None:
    fake.answers = [RayError("the node\nhas died"), RayTaskError(ImportError("no saefast"))]
    with RayWorkers("ray", None, 2) as hands:
        hands.start(task())
        assert hands.wait() == (task(), "RayError: the node has died", True)
        hands.start(task())
        assert hands.wait() == (task(), "ImportError: no saefast", False)


def test_an_interrupt_interrupts_the_tasks(fake: FakeRay) -> None:
    def interrupted() -> None:
        with RayWorkers("ray", None, 2) as hands:
            hands.start(task())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fake.cancelled == [1]
    assert fake.begun[1] == {"shutdown": True}


@pytest.mark.parametrize("call", ["cancel", "wait"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RayError("the node has died")])
def test_a_failed_end_still_ends_the_cluster(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    """Such as a second Ctrl-C while interrupted trainings leave checkpoints."""
    regular, seen = getattr(fake, call), []

    def fails(*given: Any, **options: Any) -> None:
        regular(*given, **options)
        seen.append(given)
        raise error

    def interrupted() -> None:
        with RayWorkers("ray", None, 2) as hands:
            hands.start(task())
            hands.start(task(1))
            monkeypatch.setattr(fake, call, fails)
            raise KeyboardInterrupt

    with pytest.raises(type(error)):
        interrupted()
    assert seen
    assert sorted(fake.cancelled) == [1, 2]
    assert fake.begun[1:] == [{"shutdown": True}]


@pytest.mark.parametrize("was_open", [False, True])
def test_a_failed_start_ends_its_own_cluster_only(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch, was_open: bool
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    fake.open = was_open
    monkeypatch.setattr(fake, "nodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RayWorkers("ray", None, 1)
    assert ({"shutdown": True} in fake.begun) is not was_open


def test_tasks_know_the_memory_of_their_saes(tmp_path: Path) -> None:
    text = 'base = "base.toml"\n[grid]\n"train.latents" = [24, 32]\n'
    sweep, out = small_sweep(tmp_path, text), tmp_path / "out"
    run_sweep(sweep, out, until="harvest", processes=1)
    (training,) = Schedule(SweepFolder(out), sweep.cells, "train").first()
    assert training.cells == ("latents-32", "latents-24")
    small, large = (training_bytes(cell.settings, 24) for cell in sweep.cells)
    assert 2 * 2 * 24 * 12 * 24 < small < large  # SAEs, sides, width, bytes, latents
    assert training.bytes_of_cells == (large, small)
    assert training.memory == PROCESS_BYTES + large + small
    assert training.of_cell(1, 1).bytes_of_cells == (small,)


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return imported(name, *rest)

    for name in ray_workers._SETTINGS:
        monkeypatch.setenv(name, before.get(name, "1"))
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"needs the package ray: pip install 'saefast\[ray\]'"):
        RayWorkers("ray", None, 1)


def test_other_places_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    with pytest.raises(ValueError, match=r"on must be local, ray or ray://HOST, got 'slurm'"):
        run_sweep(sweep, tmp_path / "out", on="slurm")
    assert not (tmp_path / "out").exists()
