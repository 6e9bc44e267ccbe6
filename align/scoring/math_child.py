"""The process that compares mathematical answers: a line of JSON in, a line out, until the input ends.

It is run by its path and imports nothing of align, so that it starts fast. Its caller has the limit of time: math-verify's own
limit is an alarm signal, which does nothing in threads. Memory is limited here.
"""

import json
import os
import resource
import sys

MAX_MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer until the input ends: true or false, or null for a reference in which nothing can be read."""
    # Libraries print warnings; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    from math_verify import parse, verify

    def respond(verdict: bool | None) -> None:
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()

    respond(True)  # it is ready
    for line in sys.stdin:
        reference, answer = json.loads(line)
        # Without a delimiter, only the last number of \frac{1}{2} would be read.
        delimited = any(mark in reference for mark in ("$", "\\boxed", "\\(", "\\["))
        right = parse(reference if delimited else f"${reference}$", parsing_timeout=None)
        if all(isinstance(part, str) for part in right):  # text that is no mathematics
            respond(None)
            continue
        try:
            respond(bool(verify(right, parse(answer, parsing_timeout=None), timeout_seconds=None)))
        except (MemoryError, RecursionError):
            respond(False)


if __name__ == "__main__":
    main()
