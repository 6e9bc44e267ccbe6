"""The statistics of the comparison: pure functions of numpy arrays, with no files, models or text formats in them.

The unit of evidence is the prompt. Candidates of one prompt are averaged first, and what is resampled are prompts, because
candidates of the same prompt resemble each other: counting each as evidence of its own would make every interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CONFIDENCE = 0.95
RESAMPLED_VALUES_AT_ONCE = 2**21  # 16 MiB of float64, whatever the number of prompts


class Interval(NamedTuple):
    """A mean and the ends of its 95 % confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def paired_bootstrap(values: FloatArray, *, seed: int, resamples: int) -> Interval:
    """Mean over prompts with its 95 % bootstrap interval; give it one *difference* per prompt to compare two models.

    Resampling whole prompts keeps the two models' scores of a prompt together, so that what makes a prompt easy or hard for
    both cancels out. The interval is bias-corrected and accelerated (BCa; Efron 1987, "Better bootstrap confidence
    intervals"): scores of rules and reward models are skewed, where a plain percentile interval misses on one side, and for
    few prompts BCa stays closer to 95 %.

    Args:
        values: [prompts], finite, any unit.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap resamples.
    Returns:
        The mean and the interval. Values that are all equal, as a single prompt's is, have an interval of zero width: that
        says nothing about other prompts, so whoever shows it also shows how many prompts there were.
    Raises:
        ValueError: if `values` is empty, not a vector, or not finite.
    """
    values = _finite_vector(values)
    mean = float(values.mean())
    # Equal up to rounding: BCa divides by the spread and would return NaN here.
    if np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0.0):
        return Interval(mean, mean, mean)
    interval = _bootstrap_interval(values, "BCa", seed, resamples)
    if not all(map(math.isfinite, interval)):  # all resampled means lie on one side: no bias correction exists
        interval = _bootstrap_interval(values, "percentile", seed, resamples)
    return Interval(mean, *interval)


def mean_interval(values: FloatArray, *, seed: int, resamples: int) -> Interval:
    """Mean of one value per prompt with its 95 % interval: `paired_bootstrap` without a pair."""
    return paired_bootstrap(values, seed=seed, resamples=resamples)


def _bootstrap_interval(values: FloatArray, method: str, seed: int, resamples: int) -> tuple[float, float]:
    from scipy.stats import bootstrap  # a second of import that who only shows results need not pay

    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, RESAMPLED_VALUES_AT_ONCE // len(values)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method=method,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _finite_vector(values: FloatArray) -> FloatArray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be [prompts] with at least one prompt, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    return values


def prompt_means(scores: FloatArray) -> FloatArray:
    """Mean score of each prompt over its finite candidates.

    Args:
        scores: [prompts, candidates]; NaN where there is no score.
    Returns:
        [prompts]; NaN where a prompt has no finite score at all.
    """
    finite = np.isfinite(scores)
    counts = finite.sum(axis=1)
    sums = np.where(finite, scores, 0.0).sum(axis=1)
    means: FloatArray = np.divide(sums, counts, out=np.full(len(scores), np.nan), where=counts > 0)
    return means


def win_rate(model_scores: FloatArray, baseline_scores: FloatArray) -> FloatArray:
    """Share of candidate pairs (one of the model, one of the baseline, same prompt) that the model wins; a tie is half a win.

    Args:
        model_scores: [prompts, candidates]; NaN where there is no score.
        baseline_scores: [prompts, candidates] of the same prompts in the same order; the number of candidates may differ.
    Returns:
        [prompts], between 0 and 1; pairs with a NaN are left out, NaN where no pair of a prompt is left.
    Raises:
        ValueError: if the two do not have the same prompts.
    """
    if len(model_scores) != len(baseline_scores):
        raise ValueError(f"{len(model_scores)} prompts of the model, {len(baseline_scores)} of the baseline")
    differences = model_scores[:, :, None] - baseline_scores[:, None, :]
    outcomes = np.where(np.isnan(differences), np.nan, (np.sign(differences) + 1.0) / 2.0)
    return prompt_means(outcomes.reshape(len(outcomes), -1))


def distinct_n(completions: Iterable[str], n: int = 2) -> float | None:
    """Distinct word n-grams over all word n-grams, pooled over the completions (Li et al. 2016, "A Diversity-Promoting
    Objective Function"); None when no completion has `n` words.

    Words are what white space separates, which holds for Korean as for English, and n-grams do not span completions. The share
    falls as the amount of text grows, so compare it only between models that answered the same prompts.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for completion in completions:
        words = completion.split()
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        seen.update(ngrams)
        total += len(ngrams)
    return len(seen) / total if total else None


def perplexity(summed_nll: float, tokens: int) -> float:
    """exp(negative log-likelihood per token), from a sum in nats over `tokens` predicted tokens."""
    if tokens < 1:
        raise ValueError(f"perplexity needs at least one token, not {tokens}")
    return math.exp(summed_nll / tokens)
