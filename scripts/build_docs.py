"""Write the field tables of docs/ from the configuration models, between markers such as `<!-- fields: sft -->`.

    python scripts/build_docs.py            write
    python scripts/build_docs.py --check    exit 1 and name what differs from the code

A meaning is the docstring under the field; a default and its bounds are those of the model.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from align.config import chat, form, inputs, judge, machine, peft, rules, sections
from align.config.base import StrictModel, execution_fields
from align.config.explain import describe, kind_phrase
from align.config.other_tools import table as table_of_words
from align.config.shape import members, reference_kinds
from align.stages.registry import STAGES, StageType
from align.strict import field_docstrings

LINE_COLUMNS = 130
FOLDER = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"(<!-- fields: (?P<name>[a-z_ ]+) -->\n).*?(<!-- /fields -->\n)", re.DOTALL)

MODELS: dict[str, type[BaseModel]] = {
    "input model": inputs.ModelInput,
    "chat": chat.ChatSettings,
    "input data": inputs.DataInput,
    "input artifact": inputs.ArtifactInput,
    "sweep": form.Sweep,
    "machine training": machine.TrainingProcesses,
    "machine sampling": machine.SamplingEngines,
    "machine schedule": machine.Schedule,
    "machine ray": machine.RayCluster,
    "judge": judge.Judge,
    "ensemble": sections.EnsembleScorer,
    "peft lora": peft.Lora,
    "peft virtual_tokens": peft.VirtualTokens,
    "rule matches": rules.MatchesRule,
    "rule avoids": rules.AvoidsRule,
    "rule contains_reference": rules.ContainsReferenceRule,
    "rule matches_field": rules.MatchesFieldRule,
    "rule names_no_other": rules.NamesNoOtherRule,
    "rule echo": rules.EchoRule,
    "rule word_pairs": rules.WordPairsRule,
    "rule length": rules.LengthRule,
    "rule repetition": rules.RepetitionRule,
    "rule numeric_answer": rules.NumericAnswerRule,
    "rule choice_answer": rules.ChoiceAnswerRule,
    "rule expression": rules.ExpressionRule,
    "rule math_answer": rules.MathAnswerRule,
    "rule instructions": rules.InstructionsRule,
    "rule json": rules.JsonRule,
    "rule language": rules.LanguageRule,
}
WORD_TABLES = {"other tools keys": "keys", "other tools stages": "stages"}
BOUNDS = {
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Lt: ("lt", "<"),
    annotated_types.Le: ("le", "≤"),
}


def type_text(info: FieldInfo) -> str:
    """What the field may be, with its bounds: `a number, > 0`."""
    choices = [constraint.describe() for constraint in info.metadata if isinstance(constraint, inputs.OneOf)]
    parts = choices or [describe(members(info.annotation))]
    for constraint in info.metadata:
        if type(constraint) in BOUNDS:
            attribute, sign = BOUNDS[type(constraint)]
            parts.append(f"{sign} {getattr(constraint, attribute):,}")
        elif isinstance(constraint, annotated_types.MinLen):
            parts.append("not empty")
    return ", ".join(parts)


def default_text(info: FieldInfo) -> str:
    """The default as a recipe would write it."""
    if info.is_required():
        return "required"
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def cell(text: str) -> str:
    """Text that a Markdown table cell shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def rows(model: type[BaseModel]) -> Iterator[str]:
    """Rows of a table: what must be given, then the model's own fields, then those it shares with others."""

    # A rule that a stage's configuration takes over is no StrictModel, and a pairwise objective stands in the stage's own file:
    # their fields are the stage's own.
    def is_shared(base: type) -> bool:
        return issubclass(base, StrictModel) and not base.__module__.startswith(("align.stages", "align.training"))

    shared = {name for base in model.__mro__[1:] if is_shared(base) for name in base.__annotations__}
    order = sorted(model.model_fields.items(), key=lambda item: (not item[1].is_required(), item[0] in shared))
    texts = field_docstrings(model)
    for name, info in order:
        meaning = texts.get(name) or inspect.getdoc(model) or ""
        yield f"| `{name}` | {cell(type_text(info))} | {default_text(info)} | {cell(meaning)} |"


def table(model: type[BaseModel]) -> str:
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows(model)])


def stage_text(stage: StageType) -> str:
    """What a stage takes and makes, its fields, and those that do not enter its fingerprint."""
    taken = ", ".join(sorted(kind_phrase(kind) for kind in reference_kinds(stage.config_type)))
    text = f"Takes: {taken}. Makes: {kind_phrase(stage.produces)}.\n\n{table(stage.config_type)}"
    if outside := sorted(execution_fields(stage.config_type)):
        listed = f"Not in the fingerprint: {', '.join(f'`{name}`' for name in outside)}."
        text += "\n\n" + textwrap.fill(listed, LINE_COLUMNS, break_on_hyphens=False)
    return text


TOOLS = ("TRL", "transformers", "peft", "axolotl", "LLaMA-Factory", "OpenRLHF", "verl", "torchtune", "vLLM", "DeepSpeed")


def words_of_tools(part: str) -> str:
    """Every word of another tool, in the order of the file, with the name here and what else to know."""
    lines = ["| elsewhere | here | notes |", "|---|---|---|"]
    for word in table_of_words()[part]:
        tools: dict[str, list[str]] = {}
        for tool in TOOLS:
            for name in word.words.get(tool, ()):
                tools.setdefault(name, []).append(tool)
        if tools:
            elsewhere = ", ".join(f"`{name}` ({', '.join(of)})" for name, of in tools.items())
            example = f"`{word.write}`. " if word.write else ""
            here = "–" if word.missing and part == "stages" else ", ".join(f"`{name}`" for name in word.here) or "–"
            row = f"| {cell(elsewhere)} | {here} | {cell((example + word.note).strip())} |"
            lines.append(row)
    return "\n".join(lines)


def block(name: str) -> str:
    """The text between the markers of `name`."""
    if name in WORD_TABLES:
        return words_of_tools(WORD_TABLES[name])
    return stage_text(STAGES[name]) if name in STAGES else table(MODELS[name])


def rendered(text: str) -> str:
    """A page with every block made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match['name'])}\n{match[3]}", text)


def drifted(folder: Path) -> list[str]:
    """Pages that differ from the code, and models that no page shows."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    shown = {match["name"] for text in pages.values() for match in BLOCK.finditer(text)}
    missing = [f"no page has <!-- fields: {name} -->" for name in [*STAGES, *MODELS, *WORD_TABLES] if name not in shown]
    return [f"docs/{name} differs from the code" for name, text in pages.items() if rendered(text) != text] + missing


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the field tables of docs/ from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page differs from the code")
    if parser.parse_args().check:
        problems = drifted(FOLDER)
        for problem in problems:
            print(f"{problem}; run python scripts/build_docs.py", file=sys.stderr)
        return 1 if problems else 0
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if rendered(text) != text:
            path.write_text(rendered(text), encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
