"""Limits, rates, memory and disk of a plan; how findings are shown, and kept by content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main
from align.errors import MAX_ERROR_LINES, RecipeError
from align.pipeline import inputs
from align.pipeline.checks import cache as cache_module
from align.pipeline.checks import plan as plan_module
from align.pipeline.checks.machine import check_disk, check_memory
from align.pipeline.checks.plan import check_plan
from align.pipeline.estimate.machine import Machine
from align.pipeline.estimate.plan import estimate_plan
from align.pipeline.plan import make_plan
from align.pipeline.recipe import load_recipe
from align.pipeline.run import run_recipe
from align.testing.project import write_jsonl

GIB = 1 << 30


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class TestLimits:
    @pytest.mark.parametrize(
        ("overrides", "code", "told"),
        [
            (
                ["stages.sampled.max_completion_tokens=600"],
                2,
                "error: recipe.yaml:15:12: stages.sampled: base: the model sees 512 tokens, max_completion_tokens is 600: there "
                "is no room for a prompt\n→ Lower max_completion_tokens.",
            ),
            (
                ["stages.sampled.max_completion_tokens=100", "stages.sampled.max_prompt_tokens=500"],
                0,
                "sampled: max_prompt_tokens 500 and max_completion_tokens 100 are more than the 512 tokens that the model can "
                "see: prompts may have 412",
            ),
            (
                ["stages.sft.max_tokens=4096"],
                0,
                "sft: max_tokens is 4,096, but the model can see 512, which is the limit of its rows",
            ),
            (
                ["stages.sft.learning_rate=1e3"],
                2,
                "error: recipe.yaml:11:12: stages.sft.learning_rate: 1000 is so high that training diverges\n"
                "→ The default of this stage is 0.0001.",
            ),
            (["stages.sft.learning_rate=0.5"], 0, "stages.sft.learning_rate: 0.5 is so high that training diverges."),
        ],
    )
    def test_limits(self, plan: Any, overrides: list[str], code: int, told: str) -> None:
        answer = plan(*overrides)
        assert answer.code == code
        said = answer.err if code else answer.out
        assert " ".join(told.split()) in " ".join(said.split())

    def test_rows_that_are_too_long(self, project: Path, plan: Any) -> None:
        rows = rows_of(project / "instructions.jsonl")
        write_jsonl(project / "instructions.jsonl", [*rows[:5], {**rows[5], "id": "long", "completion": "z " * 200}, *rows[6:]])
        answer = plan()
        assert answer.code == 3
        *lines, hint = answer.err.splitlines()
        assert lines == [
            "error: recipe.yaml:11:12: stages.sft: 1 of 24 rows of instructions.jsonl cannot be used",
            next(line for line in lines if line.startswith("instructions.jsonl:6: long: prompt and completion: ")),
        ]
        assert lines[1].endswith("tokens; max_tokens is 128")
        assert hint.startswith("→ Shorten or remove these rows, raise the limit, or set on_invalid: drop")
        answer = plan("stages.sft.on_invalid=drop", options=("--json",))
        (finding,) = json.loads(answer.out)["findings"]
        assert (answer.code, finding["name"], finding["action"]) == (0, "sft", "note")
        told = "stages.sft: 1 of 24 rows of instructions.jsonl would be dropped, 4.2 % (too_long 1)"
        assert finding["text"] == f"recipe.yaml:11:12: {told}"
        assert told in " ".join(plan("stages.sft.on_invalid=drop").out.split())

    def test_prompts_that_are_all_too_long(self, plan: Any) -> None:
        answer = plan("stages.sampled.max_prompt_tokens=4")
        assert answer.code == 3
        assert "stages.sampled: 12 of 12 rows of prompts.jsonl cannot be used" in answer.err
        assert plan("stages.sampled.max_prompt_tokens=4", "stages.sampled.on_invalid=drop").code == 3

    def test_virtual_tokens_may_learn_fast(self, plan: Any) -> None:
        assert plan("stages.sft.peft={method: prompt_tuning, num_virtual_tokens: 4}", "stages.sft.learning_rate=5").code == 0


class TestRoom:
    def test_memory_and_disk(self, project: Path, tmp_path: Path) -> None:
        made = make_plan(load_recipe(project), tmp_path / "out")
        machine = Machine("cuda", "GPU X", 8 * GIB, 1 << 20, 1 << 10, has_bfloat16=False)
        estimate = estimate_plan(made, machine)
        first, *_ = check_memory(estimate.stages, machine)
        assert (first.name, first.action) == ("sft", "warn")
        assert first.text.startswith("needs about 6")
        assert first.text.endswith("of memory; 1.0 MiB are free on GPU X")
        assert "align docs memory" in first.advice
        (disk,) = check_disk("tiny", estimate, [stage.name for stage in made.stages])
        assert disk.sentence.startswith("the run writes about ")
        assert "1.0 KiB are free. Free some space (`align store prune`)" in disk.sentence
        assert check_disk("tiny", estimate, []) == []
        roomy = replace(machine, free_bytes=8 * GIB, free_disk_bytes=8 * GIB)
        assert [
            *check_memory(estimate_plan(made, roomy).stages, roomy),
            *check_disk("tiny", estimate_plan(made, roomy), ["sft"]),
        ] == []


class TestAPlanWithFindings:
    def test_they_are_one_short_list(self, project: Path, plan: Any) -> None:
        shutil.copy(project / "preferences.jsonl", project / "instructions.jsonl")
        (project / "prompts.jsonl").write_text("")
        (project / "base" / "chat_template.jinja").unlink()
        answer = plan("stages.sft.learning_rate=1e3", command="run")
        assert answer.code == 2
        first, *lines = answer.err.splitlines()
        assert first == "error: 4 things stand in the way:"
        assert len(lines) == 4 < MAX_ERROR_LINES
        assert [line.partition(" → ")[0].rpartition(": ")[2] for line in lines] == [
            "columns prompt, chosen, rejected",
            "there is no row in it",
            "the tokenizer has no chat template",
            "1000 is so high that training diverges",
        ]
        assert not (project / "runs" / "tiny").exists()

    def test_inputs_that_cannot_be_read_are_reported_with_the_rows_of_the_others(self, project: Path, plan: Any) -> None:
        weights = project / "base" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-64])
        (project / "instructions.jsonl").write_text("")
        settings = ["inputs.other={kind: model, path: base, chat: {date: 2026-01-01}}"]
        for command in ("plan", "run"):
            answer = plan(*settings, command=command)
            first, *lines = answer.err.splitlines()
            assert (answer.code, first) == (3, "error: 3 things stand in the way:")
            assert len(lines) == 3
            assert ["its header" in lines[0], "there is no row" in lines[1], "inputs.other" in lines[2]] == [True] * 3
            assert all(" → " in line for line in lines)
        assert plan(*settings, options=("--quick",)).err.startswith("error: 2 things stand in the way:")

    def test_quick_skips_them(self, project: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (project / "base" / "chat_template.jinja").unlink()
        assert plan(options=("--quick",)).code == 0
        monkeypatch.setattr("align.pipeline.run._Runner.run", lambda _: RecipeError("started"))
        assert run_recipe(load_recipe(project), project / "runs", quick=True)  # type: ignore[truthy-bool]
        with pytest.raises(RecipeError, match="no chat template"):
            run_recipe(load_recipe(project), project / "runs")


class TestAdviceForOptions:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ("sft --model base --data preferences.jsonl", "→ Name a file of instructions.\n"),
            ("sft --model base --data bad.jsonl", "or write --on-invalid drop to go on"),
            ("reward_model --model base --data preferences.jsonl --margin scores", "or write --margin none.\n"),
            ("pairs --scored rows.jsonl --scorer rm --k 3", "goes with --policy top_k_bottom_k only"),
            ("sft --model base --data instructions.jsonl --columns answer=completion", "column: --columns completion=answer\n"),
            ("score --candidates prompts.jsonl --scorers rm=base", "candidates are read from a folder"),
        ],
    )
    def test_it_names_the_option(
        self, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: str, told: str
    ) -> None:
        monkeypatch.chdir(project)
        (project / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{bad\n')
        (project / "rows.jsonl").write_text('{"prompt_id": "a", "prompt": "x", "completion": "b", "scores.rm": 1}\n')
        assert main(["stage", *options.split(), "--out", "made"]) in (2, 3)
        assert told in capsys.readouterr().err


class TestTheCache:
    def test_a_second_plan_reads_no_rows_and_no_tokenizer(
        self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overrides = ["stages.sft.max_tokens=4096", "inputs.base.chat={template: gemma}"]
        made = make_plan(load_recipe(project, overrides), tmp_path / "out")
        first = check_plan(made)
        assert [finding.name for finding in first] == ["base", "sft"]

        def fail(*_: Any, **__: Any) -> Any:
            raise AssertionError("looked at again")

        with monkeypatch.context() as patch:
            for name in ("check_rows", "check_model", "check_fit", "read_head", "read_format"):
                patch.setattr(plan_module, name, fail)
            assert check_plan(make_plan(load_recipe(project, overrides), tmp_path / "out")) == first
        file = tmp_path / "out" / ".store" / cache_module.CHECKS_NAME
        for damage in (b"", b"{", b"[1]", b'{"a": 3}', b'{"a": [{"x": 1}]}', b"\xff"):
            file.write_bytes(damage)
            assert check_plan(made) == first

    @pytest.mark.parametrize(
        "file", ["instructions.jsonl", "base/chat_template.jinja", "base/config.json", "base/tokenizer.json"]
    )
    def test_another_content_is_looked_at(self, project: Path, tmp_path: Path, file: str) -> None:
        def findings() -> list[str]:
            return [finding.name for finding in check_plan(make_plan(load_recipe(project), tmp_path / "out"))]

        assert findings() == []
        path = project / file
        text = path.read_text(encoding="utf-8")
        changes = {
            "instructions.jsonl": lambda: text.replace('"completion"', '"complete"'),
            "base/chat_template.jinja": lambda: "{{ messages[0].content }}",
            "base/config.json": lambda: json.dumps({**json.loads(text), "num_hidden_layers": 3}),
            "base/tokenizer.json": lambda: text.replace("<|im_end|>", "<|end|>"),
        }
        path.write_text(changes[file](), encoding="utf-8")
        assert findings()

    def test_a_store_that_cannot_be_written_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        kept = cache_module.FindingCache(tmp_path / "file" / "store")
        assert kept.findings("key", list) == []
        kept.save()


def test_a_plan_without_findings_loads_nothing_heavy(project: Path, plan: Any) -> None:
    assert plan().code == 0  # reads and measures the first rows: another plan of the same store needs no NumPy and no tokenizer
    code = (
        "import sys\nfrom align.cli.main import main\nassert main(['plan', '.']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'scipy', 'pyarrow', 'numpy', 'tokenizers') if name in "
        "sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_model_without_its_files_is_said_to_be_unchecked(
    project: Path, tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.copy(project / "base" / "config.json", folder)
    monkeypatch.setattr(inputs, "fetch_model", lambda *_, **__: (folder, "0" * 40))
    recipe = project / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("path: base", "hub_id: a/b, revision: main"), encoding="utf-8")
    answer = plan()
    assert answer.code == 0
    assert "base: its tokenizer and chat template are not checked: not downloaded" in answer.out
