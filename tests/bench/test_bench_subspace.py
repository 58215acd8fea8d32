"""The benchmark of principal directions at a small size: rivals agree, and memory is reported."""

from bench import subspace
from bench.cases import Shape


def test_rows_of_a_small_shape(monkeypatch):
    names = ("saefast gram", "torch svd")
    monkeypatch.setattr(subspace, "RUNS", {name: subspace.RUNS[name] for name in names})
    rows = subspace.race(Shape(24, 600, 0, 0), 2)
    assert [(row["case"], row["rival"], row["mode"]) for row in rows] == [
        ("subspace memory", "saefast", "gram"),
        ("subspace memory", "torch", "svd"),
        ("subspace", "torch.mm", "gemm"),
        ("subspace", "saefast", "gram"),
        ("subspace", "torch", "svd"),
    ]
    for row in rows[:2]:
        assert 0 <= row["beyond_gb"] < row["peak_gb"]
        assert row["input_gb"] == 0
    for row in rows[2:]:
        assert row["agrees"]
        assert row["ms"] > 0
