"""Chat completions over HTTP, with time limits, retries and safe handling of the key."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0


class RefusedError(ValueError):
    """An endpoint refuses requests, so that repeating them is useless."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ChatEndpoint:
    """Client of an endpoint for chat completions.

    Args:
        url: base URL, such as http://localhost:8000/v1; "/chat/completions" is appended if missing.
        key: bearer token; None: no token is sent.
        key_env: name of the environment variable of the key, for messages.
        timeout: time limit of a request, in seconds.
        retries: number of repetitions of a request after a transient error.
        backoff: seconds before the first repetition; doubles with each further one.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        key_env: str | None,
        timeout: float,
        retries: int,
        backoff: float,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(
                f"url must be the address of an OpenAI-compatible endpoint, such as "
                f"http://localhost:8000/v1, got {url!r}"
            )
        url = url.rstrip("/")
        self.url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        self._key, self._key_env = key, key_env
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._opener = urllib.request.build_opener(_NoRedirects)

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            RefusedError: the endpoint refuses the request or the key.
            ConnectionError: there was no answer, or no valid one, after all repetitions.
        """
        wait = self._backoff
        for attempt in range(self._retries + 1):
            try:
                return self._once(body)
            except _PassingError as error:
                if attempt == self._retries:
                    raise ConnectionError(
                        f"{self.url} gave no answer in {attempt + 1} attempts; the last error: "
                        f"{error}"
                    ) from error
                time.sleep(min(max(wait, error.wait), _LONGEST_WAIT))
                wait *= 2
        raise AssertionError("unreachable")

    def _once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            self.url, data=json.dumps(body).encode(), headers=headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            with error:
                excerpt = error.read(300).decode(errors="replace")
            if error.code in _AGAIN:
                raise _PassingError(f"HTTP {error.code}", _seconds(error.headers)) from error
            raise RefusedError(self._refusal(error.code, excerpt), error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise _PassingError(f"expected JSON, got {content[:40]!r}") from error
        if not isinstance(answer, dict):
            raise _PassingError(f"expected a JSON object, got {content[:40]!r}")
        return answer

    def _refusal(self, status: int, excerpt: str) -> str:
        if self._key:
            excerpt = excerpt.replace(self._key, "***")
        excerpt = " ".join(excerpt.split())
        ways = {401: self._about_key(), 403: self._about_key(), 404: "check the url and the model"}
        way = ways.get(status, "check the url, the model and its settings")
        return f"{self.url} refused a request with HTTP {status}: {excerpt!r}; {way}"

    def _about_key(self) -> str:
        if self._key_env is None:
            return "give the environment variable that holds the key as key_env"
        return f"put a valid key into the environment variable {self._key_env}"


class _PassingError(Exception):
    """A transient failure, after which a repetition may succeed."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirection, which would send the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _seconds(headers: Any) -> float:
    """Return the seconds of the header Retry-After if it is a number."""
    try:
        return max(float(headers.get("Retry-After", "")), 0.0)
    except (TypeError, ValueError):
        return 0.0
