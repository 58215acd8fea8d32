"""Text from data sets that the package datasets loads, which SAELens installs."""

import json
from pathlib import Path

import pytest

from saefast.lm import hugging_face
from saefast.pipeline import HarvestSettings
from saefast.pipeline.stages.harvest import corpus_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a data set of two splits."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    where = tmp_path / "texts"
    where.mkdir()
    for split, texts in {"train": ["a", "b", "c"], "test": ["d"]}.items():
        lines = [json.dumps({"body": text, "number": 1}) + "\n" for text in texts]
        (where / f"{split}.jsonl").write_text("".join(lines))
    return where


def test_a_data_set_is_streamed_repeatedly(folder: Path) -> None:
    corpus = corpus_of(HarvestSettings(dataset=str(folder), field="body"))
    assert [document.text for document in corpus] == ["a", "b", "c"]
    assert [document.text for document in corpus] == ["a", "b", "c"]
    held_out = corpus_of(HarvestSettings(dataset=str(folder), field="body", split="test"))
    assert [document.text for document in held_out] == ["d"]


def test_errors_name_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset .*split='valid'.*train"):
        hugging_face(str(folder), split="valid", streaming=True)
    with pytest.raises(ValueError, match=r"must have a text under 'text', but it holds body, num"):
        list(corpus_of(HarvestSettings(dataset=str(folder))))
    with pytest.raises(OSError, match=r"^dataset .*: check the (spelling|connection)"):
        hugging_face(str(tmp_path / "nowhere"), streaming=True)
