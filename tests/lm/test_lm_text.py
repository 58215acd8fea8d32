"""Text: sources, held-out parts, and contexts of a token."""

import itertools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers.tiny_lm import llama, tokenizer

from saefast.activations import StoreWriter
from saefast.lm import (
    Corpus,
    Document,
    as_corpus,
    builtin_corpus,
    contexts,
    harvest,
    hugging_face,
    json_lines,
    text_files,
)
from saefast.pipeline import HarvestSettings
from saefast.pipeline.stages.harvest import corpus_of

pytestmark = pytest.mark.usefixtures("light")


class TestText:
    def test_the_built_in_corpus_is_reproducible_and_balanced(self) -> None:
        def beginning(count: int) -> list[Document]:
            return [d for d, _ in zip(builtin_corpus(), range(count), strict=False)]

        first = beginning(60)
        assert first == beginning(60)
        lengths = {"prose": 0, "code": 0}
        for document in first:
            assert 0 < len(document.text) <= 8192
            lengths[document.source.partition(":")[0]] += len(document.text)
        assert abs(lengths["prose"] - lengths["code"]) <= 8192

    def test_another_process_reads_the_same_corpus(self, tmp_path: Path) -> None:
        script = (
            "import itertools, json, sys; from saefast.lm import builtin_corpus\n"
            "assert not {'transformers', 'tokenizers', 'datasets'} & set(sys.modules)\n"
            "print(json.dumps(list(itertools.islice(builtin_corpus().train(), 40))))"
        )
        other = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,  # a folder without a saefast/ that lacks its kernels
            env={**os.environ, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        mine = itertools.islice(builtin_corpus().train(), 40)
        assert json.loads(other.stdout) == [list(document) for document in mine]

    def test_held_out_documents_are_not_in_the_training_part(self) -> None:
        documents = list(itertools.islice(builtin_corpus(), 250))
        assert len({d.text for d in documents}) == 250
        whole = Corpus(lambda: documents)
        train, held_out = list(whole.train()), list(whole.held_out())
        assert sorted(train + held_out) == sorted(documents)
        assert not {d.group for d in train} & {d.group for d in held_out}
        assert 12 < len(held_out) < 50
        # Prose and code of one module belong to one group, and both exist.
        kinds = {(d.source.partition(":")[0], d.group) for d in documents}
        assert any(("code", group) in kinds for kind, group in kinds if kind == "prose")
        first = next(iter(builtin_corpus(("prose",)).held_out()))
        assert first.source.startswith("prose: ")
        with pytest.raises(ValueError, match="split the original"):
            builtin_corpus().train().held_out()

    def test_files_lines_and_rows_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "b.txt").write_text("second")
        (tmp_path / "a.txt").write_text("first")
        (tmp_path / "c.jsonl").write_text('{"body": "x"}\n\n{"body": "y"}\n')
        corpus = text_files(tmp_path)
        assert [d.text for d in corpus] == [d.text for d in corpus] == ["first", "second"]
        assert [d.text for d in text_files(tmp_path / "b.txt")] == ["second"]
        lines = list(json_lines(tmp_path / "c.jsonl", "body"))
        assert [(d.text, d.source[-6:]) for d in lines] == [("x", "line 1"), ("y", "line 3")]
        rows = hugging_face([{"text": "u"}, {"text": "v"}])
        assert [d.text for d in rows] == ["u", "v"]
        json.dumps([corpus.description, rows.description])

    def test_files_from_windows_are_read(self, tmp_path: Path) -> None:
        """They may begin with a byte-order mark, and their lines end with two characters."""
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\nline")
        (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}\r\n')
        assert [d.text for d in text_files(tmp_path)] == ["first\nline"]
        assert [d.text for d in json_lines(tmp_path / "c.jsonl")] == ["x", "y"]

    def test_halves_of_surrogate_pairs_become_characters(self, tmp_path: Path) -> None:
        """A tokenizer raises a TypeError for the text of such a line, which JSON allows."""
        lines = r'{"text": "cut \ud83d"}', r'{"text": "whole \ud83d\ude00"}'
        (tmp_path / "c.jsonl").write_text("\n".join(lines))
        texts = [d.text for d in json_lines(tmp_path / "c.jsonl")]
        assert texts == ["cut \ufffd", "whole \N{GRINNING FACE}"]
        pair = as_corpus(["\ud83d\ude00 \ude00"])
        assert [d.text for d in pair] == ["\N{GRINNING FACE} \ufffd"]

    def test_errors_name_sources_without_text(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            text_files(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"holds no file \*\*/\*.txt"):
            text_files(tmp_path)
        (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
        with pytest.raises(ValueError, match=r"x.txt is not text in UTF-8"):
            list(text_files(tmp_path))
        (tmp_path / "l").write_text('{"text": "a"}\n{"tex')
        with pytest.raises(ValueError, match="line 2 is not JSON"):
            list(json_lines(tmp_path / "l"))
        (tmp_path / "m").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
        with pytest.raises(ValueError, match="m, line 2 is not JSON in UTF-8"):
            list(json_lines(tmp_path / "m"))
        with pytest.raises(ValueError, match=r"line 1 must have a text under 'body'.*holds text"):
            list(json_lines(tmp_path / "l", "body"))
        for wrong in ("one string", 3):
            with pytest.raises(
                TypeError, match=r"must be a saefast.lm.Corpus or a list of strings"
            ):
                as_corpus(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="readable more than once, got an iterator"):
            as_corpus(iter(["a"]))
        with pytest.raises(ValueError, match="kinds must be one of prose, code"):
            builtin_corpus(("poems",))


class TestTopContexts:
    def test_contexts_show_the_token_within_its_text(self, tmp_path: Path) -> None:
        model = llama()
        harvest(model, 0, out=tmp_path / "s", corpus=["0123456789abcdefghij"], context=10)
        # Two contexts, 0 to 9 and a to j, and the empty line; first positions are not written.
        found = contexts(tmp_path / "s", model.tokenizer, [0, 4, 8, 9, 12, 18], 4, 3)
        assert [one[:3] for one in found] == [
            ("", "1", "234"),
            ("1234", "5", "678"),
            ("5678", "9", ""),
            ("", "b", "cde"),
            ("bcd", "e", "fgh"),
            ("", "\n", ""),
        ]
        assert [(one.row, one.position) for one in found[3:5]] == [(9, 1), (12, 4)]
        rows = torch.tensor([12])
        (alone,) = contexts(tmp_path / "s", model.tokenizer, rows, 0, 0)
        assert alone[:3] == ("", "e", "")
        with pytest.raises(ValueError, match="rows must be from 0 to 18"):
            contexts(tmp_path / "s", model.tokenizer, [19])

    def test_a_letter_of_several_tokens_is_one(self, tmp_path: Path) -> None:
        model = llama()
        harvest(model, 0, out=tmp_path / "s", corpus=["ab日本cd"], context=40, progress=False)
        found = contexts(tmp_path / "s", model.tokenizer, [1, 2, 3, 4, 6], 9, 9)
        assert [one.token for one in found] == ["日", "日", "日", "本", "本"]
        assert [one.before for one in found] == ["b", "b", "b", "b日", "b日"]
        assert {one.after for one in found[:3]} == {"本cd\n\n"}

    def test_stores_without_tokens_raise(self, tmp_path: Path) -> None:
        with StoreWriter(tmp_path / "s", 2) as writer:
            writer.append(torch.zeros(3, 2))
        with pytest.raises(ValueError, match=r"lacks positions, tokens; saefast.lm.harvest writes"):
            contexts(tmp_path / "s", tokenizer(), [0])


class TestDataSets:
    """Data sets by name; tests/peers reads some by the package datasets itself."""

    @staticmethod
    def install(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[object, ...]]:
        """Put a package in place of datasets, and return the list of its calls."""
        calls: list[tuple[object, ...]] = []

        def load_dataset(path: str, **options: object) -> object:
            calls.append((path, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        fake = types.SimpleNamespace(load_dataset=load_dataset)
        monkeypatch.setitem(sys.modules, "datasets", fake)
        return calls

    @pytest.mark.usefixtures("hub")  # which is asked whether it can be reached
    def test_a_run_streams_the_configuration_that_it_names(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = self.install(monkeypatch, [{"body": "a"}, {"body": "b"}])
        settings = HarvestSettings(
            dataset="lab/texts", dataset_config="raw", split="validation", field="body"
        )
        assert [document.text for document in corpus_of(settings)] == ["a", "b"]
        options = {"split": "validation", "streaming": True, "name": "raw"}
        assert calls == [("lab/texts", options)]
        assert corpus_of(settings).description["name"] == "lab/texts"

    def test_text_and_data_set_exclude_each_other(self) -> None:
        with pytest.raises(ValueError, match=r"text must be empty where a dataset is given"):
            HarvestSettings(text="here", dataset="lab/texts")

    @pytest.mark.parametrize(
        ("cause", "error", "message"),
        [
            (
                FileNotFoundError("x\ny"),
                FileNotFoundError,
                r"check the spelling.*auth login.*x y\)",
            ),
            (ConnectionError("no"), ConnectionError, r"cannot be reached: check the .*FLINE.*no\)"),
            (ValueError("Unknown split"), ValueError, r"split='train' and {}: Unknown split"),
        ],
    )
    def test_an_error_is_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, cause: Exception, error: type, message: str
    ) -> None:
        self.install(monkeypatch, cause)
        with pytest.raises(error, match=rf"^dataset 'lab/texts' .*{message}"):
            hugging_face("lab/texts")

    def test_without_the_package_the_error_has_the_command(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ImportError, match=r"pip install datasets"):
            hugging_face("lab/texts")
