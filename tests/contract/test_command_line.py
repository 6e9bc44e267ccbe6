"""What the command line promises: light, documented, and the same exit codes in a real process."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.stages.registry import STAGES
from align.strict import field_docstrings

COMMANDS = [
    *(["run"], ["plan"], ["stage"], ["recipes"], ["recipes", "list"], ["recipes", "show"], ["recipes", "copy"], ["schema"]),
    *(["init"], ["docs"], ["sweep"], ["doctor"], ["export"], ["serve"], ["chat"], ["pairs"], ["launch"]),
    *(["data"], ["data", "validate"], ["data", "inspect"], ["data", "convert"]),
    *(["store"], ["store", "list"], ["store", "prune"], ["store", "verify"]),
]
HEAVY = ("torch", "transformers", "trl", "peft", "bitsandbytes", "vllm", "numpy", "datasets", "scipy", "matplotlib", "pyarrow")
FULL_DEVICE = Path("/dev/full")


def python(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, timeout=60)


def align(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-m", "align.cli.main", *arguments, folder=folder)


def heavy_modules_after(code: str, folder: Path | None = None) -> list[str]:
    done = python("-c", f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])", folder=folder)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_help_loads_nothing_heavy() -> None:
    code = "from align.cli.main import main\nassert main(['--help']) == 0"
    assert heavy_modules_after(code) == []
    done = python("-c", f"{code}\nimport sys\nprint([n for n in ('rich', 'pydantic', 'ruamel.yaml') if n in sys.modules])")
    assert done.stdout.splitlines()[-1] == "[]"


def test_reading_a_recipe_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text(
        "name: x\ninputs: {m: {kind: model, path: m}, d: {kind: instructions, path: d.jsonl}}\n"
        "stages: {sft: {stage: sft, model: m, data: d}}\n"
    )
    assert heavy_modules_after("from align.pipeline.recipe import load_recipe\nload_recipe('.')", tmp_path) == []


def test_the_python_api_loads_nothing_heavy() -> None:
    code = "import align\nalign.run_recipe, align.plan, align.Table\ntry: align.load_run('x')\nexcept align.RecipeError: pass"
    assert heavy_modules_after(code) == []


def test_help_of_a_stage_loads_nothing_heavy() -> None:
    assert heavy_modules_after("from align.cli.main import main\nassert main(['stage', 'dpo', '--help']) == 0") == []
    assert heavy_modules_after("from align.cli.main import main\nassert main(['pairs', '--help']) == 0") == []


def test_completion_loads_nothing_heavy() -> None:
    words = "os.environ.update(_ALIGN_COMPLETE='complete_bash', COMP_WORDS='align run quickstart --only ', COMP_CWORD='4')"
    code = f"import os\n{words}\nfrom align.cli.main import main\nassert main([]) == 0"
    assert heavy_modules_after(code) == []
    done = python("-c", f"{code}\nimport sys\nprint([n for n in ('rich', 'pydantic') if n in sys.modules])")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [*COMMANDS, *[["stage", name] for name in STAGES]], ids=" ".join)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from align.cli.main import main

    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: align {' '.join(command)}" in text
    assert main([*command, "-h"]) == 0
    assert capsys.readouterr().out == text


def test_help_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from align.cli.main import main

    monkeypatch.setenv("COLUMNS", "80")
    for command in ([], *COMMANDS, *(["stage", name] for name in STAGES)):
        assert main([*command, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if len(line) > 80 or (line.endswith("...") and "[ARGS]" not in line)] == []


def test_the_examples_of_the_help_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Every KEY=VALUE, mapping and command that a help text shows."""
    from ruamel.yaml import YAML
    from typer.main import get_command

    from align.cli.main import app, main
    from align.cli.options import column_mapping
    from align.config.chat import ChatSettings
    from align.config.recipe import parse_recipe
    from align.config.row_checks import check_actions

    def check_assignment(text: str) -> None:
        key, _, value = text.partition("=")
        if "." in key:
            parse_recipe("quickstart", overrides=[text], stage_types=STAGES)
        elif value == "error":
            check_actions({key: "error"}, with_model=True)
        else:
            assert column_mapping([text])[key] in ("question", "Question")

    shown, lines = set(), set()
    for command in [*COMMANDS, *[["stage", name] for name in STAGES]]:
        assert main([*command, "--help"]) == 0
        text = capsys.readouterr().out
        shown.add(" ".join(text.split()))
        lines |= {line.strip() for line in text.splitlines() if line.strip().startswith("align ")}
    texts = "\n".join(shown)
    for line in lines:
        name, *arguments = shlex.split(line)[1:]
        main_command: Any = get_command(app)
        # What must be given is there, and every option exists. Nothing is run.
        main_command.commands[name].make_context(name, arguments)
    assignments = set(re.findall(r"(?<![\w.])[a-z][\w.]*=[\w.-]*\w", texts))
    assert {"stages.sft.num_epochs=2", "prompt=question", "repeated_rows=error"} <= assignments
    for text in assignments:
        check_assignment(text)
    for text in set(re.findall(r"'(\{[^'}]*\})'", texts)):
        ChatSettings.model_validate(YAML(typ="safe", pure=True).load(text))
    for text in set(re.findall(r"`align ([^`]+)`", texts)):
        assert main([*itertools.takewhile(str.isalpha, text.split()), "--help"]) == 0, text


def test_every_option_of_every_stage_says_what_it_does() -> None:
    for stage_type in STAGES.values():
        config_type = stage_type.config_type
        without = config_type.model_fields.keys() - field_docstrings(config_type).keys()
        assert without == set(), f"fields of {stage_type.name} without a docstring"


def test_version() -> None:
    done = align("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "align")


@pytest.mark.parametrize(
    "arguments", [["run"], ["rnu"], ["run", "x", "--nope"], ["stage", "sft"], ["recipes", "show", "no such"]]
)
def test_usage_errors_are_exit_2_and_leave_stdout_empty(arguments: list[str]) -> None:
    done = align(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_recipe_error_is_short_and_has_no_traceback(tmp_path: Path) -> None:
    keys = "\n".join(f"key{index}: 1" for index in range(40))
    (tmp_path / "recipe.yaml").write_text(f"name: x\n{keys}\nstages: {{}}\n")
    done = align("plan", "recipe.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) <= 15
    assert "recipe.yaml:2:1: key0: unknown key" in done.stderr
    assert "Traceback" not in done.stderr


def test_align_debug_adds_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nkey: 1\nstages: {}\n")
    monkeypatch.setenv("ALIGN_DEBUG", "1")
    done = align("plan", "recipe.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "\nerror: " in done.stderr
    assert "recipe.yaml:2:1: key: unknown key" in done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "align.cli.main", "doctor", "--json"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode != 0


def test_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    recipe = tmp_path / "shelf" / "a" / "recipe.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("name: a # 한국어\n", encoding="utf-8")
    command = [sys.executable, "-m", "align.cli.main", "recipes", "show", "a", "--folder", str(recipe.parent.parent)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.stdout.decode("utf-8") == "name: a # 한국어\n"
