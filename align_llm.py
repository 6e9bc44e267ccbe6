"""The command `align`, which checks that the package `align` is ours before anything of it is imported; the package checks too.

Another project, a tool for linguistics, is called align on the package index and has a package of the same name: in one
environment, each overwrites files of the other.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import cache

DISTRIBUTION = "align-llm"
"""What pip calls this project."""
OTHER = "align"
EXIT_ENVIRONMENT = 4
EXIT_INTERRUPTED = 130
REPAIR = f"pip uninstall {OTHER}, then pip install --force-reinstall --no-deps {DISTRIBUTION}; or use a new environment."


def main() -> int:
    """Run the command line, unless the package is not ours."""
    if (problem := find_clash()) is not None:
        print(f"error: {problem}\n→ {REPAIR}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    try:
        from align.cli.main import main as run

        code = run()
    except KeyboardInterrupt:  # while modules are imported
        print("stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C, while Python ends, would show a traceback
    return code


def find_clash() -> str | None:
    """What is wrong with the installed package `align`, or None."""
    if (both := find_other()) is not None:
        return both
    from importlib.util import find_spec

    spec = find_spec("align")
    # Without __init__.py it is a namespace package: the other project was removed, and took the file along.
    if spec is None or spec.origin is None:
        return f"files of {DISTRIBUTION} are missing, such as align/__init__.py."
    return None


@cache
def find_other() -> str | None:
    """What to say where the other project is installed, too; None where it is not."""
    for folder in _installed():
        # This project was called align too, before it had a name on the index.
        if "align.cli." not in _content(os.path.join(folder, "entry_points.txt")):
            name, version = os.path.basename(folder).removesuffix(".dist-info").split("-")
            return (
                f"{name} {version} is installed as well as {DISTRIBUTION}. It is another project, and both have a package "
                f"called align, so an environment can hold only one of them."
            )
    return None


def _installed() -> Iterator[str]:
    """Folders in which pip describes a distribution called align."""
    # importlib.metadata and pathlib find the same, and their import alone takes longer than `import align`.
    for place in sys.path:
        try:
            names = os.listdir(place or os.curdir)
        except OSError:  # an archive, or a folder that is not there
            continue
        for name in sorted(names):
            if name.startswith(f"{OTHER}-") and name.endswith(".dist-info") and name[len(OTHER) + 1].isdigit():
                yield os.path.join(place, name)


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""
