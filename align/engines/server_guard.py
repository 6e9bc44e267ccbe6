"""What stands before vLLM's server: who may ask, what a request may weigh, and how long it may take."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM reads the key here. Only its user can read a process's environment; everybody can read its arguments."""
# `start_server` asks for health without a key; neither path shows anything of the model.
OPEN_PATHS = frozenset({"/health", "/ping"})
OWN_NAMES = frozenset({"127.0.0.1", "localhost"})
"""Names of this machine. A page whose own name was made to lead here (DNS rebinding) asks for another."""
MAX_BODY_BYTES = 16 << 20
BODY_SECONDS = 30.0
"""For a request to arrive."""
ANSWER_SECONDS = 3600.0
"""For its answer, to its last token."""

Scope = Mapping[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ServerGuard:
    """ASGI middleware that requires the key, asks for this machine, and limits the size and time of requests.

    vLLM 0.32 checks the key on some paths only; without this, `/invocations`, which generates text, would be open.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["type"] == "http":
            await (_refuse(send, *refusal) if refusal else self._answer(scope, receive, send))
        elif refusal:
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason; None for a request that may be answered."""
        hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].partition(":")[0] not in OWN_NAMES:
            return 421, "This server answers to 127.0.0.1 and localhost only."
        is_open = scope["type"] == "http" and scope["path"] in OPEN_PATHS
        # compare_digest takes the same time wherever the key differs, so the key cannot be guessed byte by byte.
        if not is_open and not any(
            name == b"authorization" and hmac.compare_digest(value, self._expected) for name, value in scope["headers"]
        ):
            return 401, "Unauthorized"
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(receive)
        except TimeoutError:
            await _refuse(send, 408, f"The request did not arrive within {BODY_SECONDS:.0f} seconds.")
            return
        if body is None:
            await _refuse(send, 413, f"The request is larger than {MAX_BODY_BYTES >> 20} MiB.")
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await receive()

        async with asyncio.timeout(ANSWER_SECONDS):  # vLLM gives the request up, and the connection is closed
            await self._app(scope, receive_again, send)


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None if it is too large. Of one that its client gave up, what came."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of a body that was not read would be taken for the next request.
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
