"""Judge of explanations by a local language model's log-odds of yes against no."""

from collections.abc import Sequence

import numpy as np
import torch

from saefast import checks
from saefast.evaluation.explaining.judges.prompts import shown
from saefast.evaluation.explaining.judges.protocol import Floats, FreeJudge, Question
from saefast.lm.logits import Continuations, shared_length
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.packing import prompt_tokens
from saefast.progress import ProgressBar

_HEAD = {
    False: "Does the text contain what is described? Answer Yes or No.\n\n"
    'Described: the token "dog"\nText: the dog sleeps in the sun\nAnswer: Yes\n\n'
    "Described: a number\nText: nothing but words stands here\nAnswer: No\n\n",
    True: "Are the marked tokens what is described? Answer Yes or No.\n\n"
    'Described: the token "dog"\nText: the \u27e6dog\u27e7 sleeps in the sun\nAnswer: Yes\n\n'
    "Described: a number\nText: it costs 12 coins \u27e6here\u27e7\nAnswer: No\n\n",
}
_NOTHING = "anything"
"""Description whose log-odds are subtracted, as the baseline of the window alone"""


class LocalJudge(FreeJudge):
    """Judge that rates by the rise of the log-odds of yes against no due to an explanation.

    Small models usually fail as judges: see `calibrate`.

    Args:
        model: language model, from `saefast.lm.load_model`.
        batch_size: number of prompts in a forward pass.
        progress: show a progress bar on stderr.
    """

    graded = False

    def __init__(
        self, model: LanguageModel, *, batch_size: int = 16, progress: bool = True
    ) -> None:
        check_model(model)
        checks.whole("batch_size", batch_size, 1)
        self._model, self._batch_size, self._progress = model, batch_size, progress
        self.name = f"local:{model.name}"
        self._known: dict[str, float] = {}
        yes, no = (
            model.tokenizer(answer, add_special_tokens=False)["input_ids"][0]
            for answer in (" Yes", " No")
        )
        if yes == no:
            # The blank before the word is a separate token.
            yes, no = (
                model.tokenizer(answer, add_special_tokens=False)["input_ids"][0]
                for answer in ("Yes", "No")
            )
        self._answers = [yes, no]

    def rate(self, questions: Sequence[Question]) -> Floats:
        """Rate questions.

        Args:
            questions: questions, each with an explanation and a window.

        Returns:
            [questions] float64, probability of yes; NaN where the explanation is empty.
        """
        prompts = [_prompt(question, question.explanation.text) for question in questions]
        neutral = [_prompt(question, _NOTHING) for question in questions]
        self._learn([*prompts, *neutral])
        ratings = np.full(len(questions), np.nan)
        for place, (prompt, without) in enumerate(zip(prompts, neutral, strict=True)):
            if questions[place].explanation.text.strip():
                odds = self._known[prompt] - self._known[without]
                ratings[place] = 1 / (1 + np.exp(-odds))
        return ratings.round(4)  # the last digits depend on the number of threads

    def _learn(self, prompts: Sequence[str]) -> None:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        with ProgressBar("judging", total=len(new), unit="prompts", progress=self._progress) as bar:
            for head in _HEAD.values():
                self._read([prompt for prompt in new if prompt.startswith(head)], bar)

    def _read(self, prompts: Sequence[str], bar: ProgressBar) -> None:
        """Compute the log-odds after prompts with a common prefix, which is read once."""
        if not prompts:
            return
        ids = [prompt_tokens(self._model.tokenizer, prompt) for prompt in prompts]
        shared = shared_length(ids)
        reader = Continuations(self._model.model, ids[0][:shared])
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        for first in range(0, len(order), self._batch_size):
            places = order[first : first + self._batch_size]
            ends = torch.tensor([len(ids[place]) - 1 - shared for place in places])
            batch = torch.zeros(len(places), int(ends.max()) + 1, dtype=torch.int64)
            for row, place in enumerate(places):
                batch[row, : len(ids[place]) - shared] = torch.tensor(ids[place][shared:])
            # In a causal model, padding on the right does not affect the tokens before it.
            positions, column = torch.unique(ends, return_inverse=True)
            logits = reader.logits(batch, positions)[..., self._answers].float().cpu()
            for row, place in enumerate(places):
                yes, no = logits[row, column[row]].tolist()
                self._known[prompts[place]] = yes - no
            bar.update(len(places))


def _prompt(question: Question, described: str) -> str:
    text = " ".join(shown(question.window, question.marks).split())
    return f"{_HEAD[question.marks is not None]}Described: {described}\nText: {text}\nAnswer:"
