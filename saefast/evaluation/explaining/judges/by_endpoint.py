"""Judge that asks the model of an OpenAI-compatible endpoint to explain and to rate."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from saefast import checks
from saefast.evaluation.explaining.judges.answers import Answers, key_of
from saefast.evaluation.explaining.judges.chat import ChatEndpoint, RefusedError
from saefast.evaluation.explaining.judges.prompts import (
    Message,
    TokenChance,
    explaining_prompt,
    parsed_explanation,
    parsed_ratings,
    rating_prompt,
)
from saefast.evaluation.explaining.judges.protocol import (
    Cost,
    Explanation,
    Floats,
    Question,
    Window,
)
from saefast.progress import ProgressBar

_MOST_LOST = 5
"""Requests in a row without an answer after which the endpoint counts as down"""
_LETTERS_PER_TOKEN = 3.5
_EXPLANATION_TOKENS = 300


class EndpointJudge:
    """Judge that uses chat completions; answers are stored, and no question is asked twice.

    Ratings are NaN where the answer cannot be parsed or the request failed. They are probabilities
    where the endpoint serves log-probabilities, else 0 or 1.

    Args:
        url: base URL, such as https://api.openai.com/v1 or http://localhost:8000/v1.
        model: name of the model at the endpoint.
        key_env: environment variable that holds the key, which is never written to disk; no key is
            sent if the variable is not set.
        answers: file of the answers; None: `explain` sets it to a file in its own folder.
        per_prompt: number of windows in a prompt.
        parallel: number of concurrent requests.
        timeout: time limit of a request, in seconds.
        retries: number of repetitions after statuses such as 429 and 500, dropped connections and
            broken JSON.
        backoff: seconds before the first repetition; doubles with each further one.
        most_tokens: number of tokens after which no more requests are sent; None: no limit.
        prices: price of a million tokens of prompts, and of answers, for `cost`; None: unknown.
        progress: show progress bars on stderr.
    """

    explains = True
    graded = False

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str | None = "OPENAI_API_KEY",
        answers: str | Path | None = None,
        per_prompt: int = 5,
        parallel: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        most_tokens: int | None = None,
        prices: tuple[float, float] | None = None,
        progress: bool = True,
    ) -> None:
        checks.whole("per_prompt", per_prompt, 1)
        checks.whole("parallel", parallel, 1)
        checks.whole("retries", retries, 0)
        if most_tokens is not None:
            checks.whole("most_tokens", most_tokens, 1)
        for name, seconds in (("timeout", timeout), ("backoff", backoff)):
            checks.at_least(name, seconds, 0)
        for price in prices or ():
            checks.at_least("prices", price, 0)
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be the name of a model at the endpoint, got {model!r}")
        key = None if key_env is None else os.environ.get(key_env, "").strip() or None
        self._endpoint = ChatEndpoint(url, key, key_env, timeout, retries, backoff)
        self.name = f"{model} at {self._endpoint.url.removesuffix('/chat/completions')}"
        self._model, self._parallel, self._per_prompt = model, parallel, per_prompt
        self._most_tokens, self._prices, self._progress = most_tokens, prices, progress
        self._answers, self.keeps = Answers(answers), answers is not None
        self._chances = True  # until the endpoint refuses to send log-probabilities
        self._lock = Lock()
        self._lost = 0
        self.calls = self.tokens = self.failed = 0

    def keep_answers(self, path: str | Path) -> None:
        """Store answers in a file from now on, and read those already in it.

        Args:
            path: path of the file, which may not exist.
        """
        self._answers, self.keeps = Answers(path), True

    def explain(self, examples: Sequence[Sequence[Window]]) -> list[str]:
        """Write an explanation for each list of windows, "" where the answer contains none.

        Args:
            examples: for each latent, windows of text on which it fires.

        Returns:
            An explanation for each latent, "" where the answer contains none.
        """
        asked = [self._explaining(windows) for windows in examples]
        found = self._ask(asked, "explaining")
        return ["" if answer is None else parsed_explanation(answer["content"]) for answer in found]

    def rate(self, questions: Sequence[Question]) -> Floats:
        """Rate questions by the probability of yes.

        Args:
            questions: questions, each with an explanation and a window.

        Returns:
            [questions] float64, probability of yes; NaN without an answer that can be parsed.
        """
        ratings = np.full(len(questions), np.nan)
        batches = self._batches(questions)
        asked = [self._rating([questions[place] for place in places]) for places in batches]
        for places, answer in zip(batches, self._ask(asked, "judging"), strict=True):
            if answer is None:
                continue
            chances = answer["chances"] and [TokenChance(*each) for each in answer["chances"]]
            parsed = parsed_ratings(answer["content"], len(places), chances)
            if parsed is not None:
                ratings[places] = parsed
        return ratings

    def cost(self, examples: Sequence[Sequence[Window]], questions: Sequence[Question]) -> Cost:
        """Return the calls and tokens of requests without a stored answer; nothing is sent.

        Args:
            examples: for each latent, windows of text on which it fires.
            questions: questions, each with an explanation and a window.

        Returns:
            Calls and tokens, with their price if `prices` are known.
        """
        asked = [self._explaining(windows) for windows in examples]
        asked += [
            self._rating([questions[place] for place in places])
            for places in self._batches(questions)
        ]
        new = {key_of(body): body for body in asked}
        open_ = [body for key, body in new.items() if self._answers.get(key) is None]
        prompts, answers = (sum(of(body) for body in open_) for of in (_prompt_of, _answer_of))
        price = None
        if self._prices is not None:
            price = (prompts * self._prices[0] + answers * self._prices[1]) / 1e6
        return Cost(len(open_), prompts + answers, price)

    def _explaining(self, windows: Sequence[Window]) -> dict[str, Any]:
        return self._body(explaining_prompt(windows), _EXPLANATION_TOKENS, chances=False)

    def _rating(self, questions: Sequence[Question]) -> dict[str, Any]:
        return self._body(rating_prompt(questions), 10 + 4 * len(questions), chances=True)

    def _body(self, messages: list[Message], most: int, *, chances: bool) -> dict[str, Any]:
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": most}
        return {**body, "logprobs": True, "top_logprobs": 5} if chances else body

    def _batches(self, questions: Sequence[Question]) -> list[list[int]]:
        """Group indices of questions that share an explanation and a kind, `per_prompt` at a time.

        Questions with an empty explanation are left out.

        Returns:
            Indices of questions, a list for each prompt.
        """
        groups: dict[tuple[Explanation, bool], list[int]] = {}
        for place, question in enumerate(questions):
            if question.explanation.text.strip():
                kind = question.explanation, question.marks is None
                groups.setdefault(kind, []).append(place)
        size = self._per_prompt
        return [
            places[first : first + size]
            for places in groups.values()
            for first in range(0, len(places), size)
        ]

    def _ask(self, asked: Sequence[dict[str, Any]], what: str) -> list[Any]:
        """Return the answer to each request, None where it failed; equal requests are sent once."""
        keys = [key_of(body) for body in asked]
        new = dict(zip(keys, asked, strict=True))
        new = {key: body for key, body in new.items() if self._answers.get(key) is None}
        bar = ProgressBar(what, total=len(new), unit="requests", progress=self._progress)
        with bar, ThreadPoolExecutor(self._parallel) as pool:
            running = [pool.submit(self._send, key, body) for key, body in new.items()]
            try:
                for each in running:
                    each.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [self._answers.get(key) for key in keys]

    def _send(self, key: str, body: dict[str, Any]) -> None:
        self._reserve(body)
        try:
            answer = self._post(body)
        except ConnectionError as error:
            with self._lock:
                self.failed += 1
                self._lost += 1
                down = self._lost >= _MOST_LOST
            if down:
                raise ConnectionError(
                    f"{error}; {len(self._answers)} answers are kept, and a new run continues from "
                    f"them"
                ) from error
            return
        with self._lock:
            self._lost = 0
            self.calls += 1
        self._answers.add(key, _kept(answer), model=self._model, messages=body["messages"])

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        plain = {name: value for name, value in body.items() if "logprobs" not in name}
        if not self._chances:
            return self._endpoint.post(plain)
        try:
            return self._endpoint.post(body)
        except RefusedError as error:
            if error.status not in (400, 422) or plain == body:
                raise
            answer = self._endpoint.post(plain)  # refused again if something else is wrong
            self._chances = False
            return answer

    def _reserve(self, body: dict[str, Any]) -> None:
        """Add the tokens of a request to the count, or raise if they would exceed the limit."""
        tokens = _prompt_of(body) + _answer_of(body)
        with self._lock:
            if self._most_tokens is not None and self.tokens + tokens > self._most_tokens:
                raise RuntimeError(
                    f"most_tokens is {self._most_tokens} and would be exceeded; "
                    f"{len(self._answers)} answers are kept, and a run with a larger limit "
                    f"continues from them"
                )
            self.tokens += tokens


def _kept(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the text of an answer and its log-probabilities; no text if the form is unexpected."""
    content: Any = _at(answer, "choices", 0, "message", "content")
    chances = []
    tokens = _at(answer, "choices", 0, "logprobs", "content")
    for each in tokens if isinstance(tokens, list) else []:
        token, own = _at(each, "token"), _at(each, "logprob")
        listed = _at(each, "top_logprobs")
        alternatives = {
            _at(other, "token"): _at(other, "logprob")
            for other in (listed if isinstance(listed, list) else [])
        }
        alternatives.setdefault(token, own)
        if isinstance(token, str):
            numbers = {
                name: float(value)
                for name, value in alternatives.items()
                if isinstance(name, str) and isinstance(value, int | float)
            }
            chances.append([token, numbers])
    text = content if isinstance(content, str) else ""
    return {"content": text, "chances": chances or None}


def _at(value: Any, *path: str | int) -> Any:
    """Return the value at a path in parsed JSON, or None."""
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and len(value) > step else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def _prompt_of(body: dict[str, Any]) -> int:
    """Return the estimated number of tokens of a prompt."""
    letters = sum(len(message["content"]) for message in body["messages"])
    return round(letters / _LETTERS_PER_TOKEN)


def _answer_of(body: dict[str, Any]) -> int:
    """Return the largest number of tokens of an answer."""
    return int(body["max_tokens"])
