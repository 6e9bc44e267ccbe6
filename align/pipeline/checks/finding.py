"""One thing that a plan found, and the error for those that stand in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from align.errors import AlignError, DataError, EnvironmentProblem, RecipeError, several

Action = Literal["refuse", "warn", "note"]
Cause = Literal["recipe", "data", "machine"]
MOST_DROPPED = 0.1
"""Share of dropped rows above which a plan warns."""
_ERRORS: dict[Cause, type[AlignError]] = {"recipe": RecipeError, "data": DataError, "machine": EnvironmentProblem}


@dataclass(frozen=True)
class Finding:
    """What was found about one input or stage."""

    name: str
    """Of the input or stage."""
    text: str
    """Where, the value, and what was expected."""
    advice: str = ""
    """What to do; empty if there is nothing to do."""
    action: Action = "refuse"
    """`refuse`: a run would fail or go wrong. `warn`: it may. `note`: worth knowing."""
    cause: Cause = "recipe"
    """What has to change; it decides the exit code."""
    feature: str = ""
    """Where it is about some rows only: what they have, by the name of the check. Without such rows it is no refusal."""

    @property
    def sentence(self) -> str:
        """`text; advice`, for what does not stop a run."""
        return f"{self.text}. {self.advice}" if self.advice else self.text

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def found_by(name: str, error: AlignError) -> Finding:
    """An error about an input, as a finding that refuses the run."""
    causes: list[Cause] = [cause for cause, kind in _ERRORS.items() if isinstance(error, kind)]
    return Finding(name, error.message, error.hint or "", cause=causes[0])


def dropped_rows(
    name: str, where: str, rows: int, reasons: Mapping[str, int], advice: str, *, is_whole: bool, source: str = ""
) -> Finding:
    """That a run would go on without some of the rows.

    Args:
        where: the file or the stage.
        rows: rows looked at.
        is_whole: whether there are no others.
        source: the rows' file, where that is not `where`.
        reasons: dropped rows, by `drop_reason`.
        advice: for a share that is too large to be accepted without a look.
    """
    count = sum(reasons.values())
    share = count / rows
    counted = f"{count:,} of {'' if is_whole else 'the first '}{rows:,} rows"
    listed = ", ".join(f"{reason} {number:,}" for reason, number in reasons.items())
    text = f"{where}: {counted}{f' of {source}' if source else ''} would be dropped, {100 * share:.1f} % ({listed})"
    return Finding(name, text, advice, "warn", "data") if share > MOST_DROPPED else Finding(name, text, action="note")


def refuse(findings: Sequence[Finding]) -> None:
    """Raise the error for the findings that a run could not survive; nothing without any.

    Raises:
        RecipeError, DataError, EnvironmentProblem: the first of these that one of the findings calls for, with all of them in it.
    """
    serious = [finding for finding in findings if finding.action == "refuse"]
    if not serious:
        return
    error = next(_ERRORS[cause] for cause in _ERRORS if any(finding.cause == cause for finding in serious))
    if len(serious) == 1:
        raise error(serious[0].text, hint=serious[0].advice or None)
    lines = [f"{finding.text} → {finding.advice}" if finding.advice else finding.text for finding in serious]
    raise error(several(lines, "things stand in the way"))
