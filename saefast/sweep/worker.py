"""Worker process, which reads a task per line from stdin and writes an answer per line to stdout.

The process ends when its stdin is closed, even during a task: its driver has ended, and the next
driver assigns the task to another worker. The line `STOP` interrupts a task as Ctrl-C does, so that
a training leaves a checkpoint; a signal of the driver could be lost while the process imports.
"""

import json
import os
import queue
import signal
import sys
import threading

import torch

from saefast.sweep.attempts import attempt
from saefast.sweep.workers import STOP


def main() -> None:
    """Perform tasks until stdin is closed or says to stop."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # redirect other output on stdout to stderr
    torch.set_num_threads(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    try:
        while True:
            line = tasks.get()
            if line == STOP:  # the interrupt was taken for a failure of the task
                os._exit(130)
            reason = attempt(json.loads(line))
            answers.write(json.dumps({"reason": reason}) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        os._exit(130)


def _read(tasks: "queue.SimpleQueue[str]") -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    for line in sys.stdin:
        if line.strip() == STOP:
            tasks.put(STOP)
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            tasks.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
