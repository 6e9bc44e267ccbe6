"""A judge for tests: a small OpenAI-compatible server on 127.0.0.1 that prefers by a rule and fails on demand."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Preference = Callable[[str, str], str]
"""From the two texts, in the order shown, to A, B or tie."""
SILENT = 0
"""In place of a status: no reply for `FakeJudge.silence_seconds`."""


def prefers_longer(a: str, b: str) -> str:
    """Prefers the text with more characters."""
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def prefers_first(_a: str, _b: str) -> str:
    """Decides by position alone, as a biased judge does."""
    return "A"


def prefers_word(word: str) -> Preference:
    """Prefers the text that has the word; a tie if both or neither has it."""
    return lambda a, b: "tie" if (word in a) == (word in b) else "A" if word in a else "B"


@dataclass
class FakeJudge:
    """What the server does, and what it saw."""

    prefer: Preference = prefers_longer
    reply: str = "It is the better one.\nVerdict: {verdict}"
    """Text of every reply."""
    failures: list[int | str | tuple[int, Mapping[str, str]]] = field(default_factory=list)
    """What the next requests get instead, one each: a status, perhaps with headers, SILENT, or a body."""
    delay_seconds: float = 0.0
    silence_seconds: float = 1.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests."""
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    base_url: str = ""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> list[tuple[str, str]]:
        """The two texts of every request, in the order they were shown."""
        return [shown_texts(request) for request in self.requests]


def shown_texts(request: Mapping[str, Any]) -> tuple[str, str]:
    """The texts called A and B in a request."""
    content = request["messages"][-1]["content"]
    one, other = (re.search(rf"<{name} (\w+)>\n(.*?)\n</{name} \1>", content, re.DOTALL) for name in "AB")
    assert one is not None
    assert other is not None
    return one[2], other[2]


@contextmanager
def fake_judge(**settings: Any) -> Iterator[FakeJudge]:
    """A running server; `settings` are fields of FakeJudge."""
    judge = FakeJudge(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            _answer(judge, self)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: tests read stderr."""

    # Port 0: the system picks a free one, so that tests can run at the same time.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    # `shutdown` waits for the next poll: half a second by default, in every test.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(judge: FakeJudge, handler: BaseHTTPRequestHandler) -> None:
    body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
    with judge._lock:
        judge.requests.append(body)
        judge.headers.append({name.lower(): value for name, value in handler.headers.items()})
        failure = judge.failures.pop(0) if judge.failures else None
        judge._now += 1
        judge.most_at_once = max(judge.most_at_once, judge._now)
    try:
        time.sleep(judge.silence_seconds if failure == SILENT else judge.delay_seconds)
        if isinstance(failure, str):
            _send(handler, 200, {}, failure)
        elif failure is not None and failure != SILENT:
            status, headers = failure if isinstance(failure, tuple) else (failure, {})
            _send(handler, status, headers, json.dumps({"error": {"message": f"status {status}"}}))
        else:
            text = judge.reply.format(verdict=judge.prefer(*shown_texts(body)))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 7}
            _send(handler, 200, {}, json.dumps({"choices": [choice], "usage": usage}))
    finally:
        with judge._lock:
            judge._now -= 1


def _send(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: str) -> None:
    try:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body.encode())), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body.encode())
    except (BrokenPipeError, ConnectionResetError):
        pass  # the client timed out and closed the connection
