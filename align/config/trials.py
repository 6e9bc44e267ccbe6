"""The trials of a sweep: which settings they have. Grids in full, or draws that do not depend on each other."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align.config.advice import listed
from align.config.base import Problem
from align.config.entry import written_path
from align.config.reference import FieldPath
from align.runtime.seed import SEED_BITS, derive_seed

RANGES = ("uniform", "log_uniform")
LISTS = ("values", "choice", "choices", "grid_search", "grid", "categorical")
"""Words of other tools for the values of a field; LOG_RANGES and OTHER_RANGES for a range of them."""
LOG_RANGES = ("loguniform", "log_uniform_values")
OTHER_RANGES = ("quniform", "randint", "int", "float")
MAX_TRIALS = 100
"""Most trials of one sweep."""
TRIES = 100
"""Draws for each trial that is wanted, at most: equal ones count once."""
DIGITS = 3
"""Significant digits of a number that is drawn, so that tables can show it whole and every machine draws the same."""


@dataclass(frozen=True)
class Choices:
    """The values that one field may have: listed, or a range of numbers."""

    values: Sequence[Any] = ()
    kind: str = ""
    """uniform or log_uniform; empty for a list."""
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """Whether the field takes whole numbers only."""

    def draw(self, seed: int, field: str, number: int) -> Any:
        """The value of one trial.

        It follows from seed, field and number alone, so more trials, or more fields, change no trial that was there. A value that
        is added to a list changes those trials only that draw it.
        """
        if not self.kind:
            # The value with the highest hash: the order in which values are written does not count.
            return max(self.values, key=lambda value: derive_seed(seed, "trial", field, number, as_text(value)))
        share = derive_seed(seed, "trial", field, number) / 2**SEED_BITS
        # Of a range of whole numbers, the ends are as likely as the others.
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = low * math.exp(share * math.log(high / low)) if self.kind == "log_uniform" else low + share * (high - low)
        if self.whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


def grid_size(fields: Mapping[str, Choices]) -> int | None:
    """How many different trials there can be; None for a range, where their number has no limit."""
    if any(choices.kind and not choices.whole for choices in fields.values()):
        return None
    sizes = (math.floor(c.high) - math.ceil(c.low) + 1 if c.kind else len(c.values) for c in fields.values())
    return math.prod(sizes)


def grid(fields: Mapping[str, Choices]) -> Iterator[dict[str, Any]]:
    """Every combination of listed values, the last field changing fastest."""
    for values in itertools.product(*(choices.values for choices in fields.values())):
        yield dict(zip(fields, values, strict=True))


def drawn(fields: Mapping[str, Choices], trials: int, seed: int) -> list[dict[str, Any]]:
    """As many different trials, or fewer where ranges are too narrow for so many."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(TRIES * trials):
        if len(found) == trials:
            break
        settings = {field: choices.draw(seed, field, number) for field, choices in fields.items()}
        found.setdefault(as_text(settings), settings)
    return list(found.values())


def as_list(value: object) -> str:
    """How to write a value, or a text of several, as a list, in parentheses; empty for none."""
    return "" if value is None else f" (write {listed(part.strip() for part in str(value).strip('[]()').split(','))})"


def values_meant(value: Mapping[str, Any]) -> str:
    """What the values of a field in the words of W&B, Optuna or Ray Tune are here; empty for others."""
    values = next((value[word] for word in LISTS if word in value), None)
    if isinstance(values, list):
        return as_text(values)
    ends = [next((value[word] for word in words if word in value), None) for words in (("min", "low"), ("max", "high"))]
    kind = str(value.get("distribution", value.get("type", ""))).lower()
    for word in (*LOG_RANGES, *OTHER_RANGES):
        if isinstance(value.get(word), list) and len(value) == 1:
            kind, ends = word, list(value[word])
    if len(ends) != 2 or None in ends:
        return ""
    is_log = kind.startswith("log") or value.get("log") is True
    return f"{{{'log_uniform' if is_log else 'uniform'}: [{ends[0]}, {ends[1]}]}}"


def as_text(value: Any) -> str:
    """A value as compact JSON, with sorted keys."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def label(settings: Mapping[str, Any], stage: str) -> str:
    """Settings in one line: `beta=0.1, pairs.min_margin=1`. Fields are sorted, and those of `stage` lack its name."""
    shown = {short_name(field, stage): value for field, value in sorted(settings.items())}
    return ", ".join(f"{field}={setting_text(value)}" for field, value in shown.items())


def setting_text(value: Any) -> str:
    """A value as tables show it."""
    return value if isinstance(value, str) else as_text(value)


def short_name(field: str, stage: str) -> str:
    """A field without the name of the stage, if it is one of that stage."""
    return field.removeprefix(f"{stage}.")


def by_value(settings: Mapping[str, Any]) -> list[tuple[int, float, str]]:
    """Sorts trials by their values, fields in the order of their names, numbers by size."""
    keys = []
    for _, value in sorted(settings.items()):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        keys.append((0, float(value), "") if is_number else (1, 0.0, as_text(value)))
    return keys


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep."""

    name: str
    """The stage that makes its model."""
    label: str
    settings: Mapping[str, Any]
    """Value by field."""


@dataclass
class Sweeps:
    """Stages with every sweep written out, and the place in the file of each of their parts."""

    stages: dict[str, Any] = field(default_factory=dict)
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    """By swept stage."""
    problems: list[Problem] = field(default_factory=list)
    origins: dict[FieldPath, FieldPath] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
    """Stages that trials have copies of, except the swept ones."""

    def written(self, path: FieldPath) -> FieldPath:
        """The path in the file of what became the value at `path` of the stages."""
        return written_path(self.origins, path)
