"""match_all: every pair as if matched alone, stored on disk, and not matched twice."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.strategies import normal

import saefast
from saefast import SAE, Matches, match_all
from saefast.match import engines, neighbours, saved
from saefast.match import one_to_one as one_to_one_module
from saefast.match.neighbours import nearest_both_ways

match_module = sys.modules["saefast.match.features"]

DICTIONARIES = [normal((size, 12), size, torch.float32) for size in (90, 70, 110)]
DICTIONARIES[1][::9] = 0
OPTIONS = [{}, {"one_to_one": True}, {"one_to_one": True, "floor": 0.4}, {"floor": 0.5}]


def assert_same(actual: Matches, expected: Matches) -> None:
    assert (actual.proof is None) == (expected.proof is None)
    for ours, theirs in ((actual, expected), (actual.proof, expected.proof)):
        for name, b in vars(theirs).items() if theirs else ():
            a = getattr(ours, name)
            if isinstance(b, torch.Tensor):
                assert torch.equal(a, b)
                assert a.dtype == b.dtype
            elif name != "proof":
                assert a == b


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_pair_is_as_if_alone(options, tmp_path):
    found = match_all(DICTIONARIES, out=tmp_path / "matches", **options)
    again = match_all(DICTIONARIES, out=tmp_path / "matches", resume=True, **options)
    assert len(found) == len(again) == 6
    for (s, t), matches in found.items():
        alone = saefast.match_features(DICTIONARIES[s], DICTIONARIES[t], **options)
        assert torch.equal(matches.partner, alone.partner)
        assert torch.equal(matches.similarity, alone.similarity)
        assert torch.equal(matches.mutual, alone.mutual)
        if "one_to_one" in options:
            assert matches.value == pytest.approx(alone.value, abs=1e-9)
            assert matches.certified
            assert_proof(matches, DICTIONARIES[s], DICTIONARIES[t], options.get("floor"))
        assert_same(again[s, t], matches)
    assert sorted(path.name for path in (tmp_path / "matches").iterdir()) == [
        "0-1.parquet",
        "0-2.parquet",
        "1-2.parquet",
    ]


def assert_proof(matches: Matches, a: torch.Tensor, b: torch.Tensor, floor: float | None) -> None:
    """Assert that prices bound every similarity, with the sum of the pairs, both ways."""
    rows, columns = (a != 0).any(1), (b != 0).any(1)
    a, b = (side[alive].double() for side, alive in ((a, rows), (b, columns)))
    cosine = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    u, v = matches.proof.row_price[rows], matches.proof.column_price[columns]
    assert (u[:, None] + v >= cosine - 1e-9).all()
    assert (v >= -1e-12).all()
    paired = matches.partner[rows] >= 0
    least = -2.0 if floor is None else floor
    assert (u[~paired] <= least + 1e-9).all()
    declining = len(u) if floor is not None else max(len(u) - len(v), 0)
    assert float(u.sum() + v.sum()) - least * declining == pytest.approx(matches.value, abs=1e-7)


def test_stored_pairs_are_not_matched_again(tmp_path, monkeypatch):
    """An interrupted run resumes; other options or contents start again."""
    work = []
    module = sys.modules["saefast.match.all_pairs"]
    real = module.match_both

    def counted(*arguments):
        if len(work) == stop:
            raise KeyboardInterrupt
        work.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(module, "match_both", counted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        match_all(DICTIONARIES, out=tmp_path)
    stop = 99
    match_all(DICTIONARIES, out=tmp_path, resume=True)
    assert len(work) == 3
    match_all(DICTIONARIES, out=tmp_path, resume=True, memory=0.5)
    assert len(work) == 3
    match_all(DICTIONARIES, out=tmp_path, resume=True, absolute=True)
    assert len(work) == 6
    changed = [*DICTIONARIES[:2], DICTIONARIES[2] + 0.01]
    match_all(DICTIONARIES, out=tmp_path, resume=True)
    match_all(changed, out=tmp_path, resume=True)
    assert len(work) == 11
    match_all([changed[0] + 0.01, *changed[1:]], out=tmp_path, resume=True)
    assert len(work) == 13


def test_with_more_memory_a_pair_is_matched_again(tmp_path):
    """A matching that ended for lack of memory is repeated with more memory."""
    pair = [normal((500, 16), seed, torch.float32) for seed in (0, 1)]
    options = {"out": tmp_path, "resume": True, "one_to_one": True}
    with pytest.warns(UserWarning, match="too little to certify"):
        assert not match_all(pair, memory=0, **options)[0, 1].certified
    assert not match_all(pair, memory=0, **options)[0, 1].certified  # from disk, without a warning
    assert match_all(pair, **options)[0, 1].certified


def test_errors_name_a_broken_file(tmp_path):
    match_all(DICTIONARIES[:2], out=tmp_path)
    file = tmp_path / "0-1.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"0-1\.parquet is truncated"):
        match_all(DICTIONARIES[:2], out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="truncated"):
        saved.read_pair(file)


def test_files_are_parquet_tables(tmp_path):
    import pyarrow.parquet as pq

    found = match_all(DICTIONARIES[:2], out=tmp_path, one_to_one=True)
    table = pq.read_table(tmp_path / "0-1.parquet")
    assert table.num_rows == 160
    ours = [row for row in table.to_pylist() if row["dictionary"] == 1]
    assert [row["partner"] for row in ours] == found[1, 0].partner.tolist()
    assert [row["column_price"] for row in ours] == found[0, 1].proof.column_price.tolist()
    assert table.column_names == [
        *("dictionary", "feature", "partner", "similarity", "mutual", "row_price", "column_price")
    ]
    facts = json.loads(table.schema.metadata[b"saefast"])["facts"]
    assert facts.keys() == {"value", "upper_bound", "certified", "rounds"}
    assert facts["value"] == found[1, 0].value


def test_saes_are_used_as_dictionaries():
    saes = [SAE(8, 20, k=2, seed=seed) for seed in (0, 1)]
    found = match_all(saes)[0, 1]
    assert_same(found, saefast.match_features(saes[0].W_dec, saes[1].W_dec))


def test_bad_input_raises(tmp_path: Path):
    rows = DICTIONARIES[0]
    with pytest.raises(ValueError, match="at least 2 dictionaries of different seeds, got 1"):
        match_all([rows])
    with pytest.raises(ValueError, match=r"dictionaries\[1\].*12"):
        match_all([rows, torch.ones(4, 11)])
    with pytest.raises(TypeError, match=r"dictionaries\[1\] must be a tensor"):
        match_all([rows, "seed-1"])
    with pytest.raises(TypeError, match="sides"):
        match_all([rows, rows], sides="decoder")
    with pytest.raises(ValueError, match="has no W_enc"):
        match_all([rows, rows], side="both")


class Stopped(KeyboardInterrupt):
    """An interruption, like Ctrl-C."""


@pytest.mark.parametrize("one_to_one", [False, True])
def test_an_interrupted_pair_resumes(one_to_one, tmp_path, monkeypatch):
    """Wherever it stops, in the search or between rounds: equal bits, and no repeated work."""
    a, b = (normal((90, 3), seed, torch.float32) for seed in (5, 6))
    options = {"one_to_one": one_to_one, "neighbours": 1}
    monkeypatch.setattr(neighbours, "block_rows", lambda width, memory: 21)
    blocks = 5  # of at most 21 rows, in 90 rows
    expected = match_all([a, b], **options)
    monkeypatch.setattr(saved, "_EVERY", 0)
    work = []

    def counting(name, module):
        real = getattr(module, name)

        def counted(*arguments, **named):
            if len(work) == stop:
                raise Stopped
            work.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, counted)

    counting("topk_encode", engines)
    counting("best_assignment", one_to_one_module)
    stop = 10**9
    match_all([a, b], **options)
    whole = len(work)
    rounds = work.count("best_assignment")
    assert rounds > 2 or not one_to_one
    again = []
    for at in range(0, whole, 3):
        folder = tmp_path / str(at)
        work.clear()
        stop = at
        with pytest.raises(Stopped):
            match_all([a, b], out=folder, **options)
        work.clear()
        stop = 10**9
        found = match_all([a, b], out=folder, resume=True, **options)
        again.append(len(work) - (whole - at))
        for pair, matches in found.items():
            assert_same(matches, expected[pair])
        assert [path.name for path in folder.iterdir()] == ["0-1.parquet"]
    # At most half a pair of blocks or one round is repeated: one solution and a search of all pairs
    # of blocks, minus the interrupted call.
    assert min(again) == 0
    assert max(again) <= (blocks**2 if one_to_one else 1)


def test_files_of_an_interrupted_pair_serve_only_this_pair(tmp_path, monkeypatch):
    """Other contents or another memory start again, and so do unreadable files."""
    a, b = DICTIONARIES[0], DICTIONARIES[2]
    monkeypatch.setattr(saved, "_EVERY", 0)
    real = one_to_one_module.best_assignment

    def stopped(*arguments, **named):
        raise Stopped

    monkeypatch.setattr(one_to_one_module, "best_assignment", stopped)
    with pytest.raises(Stopped):
        match_all([a, b], out=tmp_path, one_to_one=True)
    monkeypatch.setattr(one_to_one_module, "best_assignment", real)
    left = (tmp_path / "0-1.unfinished").read_bytes()
    cases = [([a, b + 1], 4.0, left), ([a, b], 3.0, left), ([a, b], 4.0, left[:100])]
    for each, memory, content in cases:
        (tmp_path / "0-1.unfinished").write_bytes(content)
        begun = []

        def watched(search, k, begun=begun):
            begun.append(dict(search.saved.tensors))
            return nearest_both_ways(search, k)

        with monkeypatch.context() as patch:
            patch.setattr(match_module, "nearest_both_ways", watched)
            found = match_all(each, out=tmp_path, resume=True, one_to_one=True, memory=memory)
        assert begun == [{}]
        alone = saefast.match_features(*each, one_to_one=True, progress=False)
        assert found[0, 1].value == pytest.approx(alone.value, abs=1e-9)
        (tmp_path / "0-1.parquet").unlink()


def test_the_folder_of_a_killed_write_is_removed(tmp_path, monkeypatch):
    """The process that resumes may have no reason to write the file again."""
    a, b = DICTIONARIES[0], DICTIONARIES[2]
    scratch = tmp_path / "0-1.unfinished.part"
    scratch.mkdir()
    (scratch / ".tmpCJtWEy").touch()
    monkeypatch.setattr(saved, "_EVERY", 1e9)
    match_all([a, b], out=tmp_path, resume=True, one_to_one=True)
    assert [path.name for path in tmp_path.iterdir()] == ["0-1.parquet"]
