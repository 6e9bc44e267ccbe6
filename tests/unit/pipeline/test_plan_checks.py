"""`align plan` refuses rows and models that cannot work, in the words of the mistake, and nothing that does work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from align.config.inputs import DataInput
from align.data.source import HubRows, Source, SourceFile
from align.models.file_tokenizer import FileTokenizer
from align.pipeline.checks import cache as cache_module
from align.pipeline.checks.plan import check_plan
from align.pipeline.checks.rows import check_rows
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.testing.project import write_jsonl

GIB = 1 << 30


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_sound_project_has_no_finding(project: Path, tmp_path: Path) -> None:
    assert check_plan(make_plan(load_recipe(project), tmp_path / "out")) == []


class TestRows:
    @pytest.mark.parametrize(
        ("holds", "given", "name", "columns"),
        [
            ("preferences", "instructions", "instructions", "prompt, chosen, rejected"),
            ("instructions", "preferences", "comparisons", "prompt, completion"),
        ],
    )
    def test_rows_of_another_kind(self, project: Path, plan: Any, holds: str, given: str, name: str, columns: str) -> None:
        shutil.copy(project / f"{holds}.jsonl", project / f"{given}.jsonl")
        answer = plan()
        assert answer.code == 3
        place = {"instructions": "recipe.yaml:5:17", "comparisons": "recipe.yaml:6:17"}[name]
        assert answer.err == (
            f"error: {place}: inputs.{name}: {given}.jsonl: this looks like {holds}: columns {columns}\n"
            f"→ Write kind: {holds}; or name a file of {given}.\n"
        )
        assert answer.out == ""

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "instructions.jsonl: there is no row in it\n→ Check the path; is the file empty?"),
            (
                '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n{bad\n',
                "instructions.jsonl: 2 of 3 rows cannot be used (missing_field 1, not_json 1)\n"
                "instructions.jsonl:2: completion: is missing; the row has: prompt\n"
                "instructions.jsonl:3: not JSON: Expecting property name enclosed in double quotes at character 2: '{bad'\n"
                "→ Correct them, or write on_invalid: drop to go on without them.",
            ),
            (
                '{"tag": "a", "comment": "b"}\n',
                "instructions.jsonl: 1 of 1 rows cannot be used (missing_field 1)\n"
                "instructions.jsonl:1: prompt: is missing; the row has: tag, comment\n"
                "instructions.jsonl:1: completion: is missing; the row has: tag, comment\n"
                "→ Map fields to the file's columns: columns: {prompt: …}. `align docs formats` shows what rows may look like.",
            ),
        ],
    )
    def test_rows_that_cannot_be_used(self, project: Path, plan: Any, text: str, told: str) -> None:
        (project / "instructions.jsonl").write_text(text)
        assert plan()[::2] == (3, f"error: {told}\n")

    def test_a_list_on_one_line(self, project: Path, plan: Any) -> None:
        rows = rows_of(project / "instructions.jsonl")
        rows[2]["prompt"] = ""
        (project / "rows.json").write_text(json.dumps(rows))
        answer = plan("inputs.instructions.path=rows.json")
        assert answer.code == 3
        assert "rows.json:1: element 3 (/2/prompt): prompt: is empty\n" in answer.err

    def test_a_column_that_no_row_has(self, plan: Any) -> None:
        answer = plan("inputs.instructions.columns={prompt: Promt, completion: completion}")
        assert answer.code == 3
        assert answer.err.endswith(
            "inputs.instructions.columns.prompt: no row of instructions.jsonl has the column 'Promt'\n→ Did you mean 'prompt'?\n"
        )

    @pytest.mark.parametrize(
        ("written", "right"),
        [("{answer: completion}", "{completion: answer}"), ("{Q: prompt, A: completion}", "{prompt: Q, completion: A}")],
    )
    def test_columns_the_wrong_way_round(self, plan: Any, written: str, right: str) -> None:
        assert plan(f"inputs.instructions.columns={written}")[::2] == (
            2,
            f"error: recipe.yaml:5:17: inputs.instructions.columns: {written} is the wrong way round; "
            f"the field comes first, then the file's column\n→ Write {right}.\n",
        )

    def test_an_optional_column_that_no_row_has_is_a_warning(self, plan: Any) -> None:
        answer = plan("inputs.prompts.columns={reference: topic}", options=("--json",))
        (finding,) = json.loads(answer.out)["findings"]
        assert (answer.code, finding["action"], finding["name"]) == (0, "warn", "prompts")
        assert finding["text"].endswith("columns.reference: no row of prompts.jsonl has the column 'topic'")

    def test_rows_that_are_dropped_are_no_reason_to_refuse(self, project: Path, plan: Any) -> None:
        file = project / "instructions.jsonl"
        file.write_text('{"prompt": ""}\n{bad\n' + file.read_text(encoding="utf-8"), encoding="utf-8")
        assert plan().code == 3
        answer = plan("inputs.instructions.on_invalid=drop")
        told = "instructions: instructions.jsonl: 2 of 26 rows would be dropped, 7.7 % (empty_prompt 1, not_json 1)"
        assert (answer.code, told in " ".join(answer.out.split())) == (0, True)

    @pytest.mark.parametrize(
        ("bad", "rows", "told", "action"),
        [
            (6, 58, "6 of the first 64 rows would be dropped, 9.4 % (missing_field 6)", "note"),
            (7, 58, "7 of the first 64 rows would be dropped, 10.9 % (missing_field 7)", "warn"),
        ],
    )
    def test_the_share_that_would_be_dropped(self, project: Path, plan: Any, bad: int, rows: int, told: str, action: str) -> None:
        row = json.dumps({"prompt": "a", "completion": "b"})
        (project / "instructions.jsonl").write_text('{"prompt": "a"}\n' * bad + f"{row}\n" * rows)
        answer = plan("inputs.instructions.on_invalid=drop", options=("--json",))
        (finding,) = json.loads(answer.out)["findings"]
        assert (finding["name"], finding["action"], finding["text"]) == ("instructions", action, f"instructions.jsonl: {told}")
        assert finding["advice"] == ("" if action == "note" else "`align data validate` names each of them.")

    def test_an_input_of_which_nothing_would_be_left_is_refused(self, project: Path, plan: Any) -> None:
        (project / "instructions.jsonl").write_text('{"prompt": "", "completion": "b"}\n' * 9)
        answer = plan("inputs.instructions.on_invalid=drop")
        assert answer.code == 3
        assert "instructions.jsonl: 9 of 9 rows cannot be used (empty_prompt 9)" in answer.err

    def test_rows_behind_a_limit_do_not_count(self, project: Path, plan: Any) -> None:
        file = project / "instructions.jsonl"
        file.write_text(file.read_text(encoding="utf-8") + "{bad\n", encoding="utf-8")
        assert plan().code == 3
        assert plan("inputs.instructions.max_rows=24").code == 0

    def test_unusable_first_rows_of_a_longer_file_are_a_warning_where_rows_are_dropped(self, project: Path, plan: Any) -> None:
        file = project / "instructions.jsonl"
        file.write_text('{"prompt": ""}\n' * 100 + file.read_text(encoding="utf-8"), encoding="utf-8")
        answer = plan("inputs.instructions.on_invalid=drop")
        assert answer.code == 0
        assert "instructions: instructions.jsonl: 64 of the first 64 rows cannot be used" in answer.out

    def test_rows_in_the_store_are_not_looked_at_again(self, finished_run: Path, project: Path, tmp_path: Path) -> None:
        out = Path(shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True))
        (out / ".store" / cache_module.CHECKS_NAME).unlink(missing_ok=True)
        for entry in (out / "tiny" / "stages").iterdir():
            shutil.rmtree(entry.resolve(), ignore_errors=True)
        made = make_plan(load_recipe(project), out)
        assert all(resolved.artifact is not None for resolved in made.inputs.values())
        assert check_plan(made) == []

    def test_rows_of_the_hub_are_said_to_be_unchecked(self) -> None:
        spec = DataInput(kind="prompts", dataset="a/b", split="train")
        source = Source((SourceFile(HubRows("a/b", "train", None), "a/b", {}),), "a/b")
        (finding,) = check_rows("prompts", "here", spec, source)
        assert (finding.action, finding.sentence) == ("note", "its rows are not checked before they are downloaded")


class TestModels:
    def test_no_chat_template(self, project: Path, plan: Any) -> None:
        (project / "base" / "chat_template.jinja").unlink()
        answer = plan()
        assert answer.code == 2
        assert answer.err.startswith(
            "error: recipe.yaml:4:17: inputs.base: base: the tokenizer has no chat template\n→ Give it one"
        )
        assert plan("inputs.base.chat={template: plain}").code == 0

    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("chatlm", "; did you mean 'chatml'?"),
            ("llama-3", "; did you mean 'llama3'?"),
            ("zephyr", ""),
            ("base/chat_templat.jinja", "; did you mean 'base/chat_template.jinja'?"),
        ],
    )
    def test_a_template_that_is_not_there(self, plan: Any, written: str, meant: str) -> None:
        override = f"inputs.base.chat={{template: {written}}}"
        answer = plan(override)
        assert answer.code == 2
        assert answer.err == (
            f"error: --set {override}: there is no template or file {written!r}{meant}\n"
            "→ Name a file, or one of chatml, gemma, llama3, plain, tulu.\n"
        )

    def test_a_language_model_as_a_reward_model(self, project: Path, plan: Any) -> None:
        answer = plan("inputs.judge={kind: reward_model, path: base}", "stages.ppo.scorers={rm: judge}")
        assert (answer.code, answer.err.count("\n")) == (2, 2)
        assert "inputs.judge: base: a language model, which gives no scores; expected a reward model" in answer.err

    def test_tokens_that_a_template_adds_are_said(self, project: Path, plan: Any) -> None:
        answer = plan("inputs.base.chat={template: gemma}")
        assert answer.code == 0
        told = "base: its chat template needs <start_of_turn>, <end_of_turn>, which its vocabulary lacks"
        assert told in " ".join(answer.out.split())

    def test_tokens_without_rows(self, project: Path, plan: Any) -> None:
        file = project / "base" / "tokenizer.json"
        added = json.loads(file.read_text())["added_tokens"]
        rewrite(file, added_tokens=[*added, *({**added[0], "id": 400 + n, "content": f"<extra{n}>"} for n in range(500))])
        answer = plan()
        assert answer.code == 2
        assert answer.err == (
            "error: recipe.yaml:4:17: inputs.base: base: <extra0>, <extra1>, <extra2>, <extra3>, <extra4> and 495 more: no row "
            "in model.embed_tokens.weight, which has 400 (900 are needed)\n"
            "→ The tokenizer is not this model's, or tokens were added without model.resize_token_embeddings().\n"
        )

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"num_hidden_layers": 4}, "config.json says 4 layers, but the weights have 2"),
            ({"hidden_size": 64}, "config.json's hidden_size is 64, but the embeddings have 32 columns"),
            ({"vocab_size": 500}, "model.embed_tokens.weight has 400 rows, but config.json's vocab_size is 500"),
            ({"tie_word_embeddings": False}, "config.json says that the head is a tensor of its own, but there is none"),
        ],
    )
    def test_weights_that_are_not_those_of_the_configuration(
        self, project: Path, plan: Any, changes: dict[str, Any], told: str
    ) -> None:
        rewrite(project / "base" / "config.json", **changes)
        answer = plan()
        assert answer.code == 2
        assert answer.err.startswith(f"error: recipe.yaml:4:17: inputs.base: base: {told}\n→ ")

    def test_a_tokenizer_that_cannot_be_read(self, project: Path, plan: Any) -> None:
        (project / "base" / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3}}')
        answer = plan()
        assert answer.code == 2
        assert "inputs.base: base: the tokenizer cannot be used (" in answer.err

    def test_a_tokenizer_at_which_the_library_panics(self, project: Path, plan: Any) -> None:
        file = project / "base" / "tokenizer.json"
        content = json.loads(file.read_text())
        content["model"]["continuing_subword_prefix"] = "x" * 300
        file.write_text(json.dumps(content))
        answer = plan()
        assert answer.code == 2
        assert "inputs.base: base: the tokenizer cannot be used (PanicException: range end index" in answer.err

    def test_shards_without_their_index(self, project: Path, plan: Any) -> None:
        (project / "base" / "model.safetensors").rename(project / "base" / "model-00001-of-00002.safetensors")
        answer = plan()
        assert answer.code == 2
        assert answer.err.startswith(
            "error: recipe.yaml:4:37: inputs.base.path: base: holds model-00001-of-00002.safetensors without "
        )

    def test_a_template_that_loses_system_messages_is_refused_where_rows_have_them(self, project: Path, plan: Any) -> None:
        file = project / "base" / "chat_template.jinja"
        file.write_text(file.read_text().replace("in messages %}", "in messages if message['role'] != 'system' %}"))
        answer = plan()
        assert answer.code == 0
        told = "rows with a system message: the template leaves system messages out silently"
        assert told in " ".join(answer.out.split())
        rows = rows_of(project / "instructions.jsonl")
        write_jsonl(project / "instructions.jsonl", ({**row, "system_prompt": "Be kind."} for row in rows))
        answer = plan()
        assert (answer.code, told in answer.err) == (2, True)

    def test_transformers_has_the_last_word(self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from align.pipeline.checks import model as model_module

        class Wrong(FileTokenizer):
            def decode(self, *_: Any, **__: Any) -> str:
                return ""

        monkeypatch.setattr(model_module, "FileTokenizer", Wrong)
        assert check_plan(make_plan(load_recipe(project), tmp_path / "out")) == []

    def test_a_model_that_no_stage_to_run_names_is_not_looked_at(self, project: Path, plan: Any) -> None:
        other = shutil.copytree(project / "base", project / "other")
        (other / "chat_template.jinja").unlink()
        assert plan("inputs.other={kind: model, path: other}").code == 0
