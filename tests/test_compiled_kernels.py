"""Every Triton kernel, compiled without a GPU at its production shapes, stays within the chip."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is a package of Linux only")

from saefast.kernels.tiles import Tile

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_LIMIT = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}
"""What a block may have, from the table of compute capabilities in the CUDA programming guide."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("compiled") / "rows.json"
    command = [sys.executable, "-m", "bench.compiled", "--json", str(file)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    result: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return result


def test_nothing_spills(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["spills"] or row["stack_bytes"]] == []
    assert all(row["registers"] <= 255 for row in rows)


def test_shared_memory_fits(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["shared_bytes"] > SHARED_LIMIT[row["sm"]]] == []


def test_tiles_take_no_more_shared_memory_than_they_are_chosen_by(
    rows: list[dict[str, Any]],
) -> None:
    products = [row for row in rows if row["kernel"].startswith("hot_groups")]
    assert {row["sm"] for row in products} == set(SHARED_LIMIT)
    for row in products:
        sizes = dict(part.split("=") for part in row["constants"].split(", "))
        shape = (int(sizes[f"BLOCK_{name}"]) for name in ("ROWS", "COLUMNS", "D"))
        tile = Tile(*shape, row["warps"], row["stages"])
        most = tile.shared_bytes(row["kernel"].split()[1])
        assert row["shared_bytes"] <= most <= SHARED_LIMIT[row["sm"]]


def test_products_run_on_tensor_cores(rows: list[dict[str, Any]]) -> None:
    needed = [row for row in rows if row["needs_tensor_cores"]]
    assert {row["sm"] for row in needed} == set(SHARED_LIMIT)
    for row in needed:
        assert row["tensor_core"] in {90: ("HGMMA",), 100: ("UTCHMMA", "UTCQMMA")}.get(
            row["sm"], ("HMMA",)
        )


def test_places_in_memory_are_worked_out_in_64_bits(rows: list[dict[str, Any]]) -> None:
    assert [(row["kernel"], row["narrow_products"]) for row in rows if row["narrow_products"]] == []


def test_every_kernel_that_is_launched_is_in_the_table(rows: list[dict[str, Any]]) -> None:
    launched = set()
    for file in (CHECKOUT / "kernels").glob("*.py"):
        launched |= set(re.findall(r"(?:^|\s|\.)(\w+)\[\(", file.read_text()))
    assert launched
    assert launched == {row["kernel"].split()[0] for row in rows}


def test_the_committed_table_has_the_same_kernels(rows: list[dict[str, Any]]) -> None:
    file = CHECKOUT / "bench" / "results" / "compiled.json"
    committed = json.loads(file.read_text())["rows"]
    key = ("kernel", "constants", "sm", "warps")
    assert [[row[k] for k in key] for row in committed] == [[row[k] for k in key] for row in rows]
