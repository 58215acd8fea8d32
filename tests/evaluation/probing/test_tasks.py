"""Labelled tasks: dropped texts, splits and sources."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saefast.evaluation.probing.tasks import (
    CLASSES,
    DEFAULT_NAMES,
    LabelledTask,
    Span,
    labelled_task,
    labelled_tasks,
    table_tasks,
)
from saefast.evaluation.probing.tasks import code as code_module
from saefast.evaluation.probing.tasks import sae_probes as sae_probes_module


def texts(count: int, word: str) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def two_classes(count: int = 30) -> tuple[list[str], list[bool]]:
    return texts(count, "good") + texts(count, "bad"), [True] * count + [False] * count


def test_repeated_texts_are_dropped() -> None:
    every, labels = two_classes()
    task = labelled_task(
        "t", [*every, "good 0", " good   1\n", "bad 3"], [*labels, True, True, True]
    )
    words = [" ".join(text.split()) for text in task.texts]
    assert len(set(words)) == len(words)
    assert "bad 3" not in words
    assert sum(task.labels) == len(task.labels) / 2 == 29
    assert all(
        text.startswith("good") == label for text, label in zip(words, task.labels, strict=True)
    )
    assert task.notes == ("t: 4 of 63 texts dropped as repeated",)


def test_examples_are_drawn_by_seed() -> None:
    every, labels = two_classes(100)
    found = [labelled_task("t", every, labels, examples=40, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert set(found[0].texts) != set(found[2].texts)
    assert [sum(task.labels) for task in found] == [20] * 3


def test_the_test_part_is_a_third_of_each_class() -> None:
    task = labelled_task("t", *two_classes(60))
    parts = [task.test_examples(0, repeat) for repeat in range(2)]
    for part in parts:
        assert sum(label for label, test in zip(task.labels, part, strict=True) if test) == 20
        assert int(part.sum()) == 40
    assert (parts[0] != parts[1]).any()
    assert (parts[0] == task.test_examples(0)).all()


def test_documents_are_not_split() -> None:
    task = LabelledTask(
        name="t",
        texts=tuple(texts(20, "document")),
        labels=(True, False) * 60,
        spans=tuple(Span(number // 6, 0, 3) for number in range(120)),
        documents=tuple(number // 12 for number in range(120)),
    )
    test = task.test_examples(3)
    sides = {
        (document, bool(its)) for document, its in zip(task.documents or (), test, strict=True)
    }
    assert len(sides) == 10
    assert sum(its for _, its in sides) == 3


@pytest.mark.parametrize(
    ("every", "labels", "message"),
    [
        (["a"], [True, False], "labels must have one entry for each of the 1 texts, got 2"),
        (texts(30, "a"), [True] * 30, "at least 20 examples of each class, got 0 of one"),
        (texts(3, "a"), [True, True, False], "at least 20 examples of each class"),
    ],
)
def test_errors_name_bad_tasks(every: list[str], labels: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_task("t", every, labels)


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        cells = [['"' + str(cell).replace('"', '""') + '"' for cell in row] for row in rows]
        path.write_text("\n".join([",".join(columns), *map(",".join, cells)]) + "\n")
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_table_of_two_classes_is_a_task(tmp_path: Path, suffix: str) -> None:
    every, labels = two_classes()
    every[0] = 'good, "quoted"\nand two lines'
    path = write(tmp_path / f"mine{suffix}", {"text": every, "label": [int(x) for x in labels]})
    (task,) = table_tasks(path)
    assert task.name == "mine"
    assert set(task.texts) == set(every)
    assert all(
        text.startswith("good") == label
        for text, label in zip(task.texts, task.labels, strict=True)
    )


def test_a_table_of_three_classes_is_three_tasks(tmp_path: Path) -> None:
    words = ["red", "green", "blue"]
    columns = {
        "body": [f"{word} {n}" for word in words for n in range(40)],
        "colour": [word for word in words for _ in range(40)],
    }
    tasks = table_tasks(write(tmp_path / "t.parquet", columns), text="body", label="colour")
    assert [task.name for task in tasks] == ["t blue", "t green", "t red"]
    for task in tasks:
        own = task.name.split()[1]
        assert all(
            text.startswith(own) == its for text, its in zip(task.texts, task.labels, strict=True)
        )
        others = [
            text.split()[0] for text, its in zip(task.texts, task.labels, strict=True) if not its
        ]
        assert len(others) == 40
        assert {word: others.count(word) for word in words if word != own} == dict.fromkeys(
            [word for word in words if word != own], 20
        )


_TEXTS, _LABELS = two_classes()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": _TEXTS, "label": [1] * 60}, "must hold at least two classes, got 1: 1"),
        (
            {"text": _TEXTS, "label": [float("nan"), *map(float, _LABELS[1:])]},
            "'label' must hold a label in every row, got nan in row 0",
        ),
        ({"text": _TEXTS, "label": [*_LABELS[1:], None]}, "got None in row 59"),
        ({"text": ["", *_TEXTS[1:]], "label": _LABELS}, "'text' must hold a text in every row"),
        ({"text": [3] * 60, "label": _LABELS}, "a text in every row, got 3 in row 0"),
        (
            {"text": _TEXTS[29:32], "label": _LABELS[29:32]},
            "at least 20 different texts, but 'False' has 2, 'True' has 1",
        ),
        (
            {"words": _TEXTS, "label": _LABELS},
            "must have the columns 'text' and 'label', got words",
        ),
        ({"text": [], "label": []}, "must hold rows, got none"),
    ],
)
def test_errors_name_bad_tables(
    tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    path = write(tmp_path / "t.parquet", columns)
    with pytest.raises(ValueError, match=message):
        table_tasks(path)


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """JSON allows further characters that split a str into lines, and a byte-order mark."""
    texts = [f"text {i} \u2028 two \x85 three" for i in range(40)]
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = tmp_path / "t.jsonl"
    path.write_bytes(f"\ufeff{lines}".encode())
    (task,) = table_tasks(path)
    assert sorted(task.texts) == sorted(texts)


def test_errors_name_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.csv does not exist"):
        table_tasks(tmp_path / "no.csv")
    for name, content, message in [
        ("t.parquet", "text", "cannot be read as a table"),
        ("t.txt", "text", "must be a file .csv, .parquet, .jsonl or .ndjson, got 't.txt'"),
        ("t.jsonl", '{"text": 1}\nno', "line 2 is not JSON"),
        ("u.jsonl", "[1]", "line 1 must be an object, got list"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            table_tasks(tmp_path / name)


def test_the_error_for_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("saefast.lm.requirements.distribution", missing)
    with pytest.raises(ImportError, match="pip install --no-deps sae-probes"):
        labelled_tasks("sae-probes")


def _packed(path: Path, columns: dict[str, list[Any]]) -> None:
    plain = write(path.with_suffix(""), columns)
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(plain.read_bytes())


@pytest.fixture
def small_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files of a package with two tasks and the three about news."""
    (tmp_path / "cleaned_data").mkdir()
    names = ["zoo", "glue_cola", "agnews_0", "agnews_1", "agnews_2", "many"]
    kinds = ["Binary Classification"] * 5 + ["Continuous"]
    master = {
        "Dataset Tag": names,
        "Dataset save name": [f"cleaned_data/{place}_{n}.csv" for place, n in enumerate(names)],
        "Data type": kinds,
    }
    _packed(tmp_path / "probing_datasets_MASTER.csv.zst", master)
    for place, name in enumerate(names[:5]):
        words = ["#include", f"news {name}"] if name.startswith("agnews") else ["no", "yes"]
        columns = {
            "prompt": texts(30, words[0]) + texts(30, words[1]),
            "target": ["False"] * 30 + ["True"] * 30,
        }
        _packed(tmp_path / "cleaned_data" / f"{place}_{name}.csv.zst", columns)
    monkeypatch.setattr(sae_probes_module, "_folder", lambda: tmp_path)
    monkeypatch.setattr(sae_probes_module, "DEFAULT_NAMES", ("glue_cola",))


