"""Campaigns: few cases of each in the ordinary suite, many by `make trust`, which records them."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.campaign import Campaign
from helpers.faulty_disk import FaultyDisk


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """Give a test marked `campaign(name, few, many)` its number of cases.

    Yields:
        The campaign, with `few` cases, or `many` where the environment variable SAEFAST_TRUST names
        a file, which then receives a line of JSON about it.
    """
    marker = request.node.get_closest_marker("campaign")
    name, few, many = marker.args
    rows = os.environ.get("SAEFAST_TRUST")
    running = Campaign(many if rows else few)
    failed, begin = request.session.testsfailed, time.perf_counter()
    yield running
    if rows:
        row = {
            "campaign": name,
            "failed": request.session.testsfailed > failed,
            "cases": running.outcomes.total(),
            "outcomes": dict(sorted(running.outcomes.items())),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        with Path(rows).open("a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    """Return a process whose children write to a disk that can be disturbed."""
    with FaultyDisk(tmp_path_factory.mktemp("disk")) as disk:
        yield disk
