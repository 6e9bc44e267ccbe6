"""The data of the report's answers viewer: every prompt with every model's completions, as JSON for viewer.js.jinja."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from align.records import ScoredCandidate
from align.report.answers import AnswerTable
from align.report.cost import Cost
from align.report.estimate import Estimate
from align.report.fields import Group, PromptFields
from align.report.figure import evenly
from align.report.results import ModelResult, Results
from align.report.style import row_styles
from align.visible import INVISIBLE

MAX_BYTES = 3_600_000
"""Most bytes of prompts and completions in the page, which must stay below 5 MB with its tables and drawings."""
# What could end the element that holds the JSON; and what `visible` replaces, so that the page's source is safe to look at too.
# All are legal as escapes inside JSON texts, and the first occur nowhere else in JSON.
_UNSAFE = re.compile(f"[<>&]|{INVISIBLE.pattern}")

Cell = str | float | int | None


def viewer_data(
    results: Results, table: AnswerTable, fields: PromptFields, groups: Mapping[str, Sequence[Group]], primary_scorer: str
) -> dict[str, Any]:
    """What the page's script reads. Lists of prompts and completions are in the order of `prompts` and of `models`."""
    prompts = [_prompt(table, prompt_id) for prompt_id in table.prompt_ids]
    kept = _kept(prompts)
    row_of = {member: name for name in results.trained_rows for member in results.members(name)}
    first_members = {results.members(name)[0] for name in results.trained_rows}
    styles = row_styles(results)
    return {
        "recipe": results.recipe,
        "scorers": table.scorers,
        "scorer": table.scorers.index(primary_scorer),
        "baseline": table.models.index(results.baseline),
        "compared": table.models.index(_compared(results, primary_scorer)),
        "models": [
            {"name": model, "row": row_of[model], "color": styles[row_of[model]].variable, "shown": model in first_members}
            for model in table.models
        ],
        "prompts": [prompts[index] for index in kept],
        "fields": {name: _coded([values[index] for index in kept]) for name, values in fields.items()},
        "total": len(prompts),
        "tables": {"results": results_cells(results), "fields": group_cells(groups)},
    }


def _compared(results: Results, scorer: str) -> str:
    """The model that is compared with the baseline at first: the best one that is not the baseline itself."""
    ranking = results.ranking[scorer]
    others = [name for name in ranking.order if name != results.baseline]
    return results.members(others[0] if others else results.baseline)[0]


def _coded(values: Sequence[str]) -> dict[str, Any]:
    """Each value once with its number of prompts, the most frequent first, and for every prompt the place of its own."""
    counts = Counter(values)
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    places = {value: place for place, value in enumerate(ordered)}
    return {"values": ordered, "counts": [counts[value] for value in ordered], "of": [places[value] for value in values]}


