"""Model folders of strangers: what is refused before anything is loaded. No torch here."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from align.errors import AlignError, EnvironmentProblem, RecipeError
from align.models import ModelFolder, fetch_model, files
from align.models.folder import NO_BOUND


def _safetensors(length: int = 4) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [length], "data_offsets": [0, 4 * length]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * length)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as small as one can be."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "sub": {"attn_implementation": "sdpa"}}')
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer_config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(_safetensors())
    return model


def _shard(folder: Path, *names: Any) -> None:
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = {"metadata": {}, "weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_folder_is_accepted(folder: Path) -> None:
    ModelFolder(folder).check()
    _shard(folder, "part-1.safetensors")
    ModelFolder(folder).check()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", '{"auto_map": {"AutoModel": "evil.Model"}}', "auto_map"),
        ("config.json", '{"text_config": [{"_attn_implementation_internal": "owner/kernel"}]}', "_attn_implementation_internal"),
        ("config.json", '{"attn_implementation": "owner/kernel"}', "attn_implementation: 'owner/kernel'"),
        ("config.json", '{"attn_implementation": {"text": "owner/kernel"}}', "attn_implementation"),
        ("config.json", '{"trust_remote_code": true}', "trust_remote_code"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}', "auto_map"),
        ("generation_config.json", '{"trust_remote_code": true}', "trust_remote_code"),
    ],
)
def test_what_could_run_code_is_refused(folder: Path, file: str, content: str, told: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(RecipeError) as caught:
        ModelFolder(folder).check()
    assert str(folder / file) in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(RecipeError, match="pickle") as caught:
        ModelFolder(folder).check()
    assert "save_pretrained" in str(caught.value.hint)


def test_pickles_beside_safetensors_do_no_harm(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    ModelFolder(folder).check()


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors", "/etc/other.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "", 7, "a\0b",
        "\ud800.safetensors", "x" * 300 + ".safetensors",
    ],
)  # fmt: skip
def test_an_index_that_reaches_out_of_the_folder(folder: Path, name: Any) -> None:
    (folder.parent / "other.safetensors").write_bytes(_safetensors())
    _shard(folder, "part-1.safetensors", name)
    with pytest.raises(RecipeError, match="not inside the folder"):
        ModelFolder(folder).check()


def test_a_link_that_reaches_out_of_the_folder(folder: Path) -> None:
    secret = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(RecipeError, match="not inside the folder"):
        ModelFolder(folder).check()


@pytest.mark.parametrize("name", ["chat_template.jinja", "vocab.json", "additional_chat_templates/other.jinja"])
def test_a_file_that_is_read_without_being_named_is_no_link_out_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(RecipeError, match="not inside the folder"):
        ModelFolder(folder).check()


def test_links_of_the_hub_s_cache_are_its_own(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    ModelFolder(snapshot).check()


def test_an_index_of_pickles(folder: Path) -> None:
    _shard(folder, "part-1.bin")
    with pytest.raises(RecipeError, match="not a safetensors file"):
        ModelFolder(folder).check()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        _safetensors()[:-1],
        _safetensors() + b"\0",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 3) + b"{}}",
        struct.pack("<Q", 2) + b"[]" + b"\0" * 8,
        struct.pack("<Q", 9) + b'{"w": {}}',
    ],
)
def test_damaged_weights_are_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EnvironmentProblem) as caught:
        ModelFolder(folder).check()
    assert str(folder / "model.safetensors") in str(caught.value)


def test_a_missing_shard_is_named(folder: Path) -> None:
    _shard(folder, "part-1.safetensors", "part-2.safetensors")
    with pytest.raises(EnvironmentProblem, match=r"part-2\.safetensors: the index names this file"):
        ModelFolder(folder).check()


@pytest.mark.parametrize(
    ("missing", "told"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer.json"), ("model.safetensors", "no weights")],
)
def test_missing_files(folder: Path, missing: str, told: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(RecipeError, match=told):
        ModelFolder(folder).check()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ("model-00001-of-00002.safetensors",),
            "holds model-00001-of-00002.safetensors without model.safetensors.index.json, which says what is in which file, "
            "and without model-00002-of-00002.safetensors\n→ Get these files from where the others came from.",
        ),
        (
            ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            "holds model-00001-of-00002.safetensors, model-00002-of-00002.safetensors without model.safetensors.index.json, "
            "which says what is in which file\n→ Get the index from where the others came from.",
        ),
        (
            ("adapter_model.safetensors",),
            "holds an adapter's weights (adapter_model.safetensors) without adapter_config.json\n"
            "→ Get the adapter again, or name the folder of the whole model.",
        ),
        (
            ("weights.safetensors",),
            "there is no model.safetensors, but weights.safetensors\n"
            "→ If that is the whole model, rename it to model.safetensors; otherwise get the model again.",
        ),
    ],
)
def test_weights_that_nothing_leads_to_are_named(folder: Path, names: tuple[str, ...], told: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"")
    with pytest.raises(RecipeError) as caught:
        ModelFolder(folder).check()
    assert caught.value.render() == f"{folder}: {told}"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_gguf_is_named_as_what_it_is(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match=r"in GGUF \(model-q4\.gguf\)"):
        ModelFolder(folder).check()


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_weights_of_a_few_bits_are_refused_before_a_package_for_them_is_missed(folder: Path, method: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(RecipeError, match=rf"the weights are quantised \({method}\)") as caught:
        ModelFolder(folder).check()
    assert "qlora" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "quantised (gptq)"),
        ("config.json", {"compression_config": {"format": "pack-quantized"}}, "quantised (in a way that it does not name)"),
        ("quantize_config.json", {"bits": 4}, "quantised (quantize_config.json)"),
        ("hf_quant_config.json", {"quantization": {}}, "quantised (hf_quant_config.json)"),
    ],
)
def test_quantised_weights_are_known_wherever_it_is_said(folder: Path, name: str, content: Any, told: str) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(RecipeError) as caught:
        ModelFolder(folder).check()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "notes", "additional_chat_templates/a.jinja"]
)
def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(RecipeError, match="is a pipe, not a file"):
        ModelFolder(folder).check()


def test_a_device_in_the_folder_is_refused(folder: Path) -> None:
    (folder / "notes").symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match="notes: is a device, not a file"):
        ModelFolder(folder).check()


def test_a_configuration_without_end_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no space
    with pytest.raises(EnvironmentProblem, match="1,099,511,627,776 bytes"):
        ModelFolder(folder).check()


@pytest.mark.parametrize("content", ["", "[]", '{"a": ', "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_unreadable_configuration(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(EnvironmentProblem) as caught:
        ModelFolder(folder).check()
    assert str(folder / name) in str(caught.value)


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/anything"}')
    with pytest.raises(RecipeError, match="adapter"):
        ModelFolder(folder).check()


def test_an_adapter_alone_names_its_base_and_how_to_merge(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/anything"}')
    with pytest.raises(RecipeError, match="the model is owner/anything with it") as caught:
        ModelFolder(folder).check()
    assert "merge_and_unload" in (caught.value.hint or "")


def test_the_last_checkpoint_of_a_trainer_s_folder_is_proposed(folder: Path, tmp_path: Path) -> None:
    for step in (500, 1000):
        (tmp_path / "trained" / f"checkpoint-{step}").mkdir(parents=True)
        shutil.copy(folder / "config.json", tmp_path / "trained" / f"checkpoint-{step}")
    with pytest.raises(RecipeError) as caught:
        ModelFolder(tmp_path / "trained").check()
    assert caught.value.hint == f"Did you mean {tmp_path}/trained/checkpoint-1000?"


def test_a_pointer_of_git_lfs_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(EnvironmentProblem, match="git lfs pull"):
        ModelFolder(folder).check()


@pytest.mark.parametrize("name", ["absent", "file"])
def test_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match=name):
        ModelFolder(tmp_path / name).check()


def test_the_hub_without_a_hub() -> None:
    """The suite runs with HF_HUB_OFFLINE=1."""
    with pytest.raises(EnvironmentProblem, match="owner/absent") as caught:
        fetch_model("owner/absent", "main")
    assert "path:" in str(caught.value.hint)


@pytest.mark.parametrize("hub_id", ["not a hub id", "a/b/c", "../x"])
def test_an_id_that_cannot_be_one(hub_id: str) -> None:
    with pytest.raises(AlignError, match="model ") as caught:
        fetch_model(hub_id, "main")
    assert caught.value.exit_code == 2


def test_each_file_is_read_once_whatever_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "generation_config.json").write_text("{}")
    read: list[str] = []
    parse = files.read_json_object

    def remember(path: Path, name: str) -> Any:
        read.append(name)
        return parse(path, name)

    monkeypatch.setattr(files, "read_json_object", remember)
    model = ModelFolder(folder)
    assert read == [], "nothing is read before it is needed"
    assert model.check() is model.check() is model
    assert model.base is model
    assert model.config["model_type"]
    assert (model.stored_dtype, model.context_tokens, model.generation_config) == ("float32", NO_BOUND, {})
    assert (model.tied, model.peft, model.encoder_decoder, model.is_reward_model) == (False, None, None, False)
    assert sorted(read) == sorted({"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})


def test_another_process_reads_for_itself(folder: Path) -> None:
    model = ModelFolder(folder).check()
    again = pickle.loads(pickle.dumps(model))
    assert again == model
    assert vars(again) == {"path": folder, "chat": None}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model_type", {"a": 1}, "model_type is {'a': 1}, not a text"),
        ("architectures", 3, "architectures is 3, not a list of texts"),
    ],
)
def test_a_configuration_of_another_form_is_refused(folder: Path, field: str, value: Any, said: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", field: value}))
    with pytest.raises(EnvironmentProblem) as caught:
        ModelFolder(folder).check()
    assert said in str(caught.value)


def test_a_type_that_is_too_long_for_a_file_is_unknown(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "a" * 300, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(RecipeError, match="auto_map"):
        ModelFolder(folder).check()


def test_an_index_that_names_no_text_is_refused(folder: Path) -> None:
    _shard(folder, ["part-1.safetensors"])
    with pytest.raises(RecipeError, match=r"names the file \['part-1.safetensors'\], which is not inside"):
        ModelFolder(folder).check()
