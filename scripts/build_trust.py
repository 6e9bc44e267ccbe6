"""Write the tables of docs/trust.md from what scripts/chaos.py and scripts/fuzz.py have counted.

python scripts/build_trust.py            write
python scripts/build_trust.py --check    exit 1 if a table differs from the counts
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
PAGE = SCRIPTS.parent / "docs" / "trust.md"
BLOCK = re.compile(r"(<!-- (?P<name>chaos|fuzz) -->\n).*?(<!-- /(?P=name) -->\n)", re.DOTALL)
KINDS = {"kill": "kills", "damage": "damaged files", "other": "other faults"}


def counts(name: str) -> dict[str, Any]:
    """Of a script, from the file that it writes."""
    return json.loads((SCRIPTS / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def chaos_table() -> Iterator[str]:
    """A row for each project and kind of fault."""
    yield "| project | faults | cases | with the undisturbed bytes at the end | silent | problems, fixed since | open |"
    yield "|---|---|---|---|---|---|---|"
    for project, name in (("tiny", "chaos"), ("quickstart, reduced", "chaos_quickstart")):
        found = counts(name)
        for kind, words in KINDS.items():
            one = found[kind]
            numbers = (one["cases"], one["identical"], one["silent"], one["fixed"], len(one["problems"]))
            yield f"| {project} | {one['faults']:,} {words} | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def fuzz_table() -> Iterator[str]:
    """A row for each target."""
    yield "| target | inputs | accepted | refused, by name or as absent | inputs with findings, fixed since | open |"
    yield "|---|---|---|---|---|---|"
    for name, one in sorted(counts("fuzz").items()):
        numbers = (one["inputs"], one["accepted"], sum(one["refused"].values()), one["fixed"], len(one["findings"]))
        yield f"| `{name}` | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def rendered(page: str) -> str:
    """The page with the tables of today's counts."""
    tables = {"chaos": chaos_table, "fuzz": fuzz_table}
    return BLOCK.sub(lambda match: match[1] + "\n".join(tables[match["name"]]()) + "\n" + match[3], page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table differs")
    page = PAGE.read_text(encoding="utf-8")
    if not parser.parse_args().check:
        PAGE.write_text(rendered(page), encoding="utf-8")
    elif rendered(page) != page:
        print("docs/trust.md differs from the counts; run python scripts/build_trust.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
