"""What a recipe says of a model's chat format reaches every stage, the fingerprint and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from align import load_recipe, run_recipe
from align.errors import AlignError, RecipeError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.pipeline.inputs import resolve_inputs
from align.pipeline.plan import make_plan
from align.records import Message
from align.store.artifact import Store
from align.testing import Recorder, tiny_project

QUESTION = [Message(role="user", content="안녕?")]


def with_chat(recipe: Path, chat: str) -> Path:
    text = recipe.read_text()
    recipe.write_text(text.replace("{kind: model, path: base}", f"{{kind: model, path: base, chat: {chat}}}"))
    return recipe


def without_template(project: Path) -> None:
    """A base model as it is published: no chat template, no padding token."""
    base = project / "base"
    (base / "chat_template.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))


def test_a_base_model_without_template_is_trained_sampled_and_read_again(tmp_path: Path) -> None:
    recipe = with_chat(tiny_project(tmp_path, engine="transformers"), "{template: plain}")
    without_template(tmp_path)
    run_recipe(load_recipe(recipe), tmp_path / "runs", until="scored", in_process=True)
    model = (tmp_path / "runs" / "tiny" / "stages" / "sft").resolve() / "model"
    prompt = "User: 안녕?\n\nAssistant:"
    assert load_format(ModelFolder(model)).prompt_text(QUESTION) == prompt
    # transformers alone renders the same, and knows how to pad and where to stop.
    alone = AutoTokenizer.from_pretrained(model)
    assert alone.apply_chat_template([QUESTION[0].model_dump()], tokenize=False, add_generation_prompt=True) == prompt
    assert alone.pad_token == "<|pad|>"
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == alone.eos_token_id
    rows = (tmp_path / "runs" / "tiny" / "stages" / "scored" / "rows.jsonl").read_text().splitlines()
    assert rows and all(json.loads(row)["scores"]["rm"] is not None for row in rows)


def without_chat_tokens(project: Path) -> None:
    """A base model that knows nothing of turns: its end-of-sequence token ends a document."""
    base = project / "base"
    without_template(project)
    names = {"<|im_start|>": "<|unused|>", "<|im_end|>": "<|endoftext|>"}
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (base / file).read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        (base / file).write_text(text)


@pytest.mark.slow  # a run with weights that change engines
def test_a_template_brings_its_tokens_and_every_stage_agrees_on_them(tmp_path: Path) -> None:
    recipe = with_chat(tiny_project(tmp_path, engine="transformers"), "{template: chatml}")
    without_chat_tokens(tmp_path)
    text = recipe.read_text()
    recipe.write_text(text[: text.index("  sampled:")] + text[text.index("  ppo:") : text.index("  dpo:")])
    events = Recorder()
    run_recipe(load_recipe(recipe), tmp_path / "runs", in_process=True, sinks=[events])
    assert any("tokens were added: <|im_start|>, <|im_end|>; its embedding table grew from" in note for note in events.notes)
    stages = tmp_path / "runs" / "tiny" / "stages"
    source = AutoTokenizer.from_pretrained(tmp_path / "base")
    end = len(source) + 1
    for stage in ("sft", "reward", "ppo"):
        model = (stages / stage).resolve() / "model"
        chat_format = load_format(ModelFolder(model))
        assert (chat_format.end_token_id, chat_format.prompt_text(QUESTION)) == (
            end,
            "<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n",
        )
        assert json.loads((model / "config.json").read_text())["vocab_size"] == end + 1
        assert AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("<|im_end|>") == end
    stops = json.loads((stages / "ppo" / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [end, source.eos_token_id]
    # Nothing is made again, and the model's own folder is as it was.
    again = Recorder()
    run_recipe(load_recipe(recipe), tmp_path / "runs", in_process=True, sinks=[again])
    assert not any("tokens were added" in note for note in again.notes)
    assert "<|im_start|>" not in (tmp_path / "base" / "tokenizer.json").read_text()


def test_without_the_setting_such_a_model_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    recipe = tiny_project(tmp_path, engine="transformers")
    without_template(tmp_path)
    with pytest.raises(AlignError, match="no chat template") as caught:
        run_recipe(load_recipe(recipe), tmp_path / "runs", until="sft", in_process=True)
    assert "chat: {template: plain}" in str(caught.value.hint)


def test_settings_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    tiny_project(tmp_path)
    original = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    seen = set()
    without_chat_tokens(tmp_path)
    settings = ("", "{system: drop}", "{template: plain}", "{template: mine.jinja}", "{date: 2026-03-09}", "{template: chatml}")
    for chat in (*settings, "{template: chatml, add_tokens: []}"):
        (tmp_path / "recipe.yaml").write_text(original)
        recipe = with_chat(tmp_path / "recipe.yaml", chat) if chat else tmp_path / "recipe.yaml"
        seen.add(resolve_inputs(load_recipe(recipe), Store(tmp_path / "store"))[0]["base"].fingerprint)
    assert len(seen) == 7
    # It is the template's text that counts, not its name.
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}<|im_end|>\n")
    (tmp_path / "recipe.yaml").write_text(original)
    recipe = with_chat(tmp_path / "recipe.yaml", "{template: mine.jinja}")
    assert resolve_inputs(load_recipe(recipe), Store(tmp_path / "store"))[0]["base"].fingerprint not in seen


@pytest.mark.parametrize(
    ("chat", "told"),
    [
        ("{template: nowhere.jinja}", "recipe.yaml:4:.*there is no template or file .nowhere.jinja"),
        ("{date: tomorrow}", "expected a day such as 2026-11-26, got 'tomorrow'"),
        ("{template_kwargs: {a b: 1}}", "'a b' cannot be the name of a variable"),
        ("{thinking: sometimes}", "thinking.*refuse"),
        ("{colour: red}", "colour"),
    ],
)
def test_wrong_settings_are_named_where_they_are(tmp_path: Path, chat: str, told: str) -> None:
    recipe = with_chat(tiny_project(tmp_path), chat)
    with pytest.raises(RecipeError, match=told):
        make_plan(load_recipe(recipe), tmp_path / "out")
