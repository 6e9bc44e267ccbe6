"""What the documentation says exists: links, names of functions, commands, options, make targets, fields, recipes, reasons."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import TypeAdapter
from typer.main import get_command

from align.cli.main import app, main
from align.config.expand import expand
from align.config.inputs import InputSpec
from align.config.row_checks import ROW_CHECKS, STATISTICS
from align.config.sections import Scorer
from align.config.source import parse_text
from align.config.sweep import spread_sweeps
from align.pipeline import inputs
from align.stages.registry import STAGES
from align.testing.tiny import tiny_causal_lm, tiny_reward_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/README.md"), *ROOT.glob("data_schemas/*.md")])
MAX_COLUMNS = 130
NOT_OURS = ("http://", "https://", "mailto:")

LINK = re.compile(r"\[(?P<text>[^\]\n]*(?:\n[^\]\n]*)?)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```(?P<language>[a-z]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r'(?:drop_reason=|RawProblem\(\s*|TemplateProblem\(\s*|empty_reason=|FieldProblem\([^,()]+, )"(\w+)"')

name_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> Iterator[str]:
    return (match["body"] for match in FENCE.finditer(page.read_text(encoding="utf-8")) if match["language"] == language)


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines of the bash blocks, as arguments, without where their text comes from and goes to; lines that end in a
    backslash are joined."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if arguments := list(itertools.takewhile(lambda part: part not in "<>|", shlex.split(line, comments=True))):
                yield arguments


def align_commands() -> list[list[str]]:
    every = [arguments[1:] for page in PAGES for arguments in commands(page) if arguments[0] == "align"]
    return [list(arguments) for arguments in dict.fromkeys(map(tuple, every))]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@name_of
def test_links_resolve(page: Path) -> None:
    for match in LINK.finditer(prose(page)):
        target, _, anchor = match["target"].partition("#")
        if match["target"].startswith(NOT_OURS):
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name}: {match['target']}"
        assert place.is_relative_to(ROOT), f"{page.name}: {match['target']} leaves the repository"
        if anchor:
            assert anchor in anchors(place), f"{page.name}: {match['target']} has no such heading"


@name_of
def test_names_in_links_to_code_exist(page: Path) -> None:
    for match in LINK.finditer(prose(page)):
        name = re.fullmatch(r"`(\w+)`", match["text"])
        if name and match["target"].endswith(".py") and not match["target"].startswith(NOT_OURS):
            code = (page.parent / match["target"]).read_text(encoding="utf-8")
            defined = rf"^\s*(?:def|class) {name[1]}\b|^{name[1]}\b\s*[:=]"
            assert re.search(defined, code, re.MULTILINE), f"{page.name}: {name[1]} is not in {match['target']}"


@name_of
def test_lines_are_short(page: Path) -> None:
    long = [
        number
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > MAX_COLUMNS and not line.startswith("|")
    ]
    assert long == [], f"{page.name}: longer than {MAX_COLUMNS} columns"


@name_of
def test_code_blocks_are_closed(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0


@pytest.mark.parametrize("arguments", align_commands(), ids=" ".join)
def test_command_lines_parse(arguments: list[str]) -> None:
    """Commands, options and what must be given are right. Nothing is run."""
    command: Any = get_command(app)
    context, rest = command.make_context("align", [], resilient_parsing=True), list(arguments)
    while hasattr(command, "get_command"):
        command = command.get_command(context, rest.pop(0))
        assert command is not None, f"align {' '.join(arguments)}: no such command"
    if "--help" not in rest:
        command.make_context(command.name, rest, parent=context)


RUNNABLE = [a for a in align_commands() if a[0] in ("run", "plan") and (ROOT / a[1]).exists()]


@pytest.fixture(scope="module")
def any_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With the context of a public model: the recipes' limits are checked against it.
    folder = tmp_path_factory.mktemp("hub")
    tiny_reward_model(folder / "reward_model", max_position_embeddings=8192)
    return tiny_causal_lm(folder / "model", max_position_embeddings=8192)


@pytest.mark.parametrize("arguments", RUNNABLE, ids=" ".join)
def test_runs_can_be_planned(
    arguments: list[str], any_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In place of the hub; tests/recipes runs those recipes.
    scores = any_model.with_name("reward_model")
    monkeypatch.setattr(inputs, "fetch_model", lambda name, *_, **__: (scores if "Reward" in name else any_model, "0" * 40))
    monkeypatch.chdir(ROOT)
    assert "--out" not in arguments
    code = main(["plan", *arguments[1:], "--out", str(tmp_path)])
    error = capsys.readouterr().err
    if "--only" in arguments or "--from" in arguments:
        assert code == 0 or "not among the chosen stages" in error
    else:
        assert (code, error) == (0, "")


FIRST_RECIPES = [a for a in align_commands() if a[0] == "init" and "--model" in a and "--data" in a]


@pytest.mark.parametrize("arguments", FIRST_RECIPES, ids=" ".join)
def test_what_init_commands_write_can_be_planned(
    arguments: list[str], any_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model in each folder that is named and in place of the hub, and with pairs in each file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "fetch_model", lambda *_, **__: (any_model, "0" * 40))
    given = dict(itertools.pairwise(arguments))
    place, data = Path(given["--model"]), Path(given["--data"])
    if place.parts[0][0].islower():  # an owner on the hub is written with a capital in our pages
        shutil.copytree(any_model, place)
    rows = [{"prompt": f"Prompt {number} of some", "chosen": "Yes.", "rejected": "No."} for number in range(40)]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)] if data.suffix == ".csv" else map(json.dumps, rows)
    data.write_text("\n".join(lines) + "\n")
    assert (main(arguments), capsys.readouterr().err) == (0, "")
    assert (main(["plan", arguments[1]]), capsys.readouterr().err) == (0, "")


def test_readme_has_three_commands_for_a_folder_and_for_the_hub() -> None:
    readme = list(commands(ROOT / "README.md"))
    firsts = [number for number, arguments in enumerate(readme) if arguments[:2] == ["align", "init"]]
    for first in firsts:
        name = readme[first][2]
        assert readme[first + 1 : first + 3] == [["align", "plan", name], ["align", "run", name]]
    assert [dict(itertools.pairwise(readme[first]))["--model"][0].islower() for first in firsts] == [True, False]


def test_cheap_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert main(["doctor"]) in (0, 4)
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "quickstart", "mine"]) == 0
    assert main(["plan", "mine"]) == 0


def test_commands_for_troubles_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the FAQ. Plans have a test of their own; the tutorial's test has a store for those that need one."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(ROOT / "recipes")
    Path("instructions.csv").write_text("Question,Answer\n" + "".join(f"What is {n}?,It is {n}.\n" for n in range(8)))
    for arguments in [arguments[1:] for arguments in commands(ROOT / "docs" / "faq.md") if arguments[0] == "align"]:
        if arguments[0] not in ("plan", "store"):
            code = main(arguments)
            output = capsys.readouterr()
            assert code == 0 or (arguments == ["doctor"] and code == 4), (arguments, output.err)
            assert output.out


def test_every_recipe_has_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line.split()) > 3, f"recipes/{line.split()[0]}/README.md does not begin with a sentence"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        named = [arguments[1:] for arguments in commands(page) if arguments[0] == "make"]
        named += [[target] for target in re.findall(r"`make (\w+)`", prose(page))]
        for target in (target for targets in named for target in targets):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_scripts_exist() -> None:
    for page in PAGES:
        for arguments in commands(page):
            if arguments[0] == "python":
                # A page may show the script itself, with its name in the first line.
                shown = any(text.startswith(f"# {arguments[1]}\n") for text in blocks(page, "python"))
                assert shown or (ROOT / arguments[1]).is_file(), f"{page.name}: {arguments[1]}"


@name_of
def test_recipe_snippets_are_valid(page: Path) -> None:
    """Every stage, input and scorer of the yaml blocks, against the models that read recipes."""
    for number, text in enumerate(blocks(page, "yaml"), start=1):
        value = parse_text(text, label=f"{page.name}, yaml block {number}").value
        written = value.get("stages") or {}
        inputs = list(value.get("inputs") or {})
        swept = spread_sweeps(value.get("sweep") or {}, written, inputs, STAGES, seed=17)
        assert swept.problems == []
        for stage in expand(swept.stages, inputs, STAGES).stages.values():
            fields = {key: field for key, field in stage.items() if key != "stage"}
            STAGES[stage["stage"]].config_type.model_validate(_with_rules(fields))
        for spec in (value.get("inputs") or {}).values():
            TypeAdapter(InputSpec).validate_python(spec)
        for scorer in (value.get("scorers") or {}).values():
            TypeAdapter(Scorer).validate_python(_with_rules(scorer))


def _with_rules(value: Any) -> Any:
    """The value with a rule in place of every path of a rule file."""
    if isinstance(value, dict) and isinstance(value.get("rules"), str):
        return {"rules": [{"type": "numeric_answer", "name": "any"}]}
    return {key: _with_rules(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_the_field_tables_are_those_of_the_code() -> None:
    script = load_script("build_docs")
    assert script.drifted(ROOT / "docs") == [], "run python scripts/build_docs.py"


def test_drift_of_the_field_tables_is_found(tmp_path: Path) -> None:
    script = load_script("build_docs")
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    (tmp_path / "recipe.md").write_text(text.replace("| `beta` |", "| `betta` |"), encoding="utf-8")
    assert "docs/recipe.md differs from the code" in script.drifted(tmp_path)
    assert "no page has <!-- fields: rule matches -->" in script.drifted(tmp_path)


def test_the_counts_of_faults_are_those_of_the_scripts() -> None:
    script, page = load_script("build_trust"), (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    assert script.rendered(page) == page, "run python scripts/build_trust.py"
    digits = page.replace("1", "2")
    assert script.rendered(digits) != digits


def test_every_drop_reason_and_finding_is_explained() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    sources = [path for folder in ("data", "formats", "rows", "selection") for path in ROOT.glob(f"align/{folder}/**/*.py")]
    reasons = {reason for path in sources for reason in REASON.findall(path.read_text(encoding="utf-8"))}
    assert len(reasons) > 20, "the pattern that finds the reasons no longer fits the code"
    assert sorted(reason for reason in {*reasons, *ROW_CHECKS, *STATISTICS} if f"`{reason}`" not in text) == []


def test_every_stage_has_a_page() -> None:
    for name in STAGES:
        page = ROOT / "docs" / f"{name}.md"
        assert page.exists(), f"docs/{name}.md"
        assert any(arguments[:3] == ["align", "stage", name] for arguments in commands(page))
        for section in ("## Formula", "## Implementation", "## Inputs, outputs, files", "## Metrics", "## Known limits"):
            assert section in page.read_text(encoding="utf-8") or name == "score", f"docs/{name}.md: {section}"
