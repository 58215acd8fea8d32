"""Rows that a worker of the GPU benchmark writes."""

from collections.abc import Iterator
from typing import Any

from bench.gpu import worker


def worked(items: Iterator[worker.Item]) -> list[dict[str, Any]]:
    """Return the rows that a worker writes for these items."""
    messages: list[dict[str, Any]] = []
    assert worker.work(items, 0, lambda **message: messages.append(message)) == 0
    return [message["row"] for message in messages if "row" in message]
