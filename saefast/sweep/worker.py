"""A worker process: tasks on stdin, a line each, and an answer for each on stdout.

It ends when its stdin does, in the middle of a task too: its driver has ended, and the next driver
gives the task to another.
"""

import json
import os
import queue
import signal
import sys
import threading

import torch

from saefast.sweep.tasks import attempt, task_from


def main() -> None:
    """Do tasks until there are none."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    torch.set_num_threads(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    while True:
        task = task_from(json.loads(tasks.get()))
        try:
            reason = attempt(task)
        except KeyboardInterrupt:
            os._exit(130)
        answers.write(json.dumps({"reason": reason}) + "\n")
        answers.flush()


def _read(tasks: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
