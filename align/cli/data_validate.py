"""`align data validate`: check a data file before training on it."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
from align.cli.options import ChatOption, ColumnsOption, JsonOption, column_mapping, output_console
from align.config.row_checks import Action, check_actions
from align.errors import DataError, RecipeError
from align.rows import TEXT, DataKind

if TYPE_CHECKING:
    from align.data.source import Source
    from align.data.validation.scan import RecordChecks
    from align.data.validation.summary import Problem

PROGRESS_SECONDS = 1.0


def validate(
    source: SourceArgument,
    kind: GuessedKindOption = None,
    columns: ColumnsOption = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            "--check", metavar="NAME=ACTION", help="error, drop or keep for one check: repeated_rows=error. Repeatable."
        ),
    ] = None,
    model: ModelOption = None,
    chat: ChatOption = None,
    max_tokens: MaxTokensOption = None,
    max_characters: Annotated[
        int, typer.Option("--max-characters", metavar="INTEGER", min=1, help="Report longer texts.")
    ] = 100_000,
    near_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--near-duplicates/--no-near-duplicates",
            help="Search for rows that are almost equal.  [default: up to 200,000 rows]",
            show_default=False,
        ),
    ] = None,
    max_shown: Annotated[
        int, typer.Option("--max-shown", metavar="INTEGER", min=0, help="Problems to show one by one; 0 for all.")
    ] = 20,
    json: JsonOption = False,
) -> None:
    """Report every problem with the rows of a file. Each comes with its line and what to do about it; nothing is changed.

    Ends with exit code 3 when a recipe would stop at these rows.
    """
    require_model(model, max_tokens, chat)
    checks = _actions(check or [], with_model=model is not None)
    from align.config.inputs import DataInput
    from align.data.source import find_source
    from align.data.validation import RowRules, validate_source
    from align.data.validation.kind import guess_kind
    from align.report.validation import closing_lines, problem_json, problem_line, summary_json, summary_table

    mapping = column_mapping(columns)
    spec = DataInput(kind=(kind or TEXT).name, path=source, columns=mapping)
    found = find_source(spec, located)
    # "error", because this command reports what would stop a recipe; --check changes single checks.
    rules = RowRules(kind or guess_kind(found, max_characters), max_characters, "error", checks)
    shown = 0

    def show(problem: Problem) -> None:
        nonlocal shown
        if max_shown and shown >= max_shown:
            return
        if json:
            separator = ",\n " if shown else '{"problems": [\n '
            sys.stdout.write(separator + json_module.dumps(problem_json(problem), ensure_ascii=False))
        else:
            print(problem_line(problem))
        shown += 1

    progress = RowProgress()
    summary = validate_source(
        found,
        rules,
        on_problem=show,
        model_checks=None if model is None else _model_checks(model, chat, max_tokens),
        near_duplicates=near_duplicates,
        on_progress=progress,
    )
    progress.end()
    if json:
        sys.stdout.write("" if shown else '{"problems": [')
        # The document was begun by hand, because problems are written as they are found: a file may have millions of them. So
        # the summary goes in without its opening brace.
        rest = json_module.dumps(summary_json(summary), ensure_ascii=False, indent=1, allow_nan=False)
        sys.stdout.write(f"],\n {rest[1:].lstrip()}\n")
    else:
        hidden = sum(tally.count for tally in summary.problems.values()) - shown
        if hidden:
            print(f"… and {hidden:,} more (--max-shown 0 shows all)")
        if shown:
            print()
        console = output_console()
        table = summary_table(summary)
        if table is not None:
            console.print(table)
            print()
        for line in closing_lines(summary):
            print(line)
        if kind is not None and not summary.rows_out and (other := _other_kind(found, kind, max_characters)):
            print(f"this looks like {other}: write --kind {other}")
    if not summary.usable:
        raise typer.Exit(DataError.exit_code)


def _actions(pairs: list[str], *, with_model: bool) -> dict[str, Action]:
    """Parse `repeated_rows=drop` into check → action."""
    actions: dict[str, Action] = {}
    for pair in pairs:
        name, _, action = pair.partition("=")
        if action not in ("error", "drop", "keep"):
            raise RecipeError(f"--check {pair}: expected NAME=error, NAME=drop or NAME=keep")
        actions[name] = cast(Action, action)
    try:
        check_actions(actions, with_model=with_model)
    except ValueError as error:
        raise RecipeError(f"--check: {error}", hint="`align docs data` lists the checks.") from error
    return actions


def _other_kind(found: Source, kind: DataKind[Any], max_characters: int) -> str | None:
    """The kind that the first rows are of, where it is another one."""
    from align.data.validation.kind import guess_kind

    try:
        guessed = guess_kind(found, max_characters)
    except DataError:  # no kind fits, or several do
        return None
    return None if guessed is kind else guessed.name


def _model_checks(model: Path, chat: str | None, max_tokens: int | None) -> RecordChecks:
    from align.data.model_checks import ModelChecks

    found = open_model_format(model, chat)
    return ModelChecks(found.chat_format, max_tokens or found.context_tokens)


class RowProgress:
    """Shows the rows read so far on a terminal's stderr, once a file takes longer than a second."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._begun = False

    def __call__(self, rows: int, done_bytes: int) -> None:
        if time.monotonic() < self._next or not sys.stderr.isatty():
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        size = f", {done_bytes / 1e6:,.0f} MB" if done_bytes else ""
        print(f"\r{rows:,} rows{size} …\033[K", end="", file=sys.stderr, flush=True)
        self._begun = True

    def end(self) -> None:
        """Erase the line."""
        if self._begun:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
