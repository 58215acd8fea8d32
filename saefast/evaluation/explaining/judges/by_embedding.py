"""Judge of explanations by the similarity of sentence embeddings."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from saefast.evaluation.explaining.judges.protocol import Floats, FreeJudge, Question
from saefast.lm.sentence_encoder import SentenceEncoder, load_sentence_encoder


class EmbeddingJudge(FreeJudge):
    """Judge that rates by the cosine of the explanation and the window, or its marked tokens.

    Cosines have no natural threshold, so they give AUROC only.

    Args:
        encoder: encoder from `saefast.lm.sentence_encoder.load_sentence_encoder`, or an argument
            for that function.
    """

    graded = True

    def __init__(self, encoder: SentenceEncoder | str | Path | None = None) -> None:
        if not isinstance(encoder, SentenceEncoder):
            encoder = load_sentence_encoder(encoder)
        self.encoder = encoder
        self._known: dict[str, Floats] = {}
        self.name = f"embedding:{encoder.name}"

    def rate(self, questions: Sequence[Question]) -> Floats:
        """Rate questions.

        Args:
            questions: questions, each with an explanation and a window.

        Returns:
            [questions] float64 cosines; NaN where the explanation is empty.
        """
        pairs = [(question.explanation.text, _shown(question)) for question in questions]
        self._learn(text for pair in pairs for text in pair)
        cosines = [self._known[a] @ self._known[b] if a.strip() else np.nan for a, b in pairs]
        # The last digits depend on the number of threads and must not affect the order.
        return np.array(cosines, dtype=np.float64).round(4)

    def _learn(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self.encoder.encode(new).double().numpy()
            self._known.update(zip(new, vectors, strict=True))


def _shown(question: Question) -> str:
    pieces = question.window.pieces
    if question.marks is None:
        return "".join(pieces).strip()
    return " ".join(pieces[mark].strip() for mark in question.marks.tolist())
