"""`align store`: what the results of all runs take on the disk, whether they are undamaged, and removing what no run needs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from align.cli.options import JsonOption, OutOption, output_console, print_json
from align.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align.pipeline.inventory import StoreEntry

app = typer.Typer(
    help="List, check and remove results on the disk.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_(out: OutOption = Path("runs"), json: JsonOption = False) -> None:
    """List every result, the largest first, and the runs that need it."""
    from align.pipeline.estimate.table import size_text
    from align.pipeline.inventory import take_inventory

    inventory = take_inventory(out)
    if json:
        document = {"store": str(inventory.root), "size_bytes": inventory.size_bytes, "running": list(inventory.running)}
        print_json({**document, "entries": [entry.to_json() for entry in inventory.entries]})
        return
    _print_entries(inventory.entries)
    unneeded = f"; no run needs {len(inventory.unneeded)}: align store prune" if inventory.unneeded else ""
    text = f"{len(inventory.entries)} results, {size_text(inventory.size_bytes)} on the disk{unneeded}"
    output_console().print(text, soft_wrap=True)


@app.command("prune")
def prune(
    out: OutOption = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove them. Without it, nothing is removed.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove the results that no run needs. Without --yes, they are only listed.

    A run needs what its last plan names, finished or not. What a process works on is kept.
    """
    from align.pipeline import inventory
    from align.pipeline.estimate.table import size_text

    pruned = inventory.prune(out, remove=yes)
    if json:
        print_json({"dry_run": not yes, **pruned.to_json()})
        return
    console = output_console()
    if pruned.removed:
        _print_entries(pruned.removed)
    for entry in pruned.kept:
        console.print(f"kept: {entry.path.name}, a process works on it", soft_wrap=True)
    count, size = len(pruned.removed), size_text(pruned.freed_bytes)
    if not count:
        console.print("Every result is needed by a run.")
    elif yes:
        console.print(f"Removed {count} results; {size} freed.")
    else:
        console.print(f"{count} results would go and free {size}. Nothing was removed; --yes removes them.")


@app.command("verify")
def verify(out: OutOption = Path("runs"), json: JsonOption = False) -> None:
    """Compare every result with its hashes. Reads all files again; exit code 4 if one is damaged."""
    from align.pipeline import inventory

    result = inventory.verify(out, report=lambda name: print(f"reading {name}", file=sys.stderr))
    if json:
        print_json(result.to_json())
    else:
        output_console().print(f"{len(result.checked) - len(result.damaged)} of {len(result.checked)} results are undamaged.")
    if result.damaged:
        lines = "\n".join(f"{name}: {problem}" for name, problem in result.damaged.items())
        raise EnvironmentProblem(
            f"{len(result.damaged)} damaged:\n{lines}", hint="Run the recipe again: it sets them aside and makes them again."
        )


def _print_entries(entries: Sequence[StoreEntry]) -> None:
    from rich.table import Table

    from align.pipeline.estimate.table import size_text

    table = Table(box=None, pad_edge=False)
    for name, justify in (("result", "left"), ("state", "left"), ("size", "right"), ("shared", "right"), ("needed by", "left")):
        table.add_column(name, justify=justify, no_wrap=name == "result")  # type: ignore[arg-type]
    for entry in entries:
        shared = size_text(entry.shared_bytes) if entry.shared_bytes else ""
        table.add_row(entry.path.name, entry.state, size_text(entry.size_bytes), shared, ", ".join(entry.needed_by) or "no run")
    output_console().print(table)
