"""`align stage NAME`: one stage, without a recipe.

The options come from the stage's configuration. They become a recipe of one stage, which is read like any other.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer._click.shell_completion import CompletionItem
from typer.core import TyperGroup
from typer.main import get_command

from align.cli import complete
from align.cli.options import ChatOption, JsonOption, MachineOption
from align.written import Option, advise_options

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    # Typer vendors click and has no public name for these types of its groups' methods.
    from typer._click import Command, Context

    from align.stage import StageConfig

MAX_METAVAR = 40
"""Of a longer one, the line would not fit a terminal."""
MODEL_KINDS = ("model", "reward_model")
OutFolderOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for the result.")]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="FIELD=COLUMN", help="Where a column of a data file has another name. Repeatable."),
]
COMMON_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "seed": (Annotated[int, typer.Option("--seed", metavar="INTEGER", help="Seed of the run.")], 17),
    "columns": (ColumnsOption, None),
    "chat": (ChatOption, None),
    "machine": (MachineOption, None),
    "json": (JsonOption, False),
}


class StageGroup(TyperGroup):
    """A command per stage type. Each is built on use: loading all configurations is slow."""

    def list_commands(self, ctx: Context) -> list[str]:
        from align.stages.registry import STAGES

        return list(STAGES)

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name, help=text) for name, text in complete.stage_types(incomplete)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        from align.stages.registry import STAGES

        if cmd_name not in STAGES:
            # Typer's "did you mean" searches self.commands.
            self.commands = {name: _command(name, stage_type.config_type) for name, stage_type in STAGES.items()}
            return None
        return _command(cmd_name, STAGES[cmd_name].config_type)


app = typer.Typer(cls=StageGroup, help="Run one stage, without a recipe.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _stage() -> None:
    """Run one stage, without a recipe."""


Options = Mapping[str, tuple[Any, Any]]
"""Annotation and default of every parameter of a command; the default `...` means required."""
Call = Callable[[Mapping[str, Any], list[str]], None]
"""Runs a command from its parameters and the command line."""


def _command(name: str, config_type: type[StageConfig]) -> Command:
    """The command of one stage type."""
    options = {**field_options(config_type), "out": (OutFolderOption, ...), **COMMON_OPTIONS}
    return build_command(name, f"{inspect.getdoc(config_type)}", options, partial(_run_stage, name, config_type))


def build_command(name: str, help_text: str, options: Options, call: Call) -> Command:
    """A command whose parameters are data instead of a function's signature."""
    single = typer.Typer(rich_markup_mode=None, add_completion=False)
    single.command(name, help=help_text)(_function(options, call))
    return get_command(single)


def field_options(config_type: type[StageConfig], *, leave_out: Collection[str] = ()) -> Options:
    """An option per field of a stage's configuration, required ones first."""
    from align.strict import field_docstrings

    required_first = sorted(config_type.model_fields.items(), key=lambda item: not item[1].is_required())
    # The seed of the stages is the seed of the run, which has an option already.
    texts = field_docstrings(config_type)
    return {
        field: _option(field, info, texts.get(field, ""))
        for field, info in required_first
        if field != "seed" and field not in leave_out
    }


