"""The exceptions that a user can act on, and the exit code each one stands for.

    AlignError                      the user can act on it: no traceback, at most 15 lines
    ├── RecipeError   (ValueError)  exit 2   the recipe or the command line is wrong
    ├── DataError     (ValueError)  exit 3   a row or file of the user's data is wrong
    ├── EnvironmentProblem (OSError) exit 4  something the machine lacks: a package, a network, disk space, a lock held elsewhere
    ├── StageError    (RuntimeError) exit 5  a stage stopped: it diverged, ran out of memory, its process died
    └── Interrupted                 exit 129, 130 or 143: stopped by a signal, resumable

Anything else that escapes is a bug: exit 1, with its traceback.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

MAX_ERROR_LINES = 15

EXIT_OK = 0
EXIT_BUG = 1


class AlignError(Exception):
    """Base of every error that is not a bug.

    Args:
        message: where, the value, and what was expected. One problem per line when there are several.
        hint: what to do about it.
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n→ {self.hint}"

    def render(self) -> str:
        """The text a user sees: at most 15 lines, the hint always kept."""
        lines = self.message.splitlines() or [type(self).__name__]
        hint_lines = [] if self.hint is None else f"→ {self.hint}".splitlines()
        room = MAX_ERROR_LINES - len(hint_lines)
        if len(lines) > room:
            hidden = len(lines) - room + 1
            lines = [*lines[: room - 1], f"… and {hidden} more"]
        return "\n".join([*lines, *hint_lines])

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook in place of a traceback."""
        return [f"{type(self).__name__}: {self.render()}"]


class RecipeError(AlignError, ValueError):
    """The recipe or the command line cannot be understood; nothing was started."""

    exit_code = 2


class DataError(AlignError, ValueError):
    """A row or a file of the user's data is wrong; nothing was trained on it."""

    exit_code = 3


class EnvironmentProblem(AlignError, OSError):
    """The machine lacks something: a package, the network, disk space, a lock that another run holds."""

    exit_code = 4

    def __str__(self) -> str:  # OSError would print `[Errno …]`
        return AlignError.__str__(self)


class StageError(AlignError, RuntimeError):
    """A stage stopped before its end. Its finished work is kept, and the run can be resumed."""

    exit_code = 5


class Interrupted(AlignError):
    """Stopped by a signal. The same command resumes the run."""

    def __init__(self, message: str, *, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message, hint="Run the same command again to go on from here.")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 128 + self.signal_number


def several(problems: Sequence[str], summary: str) -> str:
    """One message for many problems: a summary line, then each problem on its own line."""
    return problems[0] if len(problems) == 1 else "\n".join([f"{len(problems)} {summary}:", *problems])
