"""What stands before vLLM's server: whether it is installed, the port, the model. vLLM itself is not started here."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.engines import vllm_server
from align.engines.server_answers import refuse_broken_answers
from align.engines.server_guard import KEY_VARIABLE
from align.engines.vllm_engine import import_vllm
from align.engines.vllm_server import HOST, check_can_serve, start_server
from align.engines.vllm_worker import EngineWorker
from align.errors import EnvironmentProblem, RecipeError, StageError
from align.models.folder import ModelFolder
from align.testing import fill_weights, tiny_causal_lm


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


def test_a_model_of_nan_is_refused_before_a_server_starts(tmp_path: Path) -> None:
    model = fill_weights(tiny_causal_lm(tmp_path / "m"), float("nan"))
    with (
        pytest.raises(RecipeError, match=f"{model}: the model has weights that are NaN or infinite: model.norm.weight"),
        start_server(ModelFolder(model), name="mine", port=1),
    ):
        pass


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
    assert arguments[arguments.index("--worker-extension-cls") + 1] == "align.engines.vllm_worker.EngineWorker"
    assert arguments[arguments.index("--middleware") + 1] == "align.engines.server_guard.ServerGuard"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_an_answer_of_nan_ends_with_an_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import_vllm()
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    seen: list[Any] = []

    class Engine:
        async def collective_rpc(self, method: str) -> None:
            seen.append(method)

    async def add(self: Any, request: str) -> None:
        seen.append(request)

    def process(self: Any, outputs: list[Any], weight_version: str) -> Any:
        seen.extend(outputs)
        return SimpleNamespace(reqs_to_abort=["c"])

    monkeypatch.setattr(OutputProcessor, "process_outputs", process)
    monkeypatch.setattr(AsyncLLM, "add_request", add)
    refuse_broken_answers()
    engine: Any = Engine()
    for request in ("first", "second"):
        asyncio.run(AsyncLLM.add_request(engine, request))
    assert seen == ["count_broken_logits", "first", "second"]
    assert hasattr(EngineWorker, seen[0])
    seen.clear()
    outputs = [EngineCoreOutput(name, [0], num_nans_in_logits=count) for name, count in (("a", 7), ("b", 0), ("gone", 7))]
    result = OutputProcessor.process_outputs(SimpleNamespace(request_states={"a": 1, "b": 2}), outputs, weight_version="0")
    assert [output.finish_reason for output in seen] == [FinishReason.ERROR, None, None]
    assert result.reqs_to_abort == ["c", "a"]
    assert capfd.readouterr().err.count("logits are NaN or infinite") == 1