def _function(options: Options, call: Call) -> Callable[..., None]:
    """A function with a parameter per option: Typer builds a command from a signature only."""

    def command(context: typer.Context, **given: Any) -> None:
        call(given, context.obj)

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter, (annotation, default) in options.items():
        default = inspect.Parameter.empty if default is ... else default
        parameters.append(inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default))
    # Typer reads names and defaults from the signature, and types from __annotations__.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _option(field: str, info: FieldInfo, text: str) -> tuple[Any, Any]:
    """Annotation and default of a field's option; `...` means required.

    Values are text and are parsed as in a recipe, so that a wrong one gives the same message.
    """
    from align.config.reference import is_reference, kinds_of
    from align.config.shape import is_list, is_mapping, members

    alternatives = members(info.annotation)
    flag = f"--{field.replace('_', '-')}"
    repeated = any(is_list(alternative) or is_mapping(alternative) for alternative in alternatives)
    help_text = _help(info, text, repeated=repeated)
    if alternatives == (bool,):
        option = typer.Option(f"{flag}/--no-{field.replace('_', '-')}", help=help_text, show_default=False)
        return Annotated[bool | None, option], None
    if repeated:
        metavar = _repeated_metavar(alternatives)
    elif is_reference(alternatives[0]):
        metavar = "FILE" if not set(kinds_of(alternatives[0])) & {*MODEL_KINDS, "candidates", "scored_candidates"} else "FOLDER"
    else:
        words = {int: ("INTEGER",), float: ("NUMBER",), bool: ("true", "false")}
        choices = [str(word) for kind in alternatives for word in get_args(kind) or words.get(kind, ("TEXT",))]
        metavar = "|".join(choices)
        if len(metavar) > MAX_METAVAR:
            metavar, help_text = field.upper(), f"{help_text} One of {', '.join(choices)}."
    option = typer.Option(flag, metavar=metavar, help=help_text, show_default=False)
    if info.is_required():
        return Annotated[list[str] if repeated else str, option], ...
    return Annotated[list[str] | None if repeated else str | None, option], None


def _repeated_metavar(alternatives: tuple[Any, ...]) -> str:
    """The form of one value of a repeatable option."""
    from align.config.shape import is_list, is_mapping, members

    collection = next(alternative for alternative in alternatives if is_list(alternative) or is_mapping(alternative))
    entries = members(get_args(collection)[-1])
    if is_mapping(collection) and is_list(entries[0]):
        return "NAME=MODEL,…"
    if is_mapping(collection) and entries[0] in (int, float):
        return "NAME=NUMBER"
    return {(int,): "INTEGER", (float,): "NAME=NUMBER"}.get(entries, "NAME=PATH")


def _help(info: FieldInfo, text: str, *, repeated: bool) -> str:
    """The docstring under the field, with its default as a recipe would write it."""
    default = info.default
    if isinstance(default, bool):
        default = "true" if default else "false"
    shown = "" if info.is_required() or default is None else f"  [default: {default}]"
    return f"{text}{' Repeatable.' if repeated else ''}{shown}"


def option_words(config_type: type[StageConfig]) -> Mapping[str, Option]:
    """The option for each field, for messages."""
    from align.config.shape import members

    options = {}
    for field, info in config_type.model_fields.items():
        kinds = members(info.annotation)
        words = [word for kind in kinds for word in get_args(kind) if isinstance(word, str)]
        words += ["true", "false"] if bool in kinds else []
        options[field] = Option(kinds == (bool,), tuple(words), bool({int, float} & {*kinds}))
    return options


def _run_stage(name: str, config_type: type[StageConfig], given: Mapping[str, Any], command: list[str]) -> None:
    from align.cli.run import run_and_print
    from align.cli.stage_recipe import StageRequest
    from align.config.machine_file import read_machine_settings
    from align.config.recipe import parse_document
    from align.stages.registry import STAGES

    out: Path = given["out"]
    request = StageRequest(name, config_type, out=out, seed=given["seed"], columns=given["columns"] or (), chat=given["chat"])
    for field in config_type.model_fields:
        # What was not given stays out of the recipe, so that the stage's own default holds.
        if field != "seed" and given[field] is not None and given[field] != []:
            request.set_field(field, given[field])
    with advise_options(option_words(config_type)):
        recipe = parse_document(request.finish(), path=Path(f"align stage {name}"), folder=Path(), stage_types=STAGES)
        machine_file = read_machine_settings(given["machine"], recipe.folder, os.environ)
        store = out / ".store"  # a single stage keeps its store in its own folder; only runs of recipes share one
        run_and_print(recipe, out.parent, store=store, machine_file=machine_file, command=command, json=given["json"])
