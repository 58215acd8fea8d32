"""The benchmark of ranks at a small size, and its committed rows."""

from bench import ranks
from bench.cases import Shape
from bench.committed import load

SMALL = Shape(48, 256, 4, 64)


def test_processes_are_timed_counted_and_compared() -> None:
    one, two = ranks.steps(SMALL, 2, (1, 2))
    assert one["agrees"]
    assert two["agrees"]
    assert two["received"] == two["planned"] > 0
    assert two["calls"] == 9
    assert min(two["ms"], two["compute_ms"], two["exchange_ms"]) > 0


def test_the_memory_of_every_process_is_measured() -> None:
    one, two = ranks.memory(SMALL, (1, 2))
    assert one["agrees"]
    assert two["agrees"]
    assert [len(row["peaks"]) for row in (one, two)] == [1, 2]


def test_committed_processes_have_equal_bits_and_planned_bytes() -> None:
    rows = [row for row in load("ranks")["rows"] if row["rival"] != "model"]
    assert rows
    assert all(row["agrees"] for row in rows)
    several = [row for row in rows if "received" in row]
    assert [row["mode"] for row in several] == ["2 processes", "4 processes"]
    assert all(row["received"] == row["planned"] for row in several)


def test_the_committed_memory_of_four_processes_is_at_most_three_tenths_of_one() -> None:
    rows = [row for row in load("ranks")["rows"] if row["rival"] == "memory"]
    one, four = rows
    assert Shape(**one["shape"]) == Shape(**four["shape"]) == ranks.WIDE
    assert (ranks.WIDE.d, ranks.WIDE.m, len(four["peaks"])) == (768, 131_072, 4)
    assert max(four["peaks"]) <= 0.3 * one["peaks"][0]
