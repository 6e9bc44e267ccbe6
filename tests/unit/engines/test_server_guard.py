"""Who may ask the server, how much, and how slowly. An application behind the guard stands in for vLLM's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from align.engines import server_guard
from align.engines.server_guard import KEY_VARIABLE, ServerGuard

KEY = (b"authorization", b"Bearer secret")
HOST = (b"host", b"127.0.0.1:8000")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")


async def repeats(_scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it gets."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(
    path: str = "/v1/chat/completions",
    headers: Iterable[tuple[bytes, bytes]] = (HOST, KEY),
    body: Iterable[bytes] = (b"{}",),
    *,
    kind: str = "http",
    application: Any = repeats,
    stalls: bool = False,
) -> list[Mapping[str, Any]]:
    """What a client gets that sends a body in these pieces, and then nothing more if it stalls."""
    sent: list[Mapping[str, Any]] = []
    pieces = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
    if not stalls:
        pieces.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Mapping[str, Any]:
        if pieces:
            return pieces.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(ServerGuard(application)({"type": kind, "path": path, "headers": [*headers]}, receive, send))
    return sent


def test_every_path_but_health_wants_the_key() -> None:
    for path in ("/v1/chat/completions", "/invocations", "/metrics", "/tokenize", "/docs", "/healthy", "/health/", "//health"):
        assert ask(path, [HOST])[0]["status"] == 401
        assert ask(path, [HOST, (b"authorization", b"Bearer wrong")])[0]["status"] == 401
        assert ask(path)[0]["status"] == 200
    for path in ("/health", "/ping"):
        assert ask(path, [HOST])[0]["status"] == 200
    assert ask("/v1/realtime", [HOST], kind="websocket")[0]["type"] == "websocket.close"


@pytest.mark.parametrize("name", [b"127.0.0.1", b"127.0.0.1:8000", b"localhost:8000", b"LOCALHOST"])
def test_names_of_this_machine(name: bytes) -> None:
    assert ask(headers=[(b"host", name), KEY])[0]["status"] == 200


@pytest.mark.parametrize(
    "hosts",
    [
        [b"evil.example:8000"],
        [b"127.0.0.1.evil.example"],
        [b"localhost.evil.example:8000"],
        [b""],
        [],
        [b"localhost", b"evil.example"],
    ],
)
def test_a_page_whose_name_leads_here_is_refused(hosts: list[bytes]) -> None:
    """DNS rebinding: a browser sends the page's own name, whatever address it has."""
    names = [(b"host", host) for host in hosts]
    for path in ("/v1/models", "/health"):
        assert ask(path, [*names, KEY])[0]["status"] == 421
    assert ask("/v1/realtime", [*names, KEY], kind="websocket")[0]["type"] == "websocket.close"


def test_a_body_reaches_the_application_as_it_was_sent() -> None:
    body = json.dumps({"messages": "안녕" * 1000}).encode()
    assert ask(body=[body[:7], b"", body[7:]])[1]["body"] == body


def test_a_body_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "MAX_BODY_BYTES", 100)
    assert ask(body=[b"x" * 60, b"x" * 40])[0]["status"] == 200
    endless = (b"x" * 60 for _ in range(1_000))
    assert ask(body=endless)[0]["status"] == 413


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "BODY_SECONDS", 0.05)
    answer = ask(stalls=True)
    assert answer[0]["status"] == 408
    assert (b"connection", b"close") in answer[0]["headers"]


def test_an_answer_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "ANSWER_SECONDS", 0.05)
    given_up = []

    async def endless(_scope: Any, _receive: Any, _send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(True)
            raise

    with pytest.raises(TimeoutError):
        ask(application=endless)
    assert given_up == [True]
