"""The GPU benchmark of matchings, on the CPU at tiny sizes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.worker_rows import worked

from bench.gpu import matching
from bench.gpu.matching import Contestant
from bench.gpu.parts import part
from bench.matching_shapes import MATCHINGS, RIVALS, Matching
from bench.shapes import Shape

NEAREST = Matching("nearest", Shape(8, 64, 1, 64), rounds=2, fp32_share=4)


def test_timed_matchings_agree() -> None:
    one_to_one = Matching("match", Shape(8, 48, 1, 48), rounds=1)
    rows = [row for one in (one_to_one, NEAREST) for row in worked(matching.matchings(one, "cpu"))]
    assert [(row["case"], row["rival"], row["mode"]) for row in rows] == [
        ("match", "saefast", "one to one, certified"),
        ("nearest", "saefast", "exact"),
        ("nearest", "torch", "bf16 blocks"),
        ("nearest", "torch", "fp32 blocks"),
    ]
    assert all("raised" not in row for row in rows), rows
    assert [row["sides"] for row in rows] == [2, 2, 1, 1]
    assert [row.get("timed_share") for row in rows] == [None, None, None, 0.25]
    assert all(0 < row["search_ms"] <= row["ms"] for row in rows[:2])


def test_the_contestants_of_one_rival_are_a_part_of_their_own() -> None:
    rows = worked(matching.matchings(NEAREST, "cpu", rival="torch"))
    assert {row["rival"] for row in rows} == {"torch"}
    [lane] = part("times:matching:nearest:torch", {}).lanes
    assert lane.command[3:5] == ["matching", "nearest:torch"]
    for words in ("matching:nearst", "matching:nearest:numpy", "C3"):
        with pytest.raises(ValueError, match="is one of"):
            part(f"times:{words}", {})


def test_faiss_is_timed_where_its_index_fits() -> None:
    pytest.importorskip("faiss")
    one = NEAREST._replace(faiss=True)
    rows = worked(matching.matchings(one, "cpu", rival="faiss"))
    assert [row["mode"] for row in rows] == ["flat, fp32", "flat, fp16", "inside saefast"]
    assert all("raised" not in row for row in rows), rows
    assert [row["sides"] for row in rows] == [1, 1, 2]
    assert not MATCHINGS["nearest"].faiss
    assert MATCHINGS["nearest_C1"].faiss
    assert MATCHINGS["nearest_quarter"].faiss


def test_faiss_without_a_gpu_gives_no_row_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(get_num_gpus=lambda: 0)
    monkeypatch.setattr(matching.importlib, "import_module", lambda name: found)
    a = torch.eye(3)
    with pytest.raises(RuntimeError, match="FAISS sees no GPU"):
        matching._faiss_flat("cuda", a, a, half=False)


@pytest.mark.parametrize("exact", [True, False])
def test_a_wrong_matching_gives_no_row(exact: bool) -> None:
    one = Contestant("torch", "wrong", lambda a, b: torch.zeros(len(a)), exact)
    timed = matching._timed(Shape(4, 8, 1, 8), "cpu", one, {}, 1)
    with pytest.raises(RuntimeError, match="does not agree: 8"):
        list(timed)


def test_rows_of_a_share_are_the_first_ones() -> None:
    """The time of a quarter of the rows counts four times."""
    seen: list[int] = []

    def match(a: Any, b: Any) -> torch.Tensor:
        seen.append(len(a))
        return (a @ b.T).argmax(1)

    [row] = matching._timed(
        NEAREST.shape, "cpu", Contestant("torch", "fp32", match, True, share=4), {}, 1
    )
    assert seen == [1, 16]
    assert row["timed_share"] == 0.25
    assert set(RIVALS) >= {"torch", "saefast", "faiss"}
