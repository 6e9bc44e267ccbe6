"""The console script: turns arguments into an exit code.

stdout carries the result, stderr everything else. Errors that a user can act on are printed without a traceback, unless
ALIGN_DEBUG is set; a bug keeps its traceback.
"""

from __future__ import annotations

import gc
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

# Typer vendors click and has no public name for these.
from typer._click.exceptions import NoArgsIsHelpError, UsageError
from typer.main import get_command

from align.cli import (
    chat,
    complete,
    data,
    docs,
    doctor,
    export,
    init,
    launch,
    pairs,
    recipes,
    run,
    schema,
    serve,
    stage,
    store,
    sweep,
)
from align.cli.usage import print_error, usage_error
from align.errors import EXIT_BUG, EXIT_OK, AlignError, Interrupted

EXIT_CLOSED_PIPE = 1
DEBUG_VARIABLE = "ALIGN_DEBUG"
GARBAGE_THRESHOLD = 50_000
"""New objects after which Python looks for garbage. A command makes a million that stay, and looking at every 700th, Python's
default, would take a tenth of the time of a plan."""
COMPLETION_VARIABLE = "_ALIGN_COMPLETE"
"""Set by the script that --install-completion gives to a shell, when Tab is pressed."""

app = typer.Typer(
    name="align",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of `align --help`
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("run")(run.run)
app.command("plan")(run.plan)
app.command("launch")(launch.launch)
app.command("sweep")(sweep.sweep)
app.add_typer(stage.app, name="stage")
app.command("pairs", cls=pairs.PairsCommand)(pairs.pairs)
app.add_typer(recipes.app, name="recipes")
app.command("schema")(schema.schema)
app.add_typer(data.app, name="data")
app.add_typer(store.app, name="store")
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("doctor")(doctor.doctor)
app.command("docs")(docs.docs)


def _show_version(wanted: bool) -> None:
    if wanted:
        from align import __version__

        print(f"align {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """From a base model and a recipe to aligned models, and a table that says which won, by how much, and how sure we are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; see `align.errors` for what each means."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Looking for them reads the metadata of every installed package, and align uses none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    gc.set_threshold(GARBAGE_THRESHOLD)
    _write_utf8()
    try:
        code = _invoke(arguments)
        # Here and not at exit, so that a closed pipe is caught below.
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout went away. Without this, Python reports the broken pipe again when it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    return code


def _reader_is_gone() -> bool:
    """Whether nobody reads stdout or stderr any more. Pipes to other processes break, too."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)  # errors are always told
    return bool(outputs.poll(0))


def _write_utf8() -> None:
    """Files and pipes get UTF-8 whatever the locale; a terminal keeps its encoding, and no character stops a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def _invoke(arguments: Sequence[str]) -> int:
    try:
        # `obj` brings the command line to the commands, which record it in results and cards.
        with complete.words_as_they_are() if COMPLETION_VARIABLE in os.environ else nullcontext():
            code = get_command(app).main(list(arguments), prog_name="align", obj=["align", *arguments], standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except NoArgsIsHelpError as nothing:
        nothing.show()
        return nothing.exit_code
    except UsageError as wrong:
        error = usage_error(wrong, arguments)
        print_error(f"error: {error.render()}")
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_BUG
    except KeyboardInterrupt:
        print_error("stopped")
        return 130
    except AlignError as error:
        return _report(error)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise  # `main` handles it
        from align.system_errors import system_problem

        if (problem := system_problem(error, Path.cwd())) is not None:
            return _report(problem)
        traceback.print_exc()
        print("This is a bug in align: please report it with the lines above and the command.", file=sys.stderr)
        return EXIT_BUG


def _report(error: AlignError) -> int:
    """Print an error that the user can act on; returns the exit code."""
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exc()
    print_error(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error.render()}")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
