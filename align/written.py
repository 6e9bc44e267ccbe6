"""Texts about settings, in the words of somebody who has written options of a command line and no recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from align.errors import AlignError

_PATH = re.compile(r"\b(?P<section>stages|inputs)\.[\w-]+\.(?P<field>\w+)(?P<inner>(?:\.\w+)*)")
"""A path in a recipe: `stages.dpo.beta`, `inputs.data.columns.prompt`."""
_INPUT_OPTIONS = ("chat", "columns", "on_invalid")
"""Keys of inputs that are options; the others, such as `path`, are the value of the option that the input is for."""
_AFTER_VERB = r"(?P<verb>\b(?:[Ll]ower|[Rr]aise|[Ss]et|[Ll]eave|[Cc]hange) )"
_NUMBER = r"[-+]?[\d.,]*\d(?:e[-+]?\d+)?"


@dataclass(frozen=True)
class Option:
    """The option for a field of a stage."""

    is_flag: bool = False
    """Whether it is --x and --no-x."""
    words: tuple[str, ...] = ()
    """Words that it takes."""
    takes_numbers: bool = False


_OPTIONS: ContextVar[Mapping[str, Option] | None] = ContextVar("options", default=None)


@contextmanager
def advise_options(options: Mapping[str, Option]) -> Iterator[None]:
    """Errors that leave this context name options; `options` has one by each field of the stage."""
    token = _OPTIONS.set(options)
    try:
        yield
    except AlignError as error:
        error.message = as_options(error.message, options)
        error.hint = error.hint and as_options(error.hint, options)
        raise
    finally:
        _OPTIONS.reset(token)


def for_options() -> bool:
    """Whether advice is about options."""
    return _OPTIONS.get() is not None


def rewording() -> Callable[[str], str]:
    """What rewrites texts of this context, also in other threads; without options it changes nothing."""
    options = _OPTIONS.get()
    return (lambda text: text) if options is None else (lambda text: as_options(text, options))


def mapped_columns(mapping: Mapping[str, str]) -> str:
    """`columns: {prompt: Q}`."""
    return f"columns: {{{', '.join(f'{field}: {column}' for field, column in mapping.items())}}}"


def as_options(text: str, options: Mapping[str, Option]) -> str:
    """A text about a recipe's keys, about options: `set precision: float32` becomes `set --precision float32`."""
    return "\n".join(_line(line, options) for line in text.splitlines())


def _line(line: str, options: Mapping[str, Option]) -> str:
    line = re.sub(rf"(?P<label>^--[^:]*(?:\{{.*\}})?): {_PATH.pattern}: ", _without_path, line)
    line = re.sub(rf": {_PATH.pattern}(?=: )", lambda found: f": {_named(found)}" if _named(found) else "", line)
    line = re.sub(r": (?:stages|inputs)\.[\w-]+(?=: )", "", line)  # the command has one stage
    line = _PATH.sub(lambda found: _named(found) or found[0], line)
    line = re.sub(r"(?<![-\w])columns: \{(?P<pairs>[^}]*)\}", _mapped, line)
    for field, option in {**options, "chat": Option()}.items():
        line = _field_named(line, field, option)
    return line


def _field_named(line: str, field: str, option: Option) -> str:
    # Names in quotes, of files, and behind -- are none of a key.
    name, bare = _flag(field), rf"(?<![-\w./']){field}"
    values = "|".join([*map(re.escape, (*option.words, "…")), *([_NUMBER] if option.takes_numbers else [])])
    line = re.sub(rf"{bare}: (?P<value>{values})(?!\w)", lambda found: _given(name, option, found["value"]), line)
    line = re.sub(rf"{bare}: (?P<value>\{{[^`]*\}})", rf"{name} '\g<value>'", line)
    # A field of one word is a word of English too.
    before = "(?P<verb>)" if "_" in field else _AFTER_VERB
    return re.sub(rf"{before}{bare}\b(?!['/.]\w|=|_)", rf"\g<verb>{name}", line)


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _without_path(found: re.Match[str]) -> str:
    """`--chat {…}: thinking: ` for `--chat {…}: inputs.model.chat.thinking: `, since the option is named already."""
    inner = found["inner"].lstrip(".")
    return f"{found['label']}: {inner}: " if inner and found["field"] not in ("columns", "artifact") else f"{found['label']}: "


def _named(found: re.Match[str]) -> str:
    if found["section"] == "inputs" and found["field"] not in _INPUT_OPTIONS:
        return ""
    return f"{_flag(found['field'])}{found['inner'].replace('.', ' ')}"


def _mapped(found: re.Match[str]) -> str:
    """`--columns prompt=Q` for `columns: {prompt: Q}`."""
    pairs = (pair.partition(":") for pair in found["pairs"].split(","))
    return " ".join(f"--columns {field.strip()}={column.strip()}" for field, _, column in pairs)


def _given(name: str, option: Option, value: str) -> str:
    if option.is_flag and value in ("true", "false"):
        return name if value == "true" else f"--no-{name[2:]}"
    return f"{name} {value}"
