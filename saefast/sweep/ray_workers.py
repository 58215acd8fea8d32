"""Workers on a Ray cluster.

Ray carries only tasks and reasons of failures: work is on the disk that all nodes share. So a task
may be repeated, a node may die, and the driver may be killed and started again.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, Self

from saefast.sweep.workers import Answer, AnyTask, reason_of

ADDRESS = "ray://"
"""Beginning of the address of a cluster"""
_PORT = 10001
"""Port of Ray's server for clients, unless another one is given"""
_RETRIES = 3
"""Number of times that Ray repeats a task whose process or node has died"""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report its use
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # would copy the folder of a driver that uv runs
    "RAY_worker_niceness": "0",  # 15 by default: workers stand still beside any other work
}
_PATIENT_SECONDS = 60.0
"""Time for interrupted trainings to leave checkpoints"""


class Share(NamedTuple):
    """Resources of one task."""

    concurrent: int
    """number of tasks that use the whole cluster"""
    threads: int
    """number of processor cores"""
    gpus: int
    memory: int
    """bytes of the cluster's memory for each concurrent task"""
    most_memory: int
    """bytes of the node with the most memory"""


class RayWorkers(Generic[AnyTask]):
    """Tasks on a Ray cluster, which places them by cores, GPUs and memory.

    Args:
        address: "ray": the cluster that the variable RAY_ADDRESS names or that runs on this
            machine, else a new one on this machine for the time of the sweep; or ray://HOST or
            ray://HOST:PORT.
        processes: maximum number of concurrent tasks; None: as many as the cluster has room for.
        tasks: number of tasks that can be concurrent.
    """

    def __init__(self, address: str, processes: int | None, tasks: int) -> None:
        self._ray = _imported()
        self._own = not self._ray.is_initialized()
        try:
            if self._own:
                _connect(self._ray, _with_port(address) if address.startswith(ADDRESS) else None)
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        except BaseException:  # else the next sweep would take the session for the caller's
            self._leave()
            raise
        self._share = share_of(nodes, processes, tasks)
        self._most = processes
        self._running: dict[Any, AnyTask] = {}
        self._attempt = self._ray.remote(_attempt(os.path.abspath(os.curdir)))
        self.groups = self._share.concurrent
        self.memory: int | None = self._share.memory

    def free(self) -> bool:
        """Return whether fewer tasks are running than are permitted; see `Workers`."""
        return self._most is None or len(self._running) < self._most

    def start(self, task: AnyTask) -> None:
        """Give a task to Ray, which starts it when there is room; see `Workers`."""
        of = self._attempt.options(
            num_cpus=self._share.threads,
            num_gpus=self._share.gpus,
            memory=min(task.memory, self._share.most_memory),
            max_retries=_RETRIES,
            name=f"saefast {task.label}",
        )
        self._running[of.remote(task.to_dict(), self._share.threads)] = task

    def wait(self) -> Answer[AnyTask]:
        """Wait for the end of a task; see `Workers`."""
        (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        task = self._running.pop(done)
        try:
            return Answer(task, self._ray.get(done))
        except self._ray.exceptions.RayTaskError as error:  # such as a node without saefast
            return Answer(task, reason_of(error.cause))
        except self._ray.exceptions.RayError as error:
            return Answer(task, reason_of(error), died=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        running = list(self._running)
        with ExitStack() as ends:  # from the last to the first, also if one is interrupted or fails
            ends.callback(self._leave)
            if running:
                ends.callback(
                    self._ray.wait, running, num_returns=len(running), timeout=_PATIENT_SECONDS
                )
            for task in running:
                ends.callback(self._ray.cancel, task)  # an interrupt: trainings leave checkpoints

    def _leave(self) -> None:
        """End the session of Ray, unless it was the caller's."""
        if self._own:
            self._ray.shutdown()


def share_of(nodes: Sequence[Mapping[str, float]], processes: int | None, tasks: int) -> Share:
    """Divide a cluster among tasks.

    Args:
        nodes: resources of each node, by Ray's names.
        processes: number of concurrent tasks; None: one for each GPU, or for each processor core if
            there is no GPU.
        tasks: maximum number of concurrent tasks.

    Returns:
        Resources of one task, which fit the largest node.
    """

    def of(name: str) -> list[int]:
        return [int(node.get(name, 0)) for node in nodes]

    cores, gpus, memory = of("CPU"), sum(of("GPU")), of("memory")
    count = max(1, min(processes or gpus or sum(cores), tasks))
    threads = max(1, min(sum(cores) // count, max(cores, default=1)))
    each = sum(memory) // count
    return Share(count, threads, int(gpus > 0), each, max(memory, default=0))


def _connect(ray: Any, address: str | None) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        where = address or f"RAY_ADDRESS = {os.environ.get('RAY_ADDRESS')}"
        raise ConnectionError(
            f"no Ray cluster answers at {where}: {error}; start one with `ray start`, or use local"
        ) from error


def _with_port(address: str) -> str:
    return address if ":" in address.removeprefix(ADDRESS) else f"{address}:{_PORT}"


def _imported() -> Any:
    """Return the package ray, with settings for an instance that is started here."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"a sweep on Ray needs the package ray: pip install 'saefast[ray]' ({error})"
        ) from error
    return ray


def _attempt(folder: str) -> Callable[[dict[str, Any], int], str | None]:
    """Return the function that Ray's processes call.

    Ray copies an inner function instead of importing its module, so that it can repair the path
    before anything of saefast is imported: Ray puts the current folder of the driver first, from
    which the driver itself does not import.

    Args:
        folder: the current folder of the driver.
    """

    def attempt_task(record: dict[str, Any], threads: int) -> str | None:
        import sys

        sys.path[:] = [entry for entry in sys.path if entry != folder]
        import torch

        from saefast.sweep.attempts import attempt

        torch.set_num_threads(threads)
        return attempt(record)

    return attempt_task
