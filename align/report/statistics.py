"""The statistics of the comparison: pure functions of numpy arrays, with no files, models or text formats in them.

The unit of evidence is the prompt. Candidates of one prompt are averaged first, and what is resampled are prompts, because
candidates of the same prompt resemble each other: counting each as evidence of its own would make every interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

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
    p: float
    """Two-sided bootstrap p-value of a true mean of 0: the interval of confidence 1 - p ends at 0 (Efron and Tibshirani 1993,
    section 15.4). Never below 2 / (resamples + 1), which is all that so many resamples can show."""

    def to_json(self) -> dict[str, Any]:
        """As manifests have it."""
        return {"mean": self.mean, "ci95": [self.low, self.high]}


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
        says nothing about other prompts, so the caller must also show the number of prompts.
    Raises:
        ValueError: if `values` is empty, not a vector, or not finite.
    """
    values = _finite_vector(values)
    mean = float(values.mean())
    # Equal up to rounding: BCa divides by the spread and would return NaN here.
    if np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0.0):
        return Interval(mean, mean, mean, _least_p(resamples) if mean else 1.0)
    low, high, draws = _bootstrap_interval(values, "BCa", seed, resamples)
    if not math.isfinite(low + high):  # all resampled means lie on one side: no bias correction exists
        low, high, draws = _bootstrap_interval(values, "percentile", seed, resamples)
        return Interval(mean, low, high, _two_sided(_share_beyond_zero(draws, mean), resamples))
    return Interval(mean, low, high, _bca_p(values, mean, draws))


def seeded_bootstrap(*sides: FloatArray, seed: int, resamples: int) -> Interval:
    """Mean over training seeds and prompts with its 95 % two-level bootstrap interval: seeds are resampled, then prompts.

    Give it one array of values, or two, whose difference (first minus second) is estimated: two methods have different seeds,
    but the same prompts, which stay paired. Every resample draws seeds with replacement on each side and prompts with
    replacement for all of them, because every seed answers the same prompts (the bootstrap of crossed factors; Owen 2007, "The
    pigeonhole bootstrap"). A few seeds, drawn as they are, vary too little: three have ten different draws, and their
    variance is a third too small. So the deviations of the drawn seeds from their mean are stretched by
    sqrt(R / (R - 1)) · t(R - 1) / z, which is what Student's interval does for R normal values. A side with one seed has no
    visible spread between seeds; nothing is added for it.

    Args:
        sides: one or two arrays [seeds, prompts], finite, with the same prompts in the same order.
        seed: of the resampling.
        resamples: number of bootstrap resamples.
    Returns:
        The mean and the percentile interval. With one seed on every side: exactly `paired_bootstrap` of the only values (or of
        their difference).
    Raises:
        ValueError: if there are no values, more than two sides, other prompts on the second side, or values are not finite.
    """
    if len(sides) not in (1, 2) or any(side.ndim != 2 or not len(side) for side in sides):
        raise ValueError(f"expected one or two arrays [seeds, prompts], not {[side.shape for side in sides]}")
    if all(len(side) == 1 for side in sides):
        return paired_bootstrap(sides[0][0] - sides[1][0] if len(sides) == 2 else sides[0][0], seed=seed, resamples=resamples)
    if len({side.shape[1] for side in sides}) != 1:
        raise ValueError(f"the two sides have {' and '.join(str(side.shape[1]) for side in sides)} prompts")
    means = [side.mean(axis=0) for side in sides]
    values = _finite_vector(means[0] - means[1] if len(sides) == 2 else means[0])
    random = np.random.default_rng(seed)
    # Prompts first, then each side's seeds: the order of draws from one generator fixes the interval for a given seed.
    of_prompts = _resampled_means(values, random, resamples)
    # Each side's seeds are drawn apart, because seeds of two methods are not pairs; the prompts above are drawn once for both.
    of_seeds = [_seed_deviations(side.mean(axis=1), random, resamples) for side in sides]
    counts = [len(side) for side in sides]

    def draws(confidence: float) -> FloatArray:
        total = of_prompts
        for sign, count, deviations in zip((1.0, -1.0), counts, of_seeds, strict=False):
            total = total + sign * (_stretch(count, confidence) * deviations)
        return total

    tail, mean = (1 - CONFIDENCE) / 2, float(values.mean())
    low, high = (float(end) for end in np.quantile(draws(CONFIDENCE), [tail, 1 - tail]))
    return Interval(mean, low, high, _stretched_p(draws, mean, resamples))


def _least_p(resamples: int) -> float:
    return 2 / (resamples + 1)


def _share_beyond_zero(draws: FloatArray, mean: float) -> float:
    """Share of the draws that are not on the mean's side of zero, counting one more, so that it is never zero."""
    beyond = np.count_nonzero(draws <= 0) if mean > 0 else np.count_nonzero(draws >= 0)
    return (int(beyond) + 1) / (len(draws) + 1)


def _two_sided(one_sided: float, resamples: int) -> float:
    return min(1.0, max(2 * one_sided, _least_p(resamples)))


