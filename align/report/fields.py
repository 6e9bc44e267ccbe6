"""Results by the prompts' own fields: how every row does on the prompts that have one value, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from align.data.quality.language import UNKNOWN, language_of
from align.records import Message, ScoredCandidate
from align.report.answers import AnswerTable
from align.report.estimate import Bootstrap, Difference
from align.report.results import Results
from align.report.rows import Measured, Row, make_rows
from align.report.statistics import BoolArray, seeded_bootstrap
from align.runtime.seed import derive_seed

MIN_PROMPTS = 10
"""A value with fewer prompts is counted among the others: an interval over a handful of prompts means nothing."""
MAX_VALUES = 12
MAX_CHOICES = 200
"""A field with more different values cannot be chosen from."""
NO_VALUE = "(none)"

PromptFields = Mapping[str, Sequence[str]]
"""Field → its value for every prompt, in the order of `AnswerTable.prompt_ids`."""


@dataclass(frozen=True)
class GroupScore:
    """One row on the prompts of one value, by one scorer."""

    mean: float
    delta: Difference | None
    """Paired difference to the baseline; None for the baseline itself."""


@dataclass(frozen=True)
class Group:
    """The prompts that have one value of a field."""

    value: str
    prompts: int
    scores: dict[str, dict[str, GroupScore]]
    """Scorer → row → its score; a scorer without a finite score in this group is absent."""


def prompt_fields(table: AnswerTable, columns: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The fields in which the prompts differ: the other columns of their file, language, number of messages, and so on.

    Fields with nearly as many values as there are prompts, such as a number of the row, are left out.

    Args:
        columns: prompt id → column → value.
    """
    firsts = [rows[0] for rows in next(iter(table.rows.values())).values()]
    fields = {
        "language": [_language(row.prompt) for row in firsts],
        "messages": [str(len(row.prompt)) for row in firsts],
        "system prompt": ["yes" if row.prompt[0].role == "system" else "no" for row in firsts],
        "reference": [_reference(row) for row in firsts],
    }
    of_prompts = [columns.get(prompt_id, {}) for prompt_id in table.prompt_ids]
    names = dict.fromkeys(name for of_prompt in of_prompts for name in of_prompt)
    # The file's own columns come first, and a column called `language` says it better than a guess.
    fields = {name: [of_prompt.get(name, NO_VALUE) for of_prompt in of_prompts] for name in names} | {
        name: values for name, values in fields.items() if name not in names
    }
    most = min(MAX_CHOICES, len(table.prompt_ids) // 2)
    return {name: values for name, values in fields.items() if 1 < len(set(values)) <= most}


def _language(prompt: Sequence[Message]) -> str:
    code = language_of(prompt[-1].text)
    return "unknown" if code == UNKNOWN else code


def _reference(row: ScoredCandidate) -> str:
    return NO_VALUE if row.reference is None else row.reference


def breakdown(results: Results, table: AnswerTable, fields: PromptFields) -> dict[str, list[Group]]:
    """Groups by field, the largest first. A field with fewer than two values of `MIN_PROMPTS` prompts is left out.

    Best of n is left out too: its candidates are not among the answers. Every number is computed as in the whole table, on
    the group's prompts alone.
    """
    methods = {name: list(model.replicates) for name, model in results.models.items() if model.replicates}
    rows = make_rows(table, results.baseline, Measured({}, {}, {}, {}), methods, None)
    rows = {name: rows[name] for name in results.models_baseline_first if name in rows}
    bootstrap = partial(seeded_bootstrap, seed=derive_seed(results.seed, "bootstrap"), resamples=results.bootstrap_resamples)
    groups = {name: _groups(rows, results.baseline, np.array(values), bootstrap) for name, values in fields.items()}
    return {name: of_field for name, of_field in groups.items() if of_field}


def _groups(rows: Mapping[str, Row], baseline: str, values: NDArray[np.str_], bootstrap: Bootstrap) -> list[Group]:
    counts = Counter(values.tolist())
    # By name where counts are equal, so that the same answers give the same page.
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    shown = [value for value in ordered if counts[value] >= MIN_PROMPTS][:MAX_VALUES]
    if len(shown) < 2:
        return []
    groups = [_group(rows, baseline, value, values == value, bootstrap) for value in shown]
    others = [value for value in ordered if value not in shown]
    if others:
        name = others[0] if len(others) == 1 else f"{len(others)} other values"
        groups.append(_group(rows, baseline, name, ~np.isin(values, shown), bootstrap))
    return groups


def _group(rows: Mapping[str, Row], baseline: str, value: str, chosen: BoolArray, bootstrap: Bootstrap) -> Group:
    scores: dict[str, dict[str, GroupScore]] = {}
    for scorer in rows[baseline].scores:
        # The same prompts for every row, as in the whole table.
        usable = chosen & np.all([np.isfinite(row.scores[scorer]).all(axis=0) for row in rows.values()], axis=0)
        if usable.any():
            scores[scorer] = {name: _score(row, rows[baseline], scorer, usable, bootstrap) for name, row in rows.items()}
    return Group(value, int(chosen.sum()), scores)


def _score(row: Row, baseline: Row, scorer: str, usable: BoolArray, bootstrap: Bootstrap) -> GroupScore:
    own, against = row.scores[scorer][:, usable], baseline.scores[scorer][:, usable]
    # Seeds are averaged first, as in the ranking.
    mean = float(own.mean(axis=0).mean())
    return GroupScore(mean, None if row is baseline else Difference.between(own, against, bootstrap))
