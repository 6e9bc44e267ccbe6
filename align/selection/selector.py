"""The interface of selection from one prompt's candidates, and the statistics that it collects."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from align.config.explain import problems_of
from align.config.names import show_path
from align.errors import DataError
from align.records import Drop, Message, Record
from align.selection.candidate import Group, PromptCandidates, candidates_of
from align.strict import Strict

RowT_co = TypeVar("RowT_co", bound=Record, covariant=True)
RuleT = TypeVar("RuleT", bound=Strict)


class Selector(Protocol[RowT_co]):
    """Selects from one prompt's candidates. It is sent to other processes, so it holds plain values only."""

    @property
    def scorers(self) -> Sequence[str]:
        """The scores it needs, in the order in which the candidates must have them."""

    def select(self, candidates: PromptCandidates, tally: SelectionTally) -> tuple[Sequence[RowT_co], Sequence[Drop]]:
        """Rows and drops of one prompt; the tally gets the numbers."""

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """The metrics of all rows; there must be at least one row."""


def select_from_groups(groups: Iterable[Group], selector: Selector[RowT_co]) -> tuple[list[RowT_co], list[Drop]]:
    """Rows and drops of records, in the order of the groups."""
    rows: list[RowT_co] = []
    drops: list[Drop] = []
    for group in groups:
        kept, left = selector.select(candidates_of(group, selector.scorers), SelectionTally())
        rows.extend(kept)
        drops.extend(left)
    return rows, drops


def rule_of(rule_type: type[RuleT], settings: Mapping[str, Any]) -> RuleT:
    """A rule from keyword arguments.

    Raises:
        ValueError: naming the first setting that is wrong, its value and what was expected.
    """
    try:
        return rule_type(**settings)
    except ValidationError as error:
        problem = next(problems_of(error, rule_type, dict(settings)))
        name = show_path(problem.path)
        separator = ": " if name and not problem.text.startswith("must") else " "
        raise ValueError(f"{name}{separator}{problem.text}".strip()) from None


def messages_of(candidates: PromptCandidates) -> list[Message]:
    """The prompt as messages; text is one user message. Fields of others than ours are left out.

    Raises:
        DataError: if it is neither text nor such messages.
    """
    prompt = candidates.prompt
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    try:
        messages = [message if isinstance(message, Message) else _message(message) for message in prompt]
    except (TypeError, KeyError, ValueError):
        messages = []
    if not messages:
        raise DataError(
            f"prompt {candidates.prompt_id!r}: expected messages with role (system, user, assistant, tool) and content, "
            f"got {str(prompt)[:60]}",
            hint="Correct the row, or give the prompt as text.",
        )
    return messages


def _message(fields: Mapping[str, Any]) -> Message:
    names = {"role", "content", "tools", "tool_calls", *(("tool_call_id", "name") if fields["role"] == "tool" else ())}
    return Message(**{name: value for name, value in fields.items() if name in names and value is not None})


class SelectionTally:
    """Values and counts of some prompts."""

    def __init__(self) -> None:
        self.values: defaultdict[str, list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """The sums that `Totals` adds up, as JSON."""
        series = {
            # The facts go into a shard's seal as JSON, which has no infinity.
            name: {"sum": exact_sum(values), "number": len(values), "least": min(values) if math.isfinite(min(values)) else None}
            for name, values in self.values.items()
        }
        return {"series": series, "counts": dict(self.counts)}


class Totals:
    """The sum of several tallies. It is the same to the bit, however the prompts were divided among the tallies."""

    def __init__(self, facts: Iterable[Mapping[str, Any]]) -> None:
        self.counts: Counter[str] = Counter()
        self._series: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for fact in facts:
            self.counts.update(fact["counts"])
            for name, series in fact["series"].items():
                self._series[name].append(series)

    def mean(self, name: str) -> float | None:
        """Mean of all values, rounded once; there must be a value. None if the sum overflows."""
        sums = [series["sum"] for series in self._series[name]]
        if any(parts is None for parts in sums):
            return None
        try:
            # The parts are exact and fsum rounds once: how the prompts were cut into tasks does not show.
            return math.fsum(part for parts in sums for part in parts) / self.number(name)
        except OverflowError:
            return None

    def number(self, name: str) -> int:
        return sum(series["number"] for series in self._series[name])

    def least(self, name: str) -> float | None:
        """The lowest value; None where it is an infinity."""
        return min((series["least"] for series in self._series[name] if series["least"] is not None), default=None)


def exact_sum(values: Sequence[float]) -> list[float] | None:
    """A few numbers whose exact sum is that of `values`. Adding such sums gives the same result in every grouping.

    None if a value is infinite or the sum overflows.
    """
    parts: list[float] = []
    try:
        # fsum rounds once, so `rest` is the rounding error of the parts so far.
        while (rest := math.fsum([*values, *(-part for part in parts)])) != 0:
            if not math.isfinite(rest):
                return None
            parts.append(rest)
    except OverflowError:
        return None
    return parts
