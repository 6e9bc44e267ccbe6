"""`align export`: a trained model as a Hugging Face folder with a card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from align.cli.options import JsonOption, output_console, print_json

if TYPE_CHECKING:
    from align.export import ExportResult

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a finished stage, runs/<recipe>/stages/<stage>, or of a model.")
]


def export(
    model: ModelArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for the model.")],
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--dtype", help="Dtype of the weights.  [default: the model's own]", show_default=False),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Load the result and compare its answers with the model's, in transformers and vLLM."
        ),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Write a model as a Hugging Face folder. It has merged weights, tokenizer, template and a card made from the manifests.

    The folder appears once it is complete and its answers match the model's. Reward models can be exported too.
    """
    from align.export import export_model, open_source
    from align.pipeline.worker import prepare_process

    source = open_source(model)
    prepare_process()
    result = export_model(source, to, dtype=dtype, check=check, note=lambda text: print(text, file=sys.stderr))
    if json:
        print_json(result.to_json())
    else:
        _print(result)


def _print(result: ExportResult) -> None:
    console = output_console()
    for check in result.checks:
        ties = f", {check.ties} of them up to a tie" if check.ties else ""
        console.print(f"Same as its source on {check.compared} of {check.compared} in {check.where}{ties}.")
    if not result.checks:
        console.print("Not checked; the card says so.")
    console.print(f"Exported: {result.folder} ({result.dtype}, {result.weights_bytes / 2**20:.1f} MiB)", soft_wrap=True)
