"""What stands before vLLM's server: whether it is installed, the port, the key. vLLM itself is not started here."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.engines import vllm_server
from align.engines.vllm_server import HOST, KEY_VARIABLE, RequireKey, check_can_serve, start_server
from align.errors import EnvironmentProblem, StageError
from align.models.folder import ModelFolder
from align.testing import tiny_causal_lm


def test_without_vllm_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentProblem, match="make setup"):
        check_can_serve(8000)


def test_a_taken_port_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server.importlib.util, "find_spec", lambda name: object())  # type: ignore[attr-defined]
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"--port {port}: cannot be opened on 127.0.0.1"):
            check_can_serve(port)
    check_can_serve(port)


def answers(path: str, authorization: bytes | None, *, kind: str = "http") -> list[dict[str, Any]]:
    """What a client gets through the middleware; an application behind it would say 200."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization)]
    asyncio.run(RequireKey(application)({"type": kind, "path": path, "headers": headers}, None, send))
    return sent


def test_every_path_but_health_wants_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    for path in ("/v1/chat/completions", "/invocations", "/metrics", "/tokenize", "/docs", "/healthy"):
        assert answers(path, None)[0]["status"] == 401
        assert answers(path, b"Bearer wrong")[0]["status"] == 401
        assert answers(path, b"Bearer secret")[0]["status"] == 200
    assert answers("/health", None)[0]["status"] == 200
    assert answers("/v1/realtime", None, kind="websocket")[0]["type"] == "websocket.close"


def test_the_server_is_for_this_machine_and_the_key_is_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is replaced by one that ends at once and tells how it was started."""
    model = tiny_causal_lm(tmp_path / "m")
    started: dict[str, Any] = {}
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        started.update(command=command, environment=options["env"])
        return real([sys.executable, "-c", "print('한국어로 한 말'); raise SystemExit(3)"], **options)

    monkeypatch.setattr(vllm_server.subprocess, "Popen", start)  # type: ignore[attr-defined]
    with (
        pytest.raises(StageError, match="ended with code 3 before it answered. Its last output:\n  한국어로 한 말"),
        start_server(ModelFolder(model), name="mine", port=1),
    ):
        pass
    key = started["environment"][KEY_VARIABLE]
    assert len(key) > 40
    assert key not in " ".join(started["command"])
    assert started["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert key not in os.environ.values()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_servers_options_exist(tmp_path: Path) -> None:
    arguments = vllm_server._arguments(ModelFolder(tiny_causal_lm(tmp_path / "m")), "mine", "8000")
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert "--no-trust-remote-code" in arguments
    assert "--no-enable-log-requests" in arguments
    assert arguments[arguments.index("--middleware") + 1] == "align.engines.vllm_server.RequireKey"
