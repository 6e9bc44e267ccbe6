"""`align data convert`: write rows of any shape and format to one canonical file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from align.cli.data_options import KindOption, SourceArgument, located
from align.cli.options import ColumnsOption, JsonOption, column_mapping, print_json


def convert(
    source: SourceArgument,
    kind: KindOption,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write: .jsonl or .parquet.")],
    columns: ColumnsOption = None,
    on_invalid: Annotated[
        Literal["error", "drop"],
        typer.Option("--on-invalid", help="What to do with a row that cannot be used: stop, or leave it out."),
    ] = "error",
    decontaminate: Annotated[
        list[str] | None,
        typer.Option("--decontaminate", metavar="FILE", help="Leave out rows that overlap these evaluation prompts. Repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the rows of a source in one shape. Each kind has its shape, and every row gets an id.

    Dropped rows are written beside the file, each with its reason. The source is never changed.
    """
    from align.config.inputs import DataInput
    from align.data.convert import convert as convert_rows
    from align.data.evaluation import evaluation_index
    from align.data.source import find_source

    spec = DataInput(kind=kind.name, path=source, columns=column_mapping(columns), on_invalid=on_invalid)
    found = find_source(spec, located)
    evaluations = [DataInput(kind="prompts", path=path) for path in decontaminate or ()]
    index = evaluation_index((find_source(each, located), each) for each in evaluations) if evaluations else None
    result, drops = convert_rows(spec, found, to, evaluation=index)
    if json:
        print_json(
            {
                "source": result.source,
                "kind": spec.kind,
                "rows": str(to),
                "drops": str(drops),
                "rows_in": result.rows_in,
                "rows_out": result.rows_out,
                "dropped": result.dropped,
                "findings": result.findings,
                "notes": result.notes,
            }
        )
        return
    typer.echo(f"{to}: {result.rows_out:,} of {result.rows_in:,} rows")
    for reason, count in result.dropped.items():
        typer.echo(f"  left out, {reason}: {count:,}")
    for note in result.notes:
        typer.echo(f"  {note}")
    if result.dropped:
        typer.echo(f"{drops}: what was left out")
