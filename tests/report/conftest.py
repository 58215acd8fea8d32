"""Reports on the disk, and one of them open in a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import opened
from helpers.evaluated_run import with_evaluations
from helpers.tiny_run import with_language_model

from saefast.report import write_report


@pytest.fixture(scope="module")
def report(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / ("long" * 20)
    return write_report(with_language_model(planted_run, out))[0]


@pytest.fixture(scope="module")
def evaluated(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of the run with evaluations, in a folder whose name is markup."""
    run = tmp_path_factory.mktemp("evaluated") / "<b onclick=alert(1)> & run"
    shutil.copytree(report.parent, run)
    return write_report(with_evaluations(run))[0]


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    with opened(report, "light") as (page, complaints):
        yield page
        assert complaints == []