@pytest.mark.usefixtures("small_package")
def test_default_tasks_come_first() -> None:
    assert [task.name for task in labelled_tasks(limit=2)] == ["glue_cola", "zoo"]
    every = labelled_tasks(limit=None)
    assert [task.name for task in every] == ["glue_cola", "zoo", "agnews 0", "agnews 1", "agnews 2"]
    assert all(
        text.startswith("yes") == its
        for text, its in zip(every[0].texts, every[0].labels, strict=True)
    )


@pytest.mark.usefixtures("small_package")
def test_tasks_on_news_have_other_news_as_negatives() -> None:
    (task,) = labelled_tasks(names=["agnews_1"])
    assert all(text.startswith("news") for text in task.texts)
    assert all(
        ("agnews_1" in text) == its for text, its in zip(task.texts, task.labels, strict=True)
    )


@pytest.mark.usefixtures("small_package")
def test_errors_name_unknown_tasks() -> None:
    with pytest.raises(ValueError, match="got nothing, many; known tasks are zoo, glue_cola"):
        labelled_tasks(names=["nothing", "zoo", "many"])
    with pytest.raises(ValueError, match="source must be one of sae-probes, code"):
        labelled_tasks("elsewhere")


def test_the_package_holds_113_tasks_and_the_default_ones() -> None:
    try:
        distribution("sae-probes")
    except PackageNotFoundError:
        pytest.skip("needs the package sae-probes")
    with pytest.raises(ValueError, match="known tasks are") as error:
        labelled_tasks(names=["nothing"])
    named = str(error.value).split("known tasks are ")[1].split(", ")
    assert len(named) == 113
    assert set(DEFAULT_NAMES) <= set(named)
    spam, news = labelled_tasks(names=["spam_is", "agnews_0"])
    assert len(spam.labels) == len(set(spam.texts)) == 600
    assert spam.notes == ("spam_is: 386 of 1494 texts dropped as repeated",)
    assert max(map(len, news.texts)) < 2000