def to_json(value: Any) -> Markup:
    """Compact JSON that is safe inside a script element: no text in it can end the element or begin a tag."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(_UNSAFE.sub(_escaped, text))


def _escaped(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))


def _prompt(table: AnswerTable, prompt_id: str) -> list[Any]:
    """[id, [[role, content] …], reference, [model][candidate] of [completion, tokens, cut, [score by scorer]]]."""
    candidates = {model: table.rows[model][prompt_id] for model in table.models}
    first = candidates[table.models[0]][0]
    messages = [[message.role, message.text] for message in first.prompt]
    answers = [[_answer(row, table.scorers) for row in rows] for rows in candidates.values()]
    return [prompt_id, messages, first.reference, answers]


def _answer(row: ScoredCandidate, scorers: Sequence[str]) -> list[Any]:
    scores = [row.scores[scorer] for scorer in scorers]
    finite = [None if score is None or not np.isfinite(score) else score for score in scores]
    return [row.completion, row.completion_tokens, int(row.finish_reason == "length"), finite]


def _kept(prompts: Sequence[Any]) -> list[int]:
    """Positions of the prompts that fit `MAX_BYTES`: all, or else evenly spaced ones, chosen by position only."""
    sizes = np.array([len(to_json(prompt).encode("utf-8")) for prompt in prompts])
    kept = np.arange(len(prompts))
    while sizes[kept].sum() > MAX_BYTES and len(kept) > 1:
        # A step of one at least, since long texts may lie on those that stay.
        count = min(len(kept) - 1, int(len(kept) * MAX_BYTES / sizes[kept].sum()))
        kept = evenly(np.arange(len(prompts)), max(1, count))
    return [int(index) for index in kept]


def results_cells(results: Results) -> list[list[Cell]]:
    """The comparison as rows of a spreadsheet, with a header; numbers are unrounded, as in results.json."""
    header = ["model", "kind"]
    for scorer in results.measures:
        header += [*_interval_names(f"{scorer} mean"), *_interval_names(f"{scorer} difference")]
        header += [f"{scorer} p", f"{scorer} p, Holm", f"{scorer} d_z"]
        if scorer in results.scorers:
            header += [*_interval_names(f"{scorer} wins"), *_interval_names(f"{scorer} wins at equal length")]
        if scorer in results.ensembles:
            header += _interval_names(f"{scorer} disagreement")
    header += [*_interval_names("KL (nats)"), "KL bound (nats)", *_interval_names("completion tokens"), "EOS share", "distinct-2"]
    header += ["distinct-1", "compression ratio", "repetition"]
    header += ["retention perplexity", "training seconds", *(f"cost: {name.replace('_', ' ')}" for name in Cost.model_fields)]
    rows: list[list[Cell]] = [[*header]]
    for name in results.models_baseline_first:
        model = results.models[name]
        rows.append(_result_row(results, name, model, _kind(results, name)))
        if name in results.several_seeds:
            rows += [_result_row(results, seed, one, f"seed of {name}") for seed, one in (model.replicates or {}).items()]
    return rows


def _kind(results: Results, name: str) -> str:
    if name == results.baseline:
        return "baseline"
    return "best of n" if results.models[name].best_of else "method" if name in results.several_seeds else "model"


def _result_row(results: Results, name: str, model: ModelResult, kind: str) -> list[Cell]:
    cells: list[Cell] = [name, kind]
    for scorer in results.measures:
        score = model.scores.get(scorer)
        delta = None if score is None else score.delta
        p, effect = (None, None) if delta is None else (delta.p, delta.standardized)
        # A seed by itself is not among the comparisons that are corrected.
        corrected = results.ranking[scorer].p_to_baseline.get(name, p if name in results.models else None)
        cells += [*_interval(score), *_interval(delta), p, corrected, effect]
        if scorer in results.scorers:
            cells += _interval((model.win_rate or {}).get(scorer))
            cells += _interval((model.win_rate_at_equal_length or {}).get(scorer))
        if scorer in results.ensembles:
            cells += _interval(model.disagreement[scorer])
    cells += [*_interval(model.kl_to_baseline), model.kl_bound, *_interval(model.completion_tokens), model.eos_share]
    cells += [
        model.distinct_2,
        model.distinct_1,
        model.compression_ratio,
        model.repetition,
        model.retention_perplexity,
        model.train_seconds,
    ]
    return [*cells, *(None if model.cost is None else getattr(model.cost, name) for name in Cost.model_fields)]


def group_cells(groups: Mapping[str, Sequence[Group]]) -> list[list[Cell]]:
    """The results by field as rows of a spreadsheet, with a header."""
    rows: list[list[Cell]] = [["field", "value", "prompts", "scorer", "model", "mean", *_interval_names("difference")]]
    for field, of_field in groups.items():
        for group in of_field:
            for scorer, scores in group.scores.items():
                rows += [
                    [field, group.value, group.prompts, scorer, name, score.mean, *_interval(score.delta)]
                    for name, score in scores.items()
                ]
    return rows


def _interval_names(name: str) -> list[str]:
    return [name, f"{name} low", f"{name} high"]


def _interval(estimate: Estimate | None) -> list[Cell]:
    return [None, None, None] if estimate is None else [estimate.mean, *estimate.ci95]