def _bca_p(values: FloatArray, mean: float, draws: FloatArray) -> float:
    """The p-value of the BCa interval: where its formula for an end gives zero, solved for the confidence (Efron 1987)."""
    from scipy.stats import norm

    if not mean:
        return 1.0
    # Towards positive means, so that only the lower end matters.
    sign = math.copysign(1.0, mean)
    draws, deviations = sign * draws, sign * (values - mean)
    below = (np.count_nonzero(draws < sign * mean) + np.count_nonzero(draws <= sign * mean)) / (2 * len(draws))
    bias = float(norm.ppf(below))
    # The jackknife's skewness, which for a mean is that of the values.
    acceleration = float((deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5))
    shifted = float(norm.ppf(_share_beyond_zero(draws, 1.0))) - bias
    # Where the correction is larger than what it corrects, the end of the interval cannot be zero at any confidence.
    scale = 1 + acceleration * shifted
    return _two_sided(float(norm.cdf(shifted / scale - bias)) if scale > 0 else 0.0, len(draws))


def _stretched_p(draws: Callable[[float], FloatArray], mean: float, resamples: int) -> float:
    """The p-value of an interval whose draws depend on the confidence: found by bisection."""
    low, high = _least_p(resamples), 1.0
    for _ in range(20):
        p = math.sqrt(low * high)  # p-values matter by their ratio
        includes_zero = _share_beyond_zero(draws(1 - p), mean) > p / 2
        low, high = (p, high) if includes_zero else (low, p)
    return high if mean else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values after Holm's correction: the smallest is multiplied by their number, the next by one less, and so on.

    Holm 1979, "A simple sequentially rejective multiple test procedure". If each is compared with 0.05, the chance that any of
    the true differences of zero is called a difference is at most 0.05, however the comparisons depend on each other.

    Returns:
        by the same names; none is above 1, or below one that was smaller before.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _resampled_means(values: FloatArray, random: np.random.Generator, resamples: int) -> FloatArray:
    """[resamples] means of as many values, drawn with replacement."""

    def batches() -> Iterator[FloatArray]:
        size = max(1, RESAMPLED_VALUES_AT_ONCE // len(values))
        for start in range(0, resamples, size):
            yield values[random.integers(len(values), size=(min(size, resamples - start), len(values)))].mean(axis=1)

    return np.concatenate(list(batches()))


def _seed_deviations(means: FloatArray, random: np.random.Generator, resamples: int) -> FloatArray:
    """[resamples] deviations of resampled seeds from their mean; zeros for a single one."""
    count = len(means)
    if count == 1:
        return np.zeros(resamples)
    deviations: FloatArray = means[random.integers(count, size=(resamples, count))].mean(axis=1) - means.mean()
    return deviations


def _stretch(count: int, confidence: float) -> float:
    """By how much the deviations of resampled seeds are stretched, because few of them vary too little."""
    if count == 1:
        return 1.0
    # Imported late: scipy.stats takes a second, which showing finished results must not cost.
    from scipy.special import ndtri, stdtrit

    quantile = (1 + confidence) / 2
    return math.sqrt(count / (count - 1)) * float(stdtrit(count - 1, quantile) / ndtri(quantile))


def _bootstrap_interval(values: FloatArray, method: str, seed: int, resamples: int) -> tuple[float, float, FloatArray]:
    """Both ends, and the resampled means."""
    from scipy.stats import bootstrap  # a second of import, which showing results must not cost

    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        # SciPy would otherwise make all resamples at once: 10,000 of 10,000 prompts are 800 MB.
        batch=max(1, RESAMPLED_VALUES_AT_ONCE // len(values)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method=method,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high), result.bootstrap_distribution


def _finite_vector(values: FloatArray) -> FloatArray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be [prompts] with at least one prompt, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    return values


def standardized_difference(values: FloatArray) -> float | None:
    """Mean of paired differences over their standard deviation (n - 1): Cohen's d_z (Cohen 1988; Lakens 2013).

    It says how large a difference is beside how much it varies from prompt to prompt, whatever the unit of the score.

    Args:
        values: [prompts], finite.
    Returns:
        None for a single prompt, or where all differences are equal, up to rounding.
    """
    values = _finite_vector(values)
    if np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0.0):
        return None
    return float(values.mean() / values.std(ddof=1))


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
    outcomes = pair_outcomes(model_scores, baseline_scores)
    return prompt_means(outcomes.reshape(len(outcomes), -1))


def pair_outcomes(model_scores: FloatArray, baseline_scores: FloatArray) -> FloatArray:
    """[prompts, candidates of the model, candidates of the baseline]: 1 won, 0.5 a tie, 0 lost, NaN where a score is missing.

    Args:
        model_scores: [prompts, candidates]; NaN where there is no score.
        baseline_scores: [prompts, candidates] of the same prompts in the same order.
    Raises:
        ValueError: if the two do not have the same prompts.
    """
    if len(model_scores) != len(baseline_scores):
        raise ValueError(f"{len(model_scores)} prompts of the model, {len(baseline_scores)} of the baseline")
    # Every candidate of one against every one of the other: which candidate has which index is chance.
    differences = model_scores[:, :, None] - baseline_scores[:, None, :]
    outcomes: FloatArray = np.where(np.isnan(differences), np.nan, (np.sign(differences) + 1.0) / 2.0)
    return outcomes


def distinct_n(completions: Iterable[str], n: int = 2) -> float | None:
    """Distinct word n-grams over all word n-grams, pooled; None when no completion has `n` words.

    Li et al. 2016, "A Diversity-Promoting Objective Function". Words are what white space separates, which holds for Korean
    as for English, and n-grams do not span completions. The share falls as the amount of text grows, so compare it only
    between models that answered the same prompts.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for completion in completions:
        words = completion.split()
        # Shifted copies end at different places; zip stops at the shortest, which is the last n-gram.
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        seen.update(ngrams)
        total += len(ngrams)
    return len(seen) / total if total else None
