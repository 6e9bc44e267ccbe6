"""What to do about a command line that cannot be understood: a command, an option or a value that was not meant so."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import AlignError, RecipeError
from align.system_errors import forbidden
from align.visible import visible

if TYPE_CHECKING:
    # Typer vendors click and has no public name for these types.
    from typer._click.exceptions import UsageError

RECIPE_COMMANDS = ("run", "plan")
STAGE_PLACE = "STAGE"
"""In place of a stage's name, where the recipe is not known."""


def usage_error(error: UsageError, arguments: Sequence[str]) -> AlignError:
    """The message for an error of the command line.

    Args:
        error: what the parser raised.
        arguments: the command line.
    """
    context: Any = error.ctx
    path = context.command_path if context else "align"
    message = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    if message.startswith("No such command") and context is not None:
        name = message.partition("'")[2].rpartition("'")[0].partition("'")[0]
        return RecipeError(f"{path}: there is no command '{name}'", hint=_command_meant(name, context))
    if message.startswith("No such option") and option and context is not None:
        return RecipeError(f"{path}: there is no option {option}", hint=_option_meant(option, context, arguments))
    if "did you mean" in message:
        return RecipeError(f"{path}: {message[:1].lower()}{message[1:]}")
    if message.endswith("is not readable"):
        place = message.partition(": ")[2].partition("'")[2].rpartition("'")[0]
        return forbidden(Path(place))
    hint = f"{path} --help shows what it takes."
    if message.startswith("Got unexpected extra argument"):
        hint = _extra_meant(message.rpartition("(")[2].rstrip(")").split()[0], path, arguments) or hint
    elif message.startswith("Missing option") and context is not None:
        hint = _with_option(message.partition("'")[2].rstrip("'"), context, arguments) or hint
    elif message.startswith("Missing argument 'RECIPE'"):
        hint = f"For example: {path} quickstart; align recipes list shows the recipes that come with align."
    return RecipeError(f"{path}: {message[:1].lower()}{message[1:]}", hint=hint)


def _command_meant(name: str, context: Any) -> str:
    from align.config.names import MISSPELT, by_likeness, nearest, unknown_stage_type
    from align.config.other_tools import words_for
    from align.config.shipped import SHIPPED_RECIPES, by_name, recipes_in

    known = context.command.list_commands(context)
    group = context.command_path.partition(" ")[2]
    if group == "stage" and words_for("stages", name):
        return unknown_stage_type(name, known).partition("; ")[2]
    if near := nearest(name, known, likeness=MISSPELT):
        return f"Did you mean '{near}'?"
    words = [word for word in words_for("commands", name) if group in word.commands or (not group and not word.commands)]
    if words or (words := [] if group else _misspelt("commands", name)):
        return words[0].note.replace("$", name.replace("-", "_"))
    if not group and (
        Path(name).suffix in (".yaml", ".yml") or Path(name).exists() or by_name(name, recipes_in(SHIPPED_RECIPES))
    ):
        return f"Did you mean 'align run {name}'?"
    if near := nearest(name, known):
        return f"Did you mean '{near}'?"
    if words := words_for("commands", name):
        return words[0].note.replace("$", name)
    return f"There is: {', '.join(by_likeness(name, known))}"


def _misspelt(part: str, name: str) -> list[Any]:
    from align.config.names import nearest
    from align.config.other_tools import all_words, words_for

    near = nearest(name, all_words(part), likeness=0.8)
    return words_for(part, near) if near else []


