"""The command `align`, which checks that the package `align` is ours before anything of it is imported.

Another project, a tool for linguistics, is called align on the package index and has a package of the same name: in one
environment, each overwrites files of the other.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "align-llm"
"""What pip calls this project."""
OTHER = "align"
EXIT_ENVIRONMENT = 4
REPAIR = f"pip uninstall {OTHER}, then pip install --force-reinstall --no-deps {DISTRIBUTION}; or use a new environment."


def main() -> int:
    """Run the command line, unless the package is not ours."""
    if (problem := find_clash()) is not None:
        print(f"error: {problem}\n→ {REPAIR}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    from align.cli.main import main as run

    return run()


def find_clash() -> str | None:
    """What is wrong with the installed package `align`, or None."""
    # importlib.metadata finds the same, and its import alone takes as long as the rest of `align --help`.
    for found in [path for place in sys.path for path in Path(place).glob(f"{OTHER}-[0-9]*.dist-info")]:
        commands = found / "entry_points.txt"
        # This project was called align too, before it had a name on the index.
        if not commands.is_file() or "align.cli." not in commands.read_text(encoding="utf-8"):
            name, version = found.stem.split("-")
            return (
                f"{name} {version} is installed as well as {DISTRIBUTION}. It is another project, and both have a package "
                f"called align, so an environment can hold only one of them."
            )
    spec = find_spec("align")
    # Without __init__.py it is a namespace package: the other project was removed, and took the file along.
    if spec is None or spec.origin is None:
        return f"files of {DISTRIBUTION} are missing, such as align/__init__.py."
    return None
