"""An engine of several GPUs: it is asked for wherever an engine is opened, and gets weights by files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.config.sections import GenerationEngine
from align.engines import holder as holder_module
from align.engines.holder import EngineHolder
from align.engines.vllm_engine import VllmEngine
from align.models.folder import ModelFolder
from align.models.stream import stored_weights, write_parts
from align.testing.tiny import tiny_causal_lm


class FakeLlm:
    """Keeps what `reload_weights` was given; of a folder, its tensors, as the processes of an engine read them."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.given = dict(kwargs)
        if path := kwargs.get("weights_path"):
            self.given["files"] = [load_file(file) for file in sorted(Path(path).glob("*.safetensors"))]
        else:
            self.given["weights"] = dict(kwargs["weights_iterator"])

    def update_weight_version(self, version: str) -> None:
        self.given["version"] = version

    def reset_prefix_cache(self) -> None:
        self.given["reset"] = True


def engine(num_gpus: int) -> tuple[VllmEngine, FakeLlm]:
    made, llm = object.__new__(VllmEngine), FakeLlm()
    made._llm, made._num_gpus, made._is_tied, made._has_head = llm, num_gpus, False, True
    return made, llm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(tiny_causal_lm(tmp_path_factory.mktemp("models") / "tiny"))


def test_a_holder_opens_engines_of_so_many_gpus_also_in_another_process(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    monkeypatch.setattr(holder_module, "open_engine", lambda *_, num_gpus, **__: opened.append(num_gpus))
    first = EngineHolder(GenerationEngine(), 2)
    for one in (first, pickle.loads(pickle.dumps(first)), EngineHolder(GenerationEngine())):
        one.engine_for(model, 32)
    assert opened == [2, 2, 1]


def test_one_gpu_is_handed_the_weights_themselves(model: ModelFolder) -> None:
    made, llm = engine(1)
    made.update_weights([("a.weight", torch.ones(2))], version=3)
    assert llm.given["weights"]["a.weight"].tolist() == [1.0, 1.0]
    assert llm.given["reset"]
    assert llm.given["version"] == "3"


def test_several_gpus_read_them_from_files_that_are_gone_afterwards(model: ModelFolder) -> None:
    made, llm = engine(2)
    made._is_tied = True
    made.update_weights(stored_weights(model), version=4)
    (read,) = llm.given["files"]
    assert read.keys() == {*dict(stored_weights(model)), "lm_head.weight"}
    assert not Path(llm.given["weights_path"]).exists()


def test_a_whole_model_is_read_where_it_is(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    made, llm = engine(2)
    monkeypatch.setattr(ModelFolder, "tied", False)
    made.load_weights(model)
    assert llm.given["weights_path"] == str(model.path)


def test_parts_hold_every_tensor_once(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    weights = {"a": table, "head": table, "b": torch.ones(100), "c": torch.zeros(3, dtype=torch.bfloat16)}
    write_parts(weights.items(), tmp_path, part_bytes=60)
    files = [load_file(file) for file in sorted(tmp_path.iterdir())]
    assert [list(part) for part in files] == [["a", "head"], ["b"], ["c"]]
    found = {name: tensor for part in files for name, tensor in part.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
