"""Arguments and options that the commands of `align data` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from align.cli import complete
from align.cli.options import with_chat
from align.errors import RecipeError
from align.rows import DataKind, data_kinds

if TYPE_CHECKING:
    from align.data.template import ChatFormat


SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="A data file, a folder of them, or a glob in quotes.")]
_KINDS = f"<{'|'.join(data_kinds())}>"


def _kind(name: str) -> DataKind[Any]:
    if name not in data_kinds():
        from align.config.names import nearest
        from align.config.other_tools import value_here

        meant = value_here("kind", name) or nearest(name, data_kinds())
        proposal = f"; did you mean '{meant}'?" if meant in data_kinds() else ""
        raise typer.BadParameter(f"'{name}' is not one of {', '.join(data_kinds())}{proposal}")
    return data_kinds()[name]


KindOption = Annotated[
    DataKind[Any], typer.Option("--kind", parser=_kind, metavar=_KINDS, help="What a row holds.", autocompletion=complete.kinds)
]
GuessedKindOption = Annotated[
    DataKind[Any] | None,
    typer.Option(
        "--kind",
        parser=_kind,
        metavar=_KINDS,
        help="What a row holds; guessed from the columns where they leave no doubt.",
        autocompletion=complete.kinds,
    ),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", metavar="MODEL", help="Show the rows as the training of this model sees them.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        metavar="INTEGER",
        min=1,
        help="With --model: report rows that are longer.  [default: the model's context]",
        show_default=False,
    ),
]


def located(written: str) -> Path:
    """The path that a user wrote, with ~ as the home folder."""
    return Path(written).expanduser()


class ModelFormat(NamedTuple):
    """The format in which a model sees rows."""

    name: str
    chat_format: ChatFormat
    context_tokens: int


def require_model(model: Path | None, max_tokens: int | None, chat: str | None) -> None:
    """Refuse --max-tokens and --chat without --model: nothing else can count tokens, or has conversations."""
    if max_tokens is not None and model is None:
        raise RecipeError("--max-tokens needs --model, whose tokenizer counts the tokens")
    if chat is not None and model is None:
        raise RecipeError("--chat needs --model, whose conversations it is about")


def open_model_format(model: Path, chat: str | None) -> ModelFormat:
    """Load the tokenizer of a stage's or a model's folder.

    Raises:
        RecipeError, EnvironmentProblem: see `find_source`, `with_chat` and `load_format`.
    """
    from align.pipeline.worker import prepare_process

    prepare_process()  # before transformers is imported: no network, no telemetry, no warnings
    from align.export.source import find_source
    from align.models.chat_format import load_format

    found = find_source(model)
    chat_format = load_format(with_chat(found.folder, chat), where=str(model))
    return ModelFormat(found.name, chat_format, found.folder.context_tokens)
