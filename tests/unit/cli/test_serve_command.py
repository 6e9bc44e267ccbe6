"""`align serve` without a server: what is refused before, what is printed, how it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.engines import vllm_server
from align.errors import EnvironmentProblem, StageError
from align.models.folder import ModelFolder
from align.testing import tiny_causal_lm, tiny_reward_model
from align.testing.damage import flip

Align = Callable[..., Any]
KEY = "k3y-of-this-start"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of vLLM: it remembers what it was to serve, and ends as it is told."""
    from align.cli import serve
    from align.pipeline.worker import ENVIRONMENT

    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    state = SimpleNamespace(folder=None, port=None, ends=KeyboardInterrupt(), problem=None, stopped=False)

    def check(port: int) -> None:
        if state.problem is not None:
            raise state.problem

    @contextlib.contextmanager
    def start(folder: ModelFolder, *, name: str, port: int) -> Iterator[Any]:
        state.folder, state.name, state.port = folder.path, name, port

        def wait() -> None:
            raise state.ends

        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{port}", key=KEY, wait=wait)
        finally:
            state.stopped = True

    monkeypatch.setattr(vllm_server, "check_can_serve", check)
    monkeypatch.setattr(vllm_server, "start_server", start)
    monkeypatch.setattr(serve.signal, "signal", lambda number, handler: None)  # type: ignore[attr-defined]
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model") / "mine")


def test_stdout_has_the_url_and_stderr_the_key_once_and_an_example(align: Align, model: Path, server: Any) -> None:
    answer = align("serve", str(model), "--port", "8111")
    assert (answer.code, answer.out) == (130, "http://127.0.0.1:8111/v1\n")
    assert f"Key, shown this once: {KEY}" in answer.err
    assert f"-H 'Authorization: Bearer {KEY}'" in answer.err
    assert '"model": "mine"' in answer.err
    assert answer.err.endswith("stopped\n")
    assert (server.folder, server.name, server.stopped) == (model, "mine", True)


def test_a_server_that_ends_by_itself_is_an_error(align: Align, model: Path, server: Any) -> None:
    server.ends = StageError("vLLM's server ended with code 1 while it served")
    answer = align("serve", str(model))
    assert answer.code == 5
    assert "error: vLLM's server ended with code 1" in answer.err


def test_nothing_is_loaded_when_it_cannot_be_served(align: Align, model: Path, tmp_path: Path, server: Any) -> None:
    server.problem = EnvironmentProblem("--port 8000: cannot be opened", hint="Give another one.")
    assert align("serve", str(model)).code == 4
    answer = align("serve", str(tiny_reward_model(tmp_path / "rm")))
    assert answer.code == 2
    assert "a reward model; to serve, a language model is needed" in answer.err
    assert server.folder is None


@pytest.mark.parametrize("more", [["--host", "0.0.0.0"], ["--port", "0"], ["--port", "70000"]])
def test_there_is_no_other_host_and_no_impossible_port(align: Align, model: Path, server: Any, more: list[str]) -> None:
    assert align("serve", str(model), *more).code == 2
    assert server.folder is None


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter of the method, as a stage of a run leaves it."""
    import torch

    from align.config.peft import Lora, VirtualTokens
    from align.models.trainable import TrainableModel, load_trainable, save_trained
    from align.store.artifact import Entry, Manifest

    def make(method: str) -> Path:
        settings: Any = Lora(method=method, rank=4) if "lora" in method else VirtualTokens(method=method, num_virtual_tokens=3)  # type: ignore[arg-type]
        entry = Entry(tmp_path / ".store" / f"sft-{method}")
        start = TrainableModel(ModelFolder(model), settings, tmp_path / ".store", "sft")
        torch.manual_seed(0)
        entry.begin()
        save_trained(load_trainable(start), ModelFolder(model).tokenizer, entry.path / "model", start)
        origin: dict[str, Any] = {"config": {}, "inputs": {}, "seed": 1}
        entry.commit(Manifest(kind="adapter", stage="sft", stage_version=1, fingerprint=method, **origin))
        return entry.path

    return make


def test_lora_is_served_beside_its_base_model(align: Align, adapter: Any, server: Any) -> None:
    folder = adapter("lora")
    assert align("serve", str(folder)).code == 130
    assert server.folder == folder / "model"


def test_what_a_lora_server_is_started_with(adapter: Any, model: Path) -> None:
    folder = adapter("lora") / "model"
    arguments = vllm_server._model_arguments(ModelFolder(folder), "sft")
    assert arguments == [
        *("--model", str(model), "--served-model-name", "sft-base"),
        *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"sft={folder}"),
    ]
    assert vllm_server._model_arguments(ModelFolder(model), "mine") == ["--model", str(model), "--served-model-name", "mine"]


def test_qlora_is_merged_once_and_the_merged_model_is_kept(align: Align, adapter: Any, server: Any) -> None:
    """Its base model was in 4 bits; the one on disk is another."""
    folder = adapter("qlora")
    first = align("serve", str(folder))
    assert "merging the adapter into its base; it is kept in the store" in first.err
    assert server.folder == folder.parent / "merged-qlora" / "model"
    weights = server.folder / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert "merging" not in align("serve", str(folder)).err
    assert weights.stat().st_mtime_ns == made
    flip(weights)
    again = align("serve", str(folder))
    assert "the merged model is damaged (model/model.safetensors does not have the content it was written with" in again.err
    assert "merging" in again.err


def test_an_adapter_that_vllm_refuses_is_merged(align: Align, adapter: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = vllm_server.start_server

    def refuse(folder: ModelFolder, **options: Any) -> Any:
        if folder.is_adapter:
            raise StageError("vLLM's server ended with code 1 before it answered. Its last output:\n  ValueError: no LoRA here")
        return start(folder, **options)

    monkeypatch.setattr(vllm_server, "start_server", refuse)
    answer = align("serve", str(adapter("lora")))
    assert "vLLM does not serve this adapter as it is: ValueError: no LoRA here" in answer.err
    assert server.folder.parent.name == "merged-lora"


def test_virtual_tokens_are_refused(align: Align, adapter: Any) -> None:
    answer = align("serve", str(adapter("prompt_tuning")))
    assert answer.code == 2
    assert "prompt_tuning puts trained vectors in front of the prompt" in answer.err
