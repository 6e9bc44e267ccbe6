"""Compares mathematical answers (fractions, roots, sets, equations, LaTeX) by math-verify, in a process of its own.

Parsing what a model wrote may take any time and memory, and math-verify's own limit is an alarm signal, which does nothing
outside the main thread. So a child process does it, and is killed and replaced when it takes too long.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from align.errors import EnvironmentProblem

MAX_CHARACTERS = 10_000
"""Characters at the end of an answer that are read."""
START_SECONDS = 120.0
"""The child imports sympy, which may be slow from a network disk."""
PACKAGE = "math_verify"


def require_math_verify(where: str) -> None:
    """Raises EnvironmentProblem if the package is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise EnvironmentProblem(
            f"{where} needs math-verify, which is not installed",
            hint="pip install 'align-llm[math]', or use a rule of the type numeric_answer.",
        )


def equal_answers(reference: str, answer: str, *, timeout_seconds: float) -> bool | None:
    """Whether an answer is mathematically the reference; None if nothing in the reference can be read.

    Args:
        reference: LaTeX, with or without dollar signs, or plain text such as `1/2`.
        answer: a text; what is boxed, announced or last in it counts.
        timeout_seconds: an answer that takes longer is wrong.
    Raises:
        EnvironmentProblem: if math-verify is missing or cannot start.
    """
    with _LOCK:
        pid = os.getpid()  # a forked process must not share its parent's child
        if _CHILDREN.get(pid) is None:
            _CHILDREN.clear()
            _CHILDREN[pid] = _start()
        child = _CHILDREN[pid]
        try:
            verdict = _ask(child, json.dumps([reference, answer[-MAX_CHARACTERS:]]), timeout_seconds)
        except (TimeoutError, OSError, ValueError):  # too slow, or it died: of too much memory, mostly
            _end(child)
            _CHILDREN.clear()
            return False
    return verdict


_LOCK = threading.Lock()
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""The child by the process that started it; one at most. It ends when its input does, also if its parent is killed."""


@atexit.register
def _end_own() -> None:
    child = _CHILDREN.pop(os.getpid(), None)
    if child is not None:
        _end(child)


def _start() -> subprocess.Popen[bytes]:
    require_math_verify("a rule of the type math_answer")
    # -P: the folder of this file has modules that are called as some of the standard library.
    command = [sys.executable, "-P", str(Path(__file__).with_name("math_child.py"))]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with suppress(TimeoutError, OSError, ValueError):
        _ask(child, None, START_SECONDS)
        return child
    _end(child)
    raise EnvironmentProblem("math-verify cannot be started", hint=f'Try: {sys.executable} -c "import {PACKAGE}"')


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    with child:  # closes its pipes
        pass


def _ask(child: subprocess.Popen[bytes], question: str | None, timeout_seconds: float) -> bool | None:
    """The child's next line; its answer to a question, if one is given."""
    assert child.stdin is not None
    assert child.stdout is not None
    if question is not None:
        child.stdin.write(question.encode() + b"\n")
        child.stdin.flush()
    if not select.select([child.stdout], [], [], timeout_seconds)[0]:
        raise TimeoutError
    verdict: bool | None = json.loads(child.stdout.readline())
    return verdict
