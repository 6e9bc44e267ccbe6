"""Win rates at equal length: what is left of a win rate if completions get no credit for being longer than the baseline's."""

from __future__ import annotations

import numpy as np

from align.report.estimate import Bootstrap, Estimate
from align.report.rows import Pairs
from align.report.statistics import BoolArray, FloatArray

RIDGE = 0.01
"""Weight of the squared coefficients in the loss (C = 100 in AlpacaEval): a win on every prompt would have no finite fit."""
LEAST_SHARE = 0.025
"""Least share of the pairs on either side of equal length: with fewer, the fit would extrapolate."""


def length_controlled(outcomes: FloatArray, lengths: FloatArray, weights: FloatArray | None = None) -> FloatArray | None:
    """Log-odds of winning against the baseline at equal length, spread over seeds and prompts.

    AlpacaEval's length-controlled win rate (Dubois et al. 2024) in its form without data of other models: the logistic regression
    P(win) = sigmoid(quality + slope · tanh(length difference / its standard deviation)), at a length difference of zero.

    Args:
        outcomes: [seeds, prompts, pairs] 1 for a win, 0.5 for a tie, 0 for a loss; NaN where a score is missing.
        lengths: [seeds, prompts, pairs] length of the model's completion minus the baseline's, in any unit.
        weights: [seeds, prompts, pairs] of the pairs of a prompt; default: all the same.
    Returns:
        [seeds, prompts], whose mean is `quality`, in log-odds. The deviations from it are the influence of each seed and prompt
        on the fit, so that a bootstrap of their mean is one of `quality`, to first order. None if there is no pair, all length
        differences are the same, or fewer than `LEAST_SHARE` of them are on one side of equal length.
    """
    known = np.isfinite(outcomes)
    given = np.ones(outcomes.shape) if weights is None else weights
    # Each prompt counts once, whatever its number of pairs.
    given = np.where(known, given, 0.0)
    totals = given.sum(axis=2, keepdims=True)
    share = np.divide(given, totals, out=np.zeros(given.shape), where=totals > 0)
    count = float(share.sum())
    if (
        not count
        or not np.ptp(lengths[share > 0])
        or min(share[lengths >= 0].sum(), share[lengths <= 0].sum()) < LEAST_SHARE * count
    ):
        return None
    mean = float((share * lengths).sum()) / count
    spread = float(np.sqrt((share * (lengths - mean) ** 2).sum() / count))
    features = np.stack([np.ones(lengths.shape), np.tanh(lengths / spread)], axis=-1)
    won = np.where(known, outcomes, 0.5)
    coefficients = _fit(features.reshape(-1, 2), won.ravel(), share.ravel())
    chances = _sigmoid(features @ coefficients)
    bend = (share * chances * (1 - chances))[..., None, None] * features[..., :, None] * features[..., None, :]
    curvature = bend.sum(axis=(0, 1, 2)) + RIDGE * np.eye(2)
    pulls = ((share * (won - chances))[..., None] * features).sum(axis=2)
    influence = pulls @ np.linalg.inv(curvature)[0] * pulls.shape[0] * pulls.shape[1]
    values: FloatArray = coefficients[0] + influence - influence.mean()
    return values


def _fit(features: FloatArray, won: FloatArray, weights: FloatArray) -> FloatArray:
    from scipy.optimize import minimize  # half a second of import, which showing results must not cost

    def loss(coefficients: FloatArray) -> tuple[float, FloatArray]:
        logits = features @ coefficients
        # -log sigmoid, which must not overflow for large logits.
        losses = won * np.logaddexp(0, -logits) + (1 - won) * np.logaddexp(0, logits)
        gradient = features.T @ (weights * (_sigmoid(logits) - won)) + RIDGE * coefficients
        return float((weights * losses).sum() + RIDGE / 2 * (coefficients**2).sum()), gradient

    result: FloatArray = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8 * max(1.0, weights.sum())}).x
    return result


def _sigmoid(logits: FloatArray) -> FloatArray:
    from scipy.special import expit

    chances: FloatArray = expit(logits)
    return chances


def win_rate_at_equal_length(pairs: Pairs, scorer: str, usable: BoolArray, bootstrap: Bootstrap) -> Estimate | None:
    """The length-controlled win rate of a row by a scorer on its usable prompts, with its interval; None as above."""
    weights = None if pairs.weights is None else pairs.weights[:, usable]
    log_odds = length_controlled(pairs.outcomes[scorer][:, usable], pairs.lengths[:, usable], weights)
    if log_odds is None:
        return None
    interval = bootstrap(log_odds)
    mean, low, high = win_rates(interval.mean, interval.low, interval.high)
    return Estimate(mean=mean, ci95=(low, high))


def win_rates(*log_odds: float) -> tuple[float, ...]:
    """Win rates from their log-odds."""
    return tuple(float(rate) for rate in _sigmoid(np.array(log_odds)))
