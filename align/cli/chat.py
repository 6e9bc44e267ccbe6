"""`align chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from align.cli.export import ModelArgument
from align.cli.options import ChatOption, with_chat
from align.errors import DataError, RecipeError
from align.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

    from align.engines.chat import Conversation

PROMPT = "> "
RESET, EXIT = "/reset", "/exit"
SEED_BITS = 31
EXIT_INTERRUPTED = 130


def chat(
    model: ModelArgument,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message: how the model should behave.")
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="NUMBER", min=0, help="Softmax temperature; 0 is greedy.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="INTEGER", min=1, help="An answer is cut here.")] = 512,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="INTEGER", min=0, help="Same seed and messages, same answers.  [default: drawn]", show_default=False
        ),
    ] = None,
    chat: ChatOption = None,
) -> None:
    """Talk to a model. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.

    With a pipe as input every line is a message, and stdout has only the answers.
    """
    import secrets

    from rich.console import Console

    from align.export.source import open_source
    from align.pipeline.worker import prepare_process

    source = open_source(model)
    source.require("language", "chat")
    prepare_process()
    folder = with_chat(source.folder, chat)
    if folder.new_tokens:
        raise RecipeError(
            f"--chat {chat}: {model}: the vocabulary lacks {', '.join(folder.new_tokens)}, which the model was never trained on",
            hint="Train it with this template first, or take one that needs no new token: --chat '{template: plain}'.",
        )
    notes = Console(stderr=True, highlight=False, markup=False)
    try:
        # Inside the block, because importing torch and loading the model take seconds, in which Ctrl-C must end quietly.
        from align.engines.chat import Conversation

        conversation = Conversation(
            folder,
            system=system,
            temperature=temperature,
            max_completion_tokens=max_tokens,
            seed=secrets.randbits(SEED_BITS) if seed is None else seed,
        )
        if sys.stdin.isatty():
            _talk(conversation, source.name, notes)
        else:
            _answer_lines(conversation, notes)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _talk(conversation: Conversation, name: str, notes: Console) -> None:
    """Chat on a terminal. An error is shown, and the conversation continues."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` line editing, a history and the width of Korean letters)

    notes.print(f"{name}. {RESET} forgets the conversation, {EXIT} or Ctrl-D leaves, Ctrl-C stops an answer.", style="dim")
    while True:
        try:
            text = input(PROMPT)
        except EOFError:
            notes.print()
            return
        except KeyboardInterrupt:
            notes.print(f"\n({EXIT} or Ctrl-D leaves)", style="dim")
            continue
        if text.strip() == EXIT:
            return
        try:
            _take(conversation, text, notes)
        except DataError as error:
            notes.print(visible(error.render()), style="red")
        except KeyboardInterrupt:
            notes.print("\n(stopped)", style="dim")


def _answer_lines(conversation: Conversation, notes: Console) -> None:
    """Answer every line of a pipe. The first error ends the command."""
    for number, line in enumerate(sys.stdin, start=1):
        text = line.rstrip("\r\n")
        if text.strip() == EXIT:
            return
        try:
            _take(conversation, text, notes)
        except DataError as error:
            raise DataError(f"stdin:{number}: {error.message}", hint=error.hint) from error


def _take(conversation: Conversation, text: str, notes: Console) -> None:
    """Run a command, or stream the answer to a message to stdout."""
    if text.strip() == RESET:
        conversation.reset()
        notes.print("(forgotten)", style="dim")
        return
    if not text.strip():
        return
    dropped, answer = conversation.ask(text)
    if dropped:
        turns = "turn was" if dropped == 1 else "turns were"
        notes.print(f"(the conversation is longer than the model can see: the oldest {dropped} {turns} forgotten)", style="dim")
    # Only a terminal obeys characters that move its cursor or write to its clipboard; a pipe gets the text as the model wrote it.
    on_terminal = sys.stdout.isatty()
    empty = True
    with contextlib.closing(answer):  # a stopped answer stays in the conversation as far as it got
        for piece in answer:
            sys.stdout.write(visible(piece) if on_terminal else piece)
            sys.stdout.flush()
            empty = False
    sys.stdout.write("\n")
    sys.stdout.flush()
    if empty:
        notes.print("(the model ended its answer at once)", style="dim")
