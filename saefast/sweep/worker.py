"""Worker process, which reads a task per line from stdin and writes an answer per line to stdout.

The process ends when its stdin is closed, even during a task: its driver has ended, and the next
driver assigns the task to another worker.
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
    """Perform tasks until stdin is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # redirect other output on stdout to stderr
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
