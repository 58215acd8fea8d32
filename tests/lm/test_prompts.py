"""Texts that are continued do not end with the end of text that a tokenizer appends."""

from typing import Any

import pytest
import torch
from helpers.tiny_lm import llama

from saefast.evaluation.absorption.word_tasks import prefix_of, words_of
from saefast.evaluation.editing.fact_prompts import prompt
from saefast.evaluation.explaining.judges.by_local_model import LocalJudge
from saefast.lm import LanguageModel
from saefast.lm.generation import Opening
from saefast.lm.logits import Continuations
from saefast.progress import ProgressBar

BOS, EOS = 0, 1


@pytest.fixture
def model() -> LanguageModel:
    from tokenizers import processors

    model = llama()
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert model.tokenizer("a")["input_ids"][-1] == EOS
    return model


def test_openings(model: LanguageModel) -> None:
    ids = Opening(model, 1, "ab").prompt
    assert ids.tolist() == model.tokenizer("ab")["input_ids"][:-1]


def test_facts(model: LanguageModel) -> None:
    found = prompt(model.tokenizer, "In {} they", "Rome")
    assert found.ids == model.tokenizer("In Rome they")["input_ids"][:-1]
    assert model.tokenizer.decode(found.ids[found.position]) == "e"


def test_words(model: LanguageModel) -> None:
    task = {"a": "x", "b": "y", "c": "x", "d": "y"}
    words = words_of(task, model.tokenizer)
    prefix, _ = prefix_of(words, task, model.tokenizer, examples=2, template=None, seed=0)
    assert prefix[0] == BOS
    assert EOS not in prefix.tolist()


def test_prompts_of_a_local_judge(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Reader(Continuations):
        def logits(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            seen.append(ids)
            return super().logits(ids, positions)

    monkeypatch.setattr("saefast.evaluation.explaining.judges.by_local_model.Continuations", Reader)
    judge = LocalJudge(model)
    with ProgressBar("judging", total=2, unit="prompts", progress=False) as bar:
        judge._read(["some text", "some more"], bar)
    assert seen
    assert all(EOS not in ids for ids in seen)
