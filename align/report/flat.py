"""A comparison as plain rows with one number per column, for data frames."""

from __future__ import annotations

from typing import Any

from align.report.cost import Cost
from align.report.estimate import Estimate
from align.report.results import Results


def flat_rows(results: Results) -> list[dict[str, Any]]:
    """One row per model, the baseline first.

    A mean is in the column of its name, the ends of its 95 % interval in `<name>_low` and `<name>_high`. A scorer's columns are
    `<scorer>`, `<scorer>_delta` (model minus baseline) and `<scorer>_win_rate` (against the baseline); `<scorer>_delta_p` is the
    p-value of no difference, `<scorer>_delta_p_holm` the same after Holm's correction for all rows, and
    `<scorer>_delta_standardized` the difference over its standard deviation. The columns of `pass@8` are the same without a
    win rate; an ensemble has `<scorer>_disagreement` besides. Null where a number was not measured; the units are those of
    `ModelResult`.
    """
    return [
        {"model": name, "baseline": name == results.baseline, **_numbers(results, name)} for name in results.models_baseline_first
    ]


def _numbers(results: Results, name: str) -> dict[str, Any]:
    model, row = results.models[name], dict[str, Any]()
    for scorer in results.measures:
        score = model.scores.get(scorer)
        delta = None if score is None else score.delta
        row |= _interval(scorer, score) | _interval(f"{scorer}_delta", delta)
        p, effect = (None, None) if delta is None else (delta.p, delta.standardized)
        row |= {f"{scorer}_delta_p": p, f"{scorer}_delta_p_holm": results.ranking[scorer].p_to_baseline.get(name, p)}
        row |= {f"{scorer}_delta_standardized": effect}
        if scorer not in results.scorers:
            continue
        row |= _interval(f"{scorer}_win_rate", None if model.win_rate is None else model.win_rate[scorer])
        if scorer in results.ensembles:
            row |= _interval(f"{scorer}_disagreement", model.disagreement.get(scorer))
        row |= _interval(f"{scorer}_win_rate_at_equal_length", (model.win_rate_at_equal_length or {}).get(scorer))
    return row | {
        **_interval("kl_to_baseline", model.kl_to_baseline),
        **_interval("completion_tokens", model.completion_tokens),
        "eos_share": model.eos_share,
        "distinct_2": model.distinct_2,
        "distinct_1": model.distinct_1,
        "compression_ratio": model.compression_ratio,
        "repetition": model.repetition,
        "retention_perplexity": model.retention_perplexity,
        "train_seconds": model.train_seconds,
        "trained_parameters": model.trained_parameters,
        "train_memory_bytes": model.train_memory_bytes,
        **{f"cost_{name}": getattr(model.cost, name, None) for name in Cost.model_fields},
    }


def _interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    low, high = (None, None) if estimate is None else estimate.ci95
    return {name: None if estimate is None else estimate.mean, f"{name}_low": low, f"{name}_high": high}