_SOURCE = '''import os
from sys import (argv,
                 path)

def first(one, two=3):
    """Say it."""
    # why not
    if one in path:
        return second("a b", os.sep) + 2.5

class Second(Third):
    x = not True
'''


def test_classes_of_code_match_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [_SOURCE.replace("first", f"first{number}") for number in range(40)]
    monkeypatch.setattr(code_module, "_modules", lambda: iter(sources))
    tasks = {task.name: task for task in labelled_tasks("code", limit=None, names=[
        "keyword", "string", "comment", "number", "definition", "call", "name", "docstring"
    ])}  # fmt: skip
    wanted = {
        "keyword": {"def", "if", "in", "return", "class", "not", "True"},
        "string": {'"a', 'b"'},
        "comment": {"#", "why", "not"},
        "number": {"3", "2.5"},
        "call": {"second"},
        "name": {"one", "two", "path", "os", "sep", "Third", "x"},
        "docstring": {'"""Say', 'it."""'},
    }
    for kind, words in wanted.items():
        task = tasks[f"code {kind}"]
        spans = zip(task.spans or (), task.labels, strict=True)
        found = [(task.texts[span.text][span.start : span.end], its) for span, its in spans]
        assert {word for word, its in found if its} == words, kind
        assert sum(task.labels) * 2 == len(task.labels)
    defined = tasks["code definition"]
    names = {
        defined.texts[span.text][span.start : span.end]
        for span, its in zip(defined.spans or (), defined.labels, strict=True)
        if its
    }
    assert all(name == "Second" or name.startswith("first") for name in names)
    assert {"Second", "first0"} <= names


def test_imports_over_several_lines_are_imports() -> None:
    tokens, starts = code_module._tokens(_SOURCE)
    found = [_SOURCE[token.start : token.end] for token in tokens if token.kind == "import"]
    assert found == ["os", "sys", "argv", "path"]
    assert [_SOURCE[start:].split()[0] for start in starts] == ["def", "class"]


def test_errors_name_unknown_classes_of_code() -> None:
    with pytest.raises(ValueError, match=f"names must be of {', '.join(CLASSES)}, got 'verb'"):
        labelled_tasks("code", names=["verb"])
