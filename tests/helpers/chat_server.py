"""A local server of chat completions that fails on request."""

import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

Answer = Callable[[dict[str, Any]], str]


def oracle(body: dict[str, Any]) -> str:
    """Answer truthfully: passages contain the description, marks are around it."""
    asked = json.loads(body["messages"][-1]["content"])
    if isinstance(asked, list):
        return f"They are all alike.\nDescription: {len(asked)} passages"
    word, fuzzing = asked["description"], "marked" in body["messages"][0]["content"]
    wanted = f"\u27e6{word}\u27e7" if fuzzing else word
    return str([int(wanted in passage) for passage in asked["passages"]])


def inverted(body: dict[str, Any]) -> str:
    """Return the opposite answers of the oracle."""
    return oracle(body).translate(str.maketrans("01", "10"))


@dataclass
class ChatServer:
    """Requests to the server, and how it answers."""

    answer: Answer = oracle
    faults: list[str] = field(default_factory=list)
    """answers to the first requests, in turn: "429", "500", "401", "drop", "broken", "silent",
    "list", "redirect"; afterwards all are answered"""
    log_probs: bool = False
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    released: Event = field(default_factory=Event)
    """ends the silence of requests that hang"""


@contextmanager
def serving(**settings: Any) -> Iterator[ChatServer]:
    """Serve on a free port inside the context."""
    state = ChatServer(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                fault = state.faults.pop(0) if state.faults else ""
            if fault.isdigit():
                self._send(int(fault), b'{"error": "no"}')
            elif fault == "drop":
                # Reset the connection instead of closing it properly.
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.close_connection = True
            elif fault == "silent":
                state.released.wait(20)
                self.close_connection = True
            elif fault == "broken":
                self._send(200, b'{"choices": [{"mess')
            elif fault == "list":
                self._send(200, b"[1, 0]")
            elif fault == "redirect":
                self.send_response(302)  # which urllib would follow
                self.send_header("Location", state.url + "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif body.get("logprobs") and not state.log_probs and fault == "refuse":
                self._send(400, b'{"error": "logprobs is unknown"}')
            else:
                self._send(200, json.dumps(_completion(state, body)).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Ignore clients that disconnect."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(state: ChatServer, body: dict[str, Any]) -> dict[str, Any]:
    content = state.answer(body)
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": content}}
    if state.log_probs and body.get("logprobs"):
        choice["logprobs"] = {
            "content": [
                {
                    "token": piece,
                    "logprob": -0.2,
                    "top_logprobs": [
                        {"token": piece, "logprob": -0.2},
                        *(
                            {"token": str(1 - int(piece)), "logprob": -1.7}
                            for _ in piece
                            if piece.isdigit()
                        ),
                    ],
                }
                for piece in re.findall(r"\d|\D+", content)
            ]
        }
    return {"choices": [choice], "usage": {"total_tokens": 10}}
