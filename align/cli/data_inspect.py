"""`align data inspect`: look at a data file before training on it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from align.cli.data_options import (
    GuessedKindOption,
    MaxTokensOption,
    ModelOption,
    SourceArgument,
    located,
    open_model_format,
    require_model,
)
from align.cli.options import ChatOption, ColumnsOption, JsonOption, column_mapping, output_console, print_json
from align.errors import RecipeError
from align.rows import PROMPTS

if TYPE_CHECKING:
    from align.report.dataset.tokens import TrainingView

PAGE_SUFFIXES = (".html", ".htm")


def inspect(
    context: typer.Context,
    source: SourceArgument,
    kind: GuessedKindOption = None,
    columns: ColumnsOption = None,
    model: ModelOption = None,
    chat: ChatOption = None,
    max_tokens: MaxTokensOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="FILE", help="Evaluation prompts that the rows must not contain. Repeatable."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report with drawings as a page.")] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="INTEGER", min=0, help="Rows to show.")] = 20,
    seed: Annotated[int, typer.Option("--seed", metavar="INTEGER", min=0, help="Seed of the drawn rows.")] = 17,
    json: JsonOption = False,
) -> None:
    """Show what is in a data file.

    Prints rows, lengths, how varied the texts are, what length alone explains, overlaps, and samples.

    Warnings come first, worst first. Nothing is changed. With --model: tokens, and samples with the tokens the loss is taken on.
    """
    require_model(model, max_tokens, chat)
    if html is not None and html.suffix not in PAGE_SUFFIXES:
        raise RecipeError(
            f"--html {html}: expected a name that ends in .html", hint="This protects your data files from being overwritten."
        )
    from rich.console import Console

    from align.config.inputs import DataInput
    from align.data.source import find_source
    from align.data.validation.kind import guess_kind
    from align.report.dataset.collect import inspect_source
    from align.report.dataset.finding import findings
    from align.report.dataset.html import write_page
    from align.report.dataset.terminal import dataset_report

    spec = DataInput(kind=(kind or PROMPTS).name, path=source, columns=column_mapping(columns))
    # DataInput needs a kind, and finding the files does not depend on it: PROMPTS stands in until the columns are read.
    if kind is None:
        spec = spec.model_copy(update={"kind": guess_kind(find_source(spec, located)).name})
    training = None if model is None else _training_view(model, chat, max_tokens)
    with Console(stderr=True).status(f"reading {source} …"):  # seen on a terminal only
        facts = inspect_source(spec, against=against or [], training=training, samples=samples, seed=seed, locate=located)
    if html is not None:
        write_page(html, facts, training, command=shlex.join(context.obj or ["align", "data", "inspect", source]))
    if json:
        print_json(facts.as_json() | {"notices": [vars(finding) for finding in findings(facts)]})
    else:
        console = output_console()
        console.print(dataset_report(facts, training))
        if html is not None:
            console.print(f"\nThe page: {html}")


def _training_view(model: Path, chat: str | None, max_tokens: int | None) -> TrainingView:
    from align.report.dataset.tokens import TrainingView

    name, chat_format, context_tokens = open_model_format(model, chat)
    return TrainingView(chat_format, model=name, limit=max_tokens or context_tokens)
