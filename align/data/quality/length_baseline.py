"""How well length alone tells the chosen from the rejected completion.

If length explains the preferences, a reward model learns length (Singhal et al. 2023, "A Long Way to Go"; Dubois et al. 2024,
"Length-Controlled AlpacaEval"). Two numbers say how far it does: how often the longer side won, and how many pairs a model that
sees nothing but the two lengths gets right. The second is also high where the shorter side always wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

NUM_FOLDS = 5
NEWTON_STEPS = 25
RIDGE = 1.0
"""Weight of ½‖w‖² in the fit, on standardised features: it only keeps weights finite where length decides every pair."""
Z_95 = 1.959963984540054

FloatArray = NDArray[np.float64]


class Share(NamedTuple):
    """A share and the ends of its 95 % confidence interval (Wilson), in [0, 1]."""

    value: float
    low: float
    high: float


class LengthBaseline(NamedTuple):
    """How well length alone tells chosen from rejected."""

    pairs: int
    """Pairs looked at."""
    equal_length: int
    """Pairs whose sides have the same length; each counts as half a success in both shares."""
    longer_won: Share
    """Share of pairs whose longer side was chosen."""
    accuracy: Share
    """Share of pairs that a model which sees nothing but lengths gets right, each judged by a model fitted without it."""


def wilson(successes: float, trials: int) -> Share:
    """A share with its 95 % interval (Wilson 1927), which stays in [0, 1] and has a width also at 0 and 1.

    Args:
        successes: at most `trials`; halves are allowed, and make the interval a little too wide.
        trials: at least 1.
    Raises:
        ValueError: if either is out of range.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and trials >= 1, not {successes} of {trials}")
    share, z2 = successes / trials, Z_95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Share(share, max(0.0, middle - half), min(1.0, middle + half))


def length_baseline(pairs: Iterable[tuple[str, int, int]]) -> LengthBaseline | None:
    """Measure both shares.

    The model is a logistic regression without intercept on two differences, chosen minus rejected: of the lengths and of their
    logarithms. Swapping the sides only changes the signs, so nothing but length can tell the model which side was chosen. Each
    pair is judged by the fit on the other four fifths of pairs; its fold follows from its prompt, so that pairs of one prompt are
    judged together.

    Args:
        pairs: (id of the prompt, length of chosen, length of rejected) each; characters or tokens, not negative.
    Returns:
        The shares, the same for the same pairs in any order; None without pairs. Where one prompt has many pairs, the intervals
        are too narrow, since they count pairs.
    """
    rows = list(pairs)
    if not rows:
        return None
    folds = np.array([xxh3_64_intdigest(prompt_id.encode("utf-8", "surrogatepass")) % NUM_FOLDS for prompt_id, _, _ in rows])
    chosen = np.array([row[1] for row in rows], dtype=np.float64)
    rejected = np.array([row[2] for row in rows], dtype=np.float64)
    features = np.stack([chosen - rejected, np.log1p(chosen) - np.log1p(rejected)], axis=1)
    margins = np.zeros(len(rows))
    for fold in range(NUM_FOLDS):
        # If all pairs are in one fold, the fit on none gives zero weights, and every pair counts half.
        margins[folds == fold] = features[folds == fold] @ _fitted(features[folds != fold])
    return LengthBaseline(
        pairs=len(rows),
        equal_length=int((chosen == rejected).sum()),
        longer_won=wilson(_half_for_ties(chosen - rejected), len(rows)),
        accuracy=wilson(_half_for_ties(margins), len(rows)),
    )


def _half_for_ties(values: FloatArray) -> float:
    return float((values > 0).sum() + 0.5 * (values == 0).sum())


def _fitted(features: FloatArray) -> FloatArray:
    """[features] weights that minimise Σ −log sigmoid(features · w) + ½ RIDGE ‖scale · w‖², by Newton's method."""
    # Root mean square, not the standard deviation: subtracting the mean would let the fit know which side is chosen.
    scale = np.sqrt((features**2).mean(axis=0)) if len(features) else np.ones(features.shape[1])
    scale[scale == 0] = 1.0
    scaled = features / scale
    weights = np.zeros(features.shape[1])
    for _ in range(NEWTON_STEPS):
        miss = 0.5 * (1 - np.tanh(scaled @ weights / 2))  # sigmoid(−margin), without overflow
        gradient = RIDGE * weights - scaled.T @ miss
        curvature = RIDGE * np.eye(len(weights)) + (scaled * (miss * (1 - miss))[:, None]).T @ scaled
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return weights / scale