def _option_meant(option: str, context: Any, arguments: Sequence[str]) -> str:
    from align.config.names import MISSPELT, by_likeness, nearest, unknown_key
    from align.config.names import Place as Section
    from align.config.other_tools import plain, words_for

    command = context.info_name or ""
    known = [name for parameter in context.command.get_params(context) for name in parameter.opts if name.startswith("--")]
    bare = option.lstrip("-")
    as_option = f"--{plain(bare).replace('_', '-')}" if len(bare) > 1 else option
    if as_option in known:
        return f"Did you mean {as_option}?"
    if plain(bare) in _positional(context):
        return f"Write it without an option: {context.command_path} {_value_after(option, arguments)}"
    for word in words_for("options", option) or words_for("options", as_option):
        proposed = word.note.split()[0].rstrip(",")
        fits = not proposed.startswith("--") or proposed in known  # run's --until is no advice on another command
        if fits and (not word.commands or command in word.commands):
            return word.note.replace("$", command)
    if command in RECIPE_COMMANDS and len(bare) > 1 and (text := _as_override(plain(bare), option, arguments)):
        return text
    if near := nearest(as_option, known, likeness=MISSPELT):
        return f"Did you mean {near}?"
    # An option of a stage is a field of its configuration; words of other tools are known for those.
    fields = {name[2:].replace("-", "_"): name for name in known}
    meant = unknown_key(plain(bare), {}, list(fields), Section(), None)
    if meant.key:
        return f"Did you mean {fields[meant.key]}?"
    words = words_for("keys", bare)
    if words and (note := words[0].note_on(plain(bare), None)):
        return f"There is none like it. {note}"
    if near := nearest(as_option, known):
        return f"Did you mean {near}?"
    return f"There is: {', '.join(by_likeness(as_option, known))}"


def _as_override(key: str, option: str, arguments: Sequence[str]) -> str:
    """`--set stages.sft.learning_rate=1e-4` for `--lr 1e-4`, with the stages of the recipe if it can be read."""
    from align.config.names import nearest
    from align.config.other_tools import words_for
    from align.config.override import paths_meant
    from align.config.shipped import recipe_file
    from align.config.source import read_document
    from align.stages.registry import STAGES

    value = _value_after(option, arguments)
    fields = {name for stage_type in STAGES.values() for name in stage_type.config_type.model_fields}
    targets = [key, *(here for word in words_for("keys", key) for here in word.here)]
    target = next((here for here in targets if here.partition(".")[0] in fields), None) or nearest(key, fields, likeness=0.8)
    others = [here for here in dict.fromkeys(targets) if here.partition(".")[0] in fields and here != target]
    if key in ("seed", "name"):
        return f"--set {key}={value}"
    if target is None:
        return ""
    paths: list[str] = []
    for argument in arguments[1:]:
        try:
            document = read_document(recipe_file(argument))
        except RecipeError:
            continue
        if isinstance(document.value, dict):
            # A recipe may have the key of the first only in stages that have other ones.
            meant = (paths_meant(document, [name], STAGES) for name in (target, *others))
            paths = [".".join(map(str, path)) for path in next(filter(None, meant), [])]
        break
    return " or ".join(f"--set {path}={value}" for path in paths or [f"stages.{STAGE_PLACE}.{target}"])


def _value_after(option: str, arguments: Sequence[str]) -> str:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and index + 1 < len(arguments) and not arguments[index + 1].startswith("--"):
            return arguments[index + 1]
    return "…"


def _positional(context: Any) -> list[str]:
    parameters = context.command.get_params(context)
    return [parameter.name for parameter in parameters if parameter.param_type_name == "argument"]


def _with_option(option: str, context: Any, arguments: Sequence[str]) -> str:
    """`align export model --to out` for `align export model out`."""
    path = context.command_path.split()
    given = arguments[len(path) - 1 :]
    if (
        option not in ("--to", "--out")
        or len(given) != len(_positional(context)) + 1
        or any(argument.startswith("-") for argument in given)
    ):
        return ""
    return f"Did you mean {' '.join((*path, *given[:-1], option, given[-1]))}?"


def _extra_meant(extra: str, path: str, arguments: Sequence[str]) -> str:
    if path.rpartition(" ")[2] not in RECIPE_COMMANDS:
        return ""
    *_, before, option = ("", "", *arguments[: arguments.index(extra)]) if extra in arguments else ("", "")
    if before == "--set":
        key = option
        return f"KEY=VALUE has an equals sign: --set {key}={extra}"
    if extra.lower() in ("true", "false") and option.startswith("--"):
        return f"{option} takes no value."
    if "=" in extra:
        return f"Did you mean --set {extra.removeprefix('+')}?"
    return f"One recipe at a time; a stage of it is --only {extra if '.' not in extra else STAGE_PLACE}."


def print_error(text: str) -> None:
    """Print an error on stderr; on a terminal, lines break between words. A value in it controls no terminal."""
    text = visible(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = wrapped(text, width)
    print(text, file=sys.stderr)


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` columns; paths and names stay whole, and what goes on is indented."""
    wrap = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(line for long in text.splitlines() for line in (wrap.wrap(long) or [""]))
