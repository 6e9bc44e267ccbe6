"""The path of a reward model: a part of the pairs is kept out of training, and its accuracy is measured on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from align.data.encoding import EncodedPreference, Where
from align.data.stored_tokens import StoredTokens
from align.data.token_file import Integers
from align.errors import DataError, StageError, several
from align.models.finite import BROKEN_NUMBERS
from align.models.folder import ModelFolder
from align.models.sizes import FORWARD_TOKENS
from align.runtime.device import free_memory
from align.stage import StageContext, StageOutcome
from align.store.artifact import MODEL_FOLDER
from align.training.pairwise.objective import PairwiseConfig
from align.training.pairwise.run import outcome_of, read_pairs, train_pairs
from align.training.pairwise.split import Split
from align.training.pairwise.training_pairs import Floats

LENGTH_BUCKETS = ((None, -8), (-8, 0), (0, 8), (8, None))
"""Bounds of (chosen - rejected) length in tokens, low inclusive, high exclusive."""


def run_with_held_out(context: StageContext[PairwiseConfig], *, share: float, margins: bool) -> StageOutcome:
    """A whole stage, as `run_pairwise`, with a share of the prompts held out.

    Args:
        margins: train with the margin chosen_score - rejected_score of every pair.
    """
    data = read_pairs(context)
    pairs = data.rows.pairs
    held_out = data.rows.held_out(share=share, seed=context.seed)
    trained = data.rows.others(held_out)
    split = Split(pairs.tokens.take(trained), pairs.tokens.take(held_out))
    where = data.artifact.where
    if not split.train or not split.held_out:
        raise DataError(
            f"{where(None)}: {len(pairs)} pairs leave {len(split.train)} to train on and "
            f"{len(split.held_out)} to measure accuracy on; both are needed",
            hint="Give more pairs with different prompts, or change held_out_share.",
        )
    rows = pairs.take(trained)
    if margins:
        # Only of pairs that are trained on: dropped and held-out pairs need no scores.
        rows = rows.with_columns(margin=_margins(data.rows.tokens, data.rows.rows[trained], where))
    metrics = train_pairs(context, data, rows, len(rows))
    # The trained model and its optimizer are gone before the reward model is loaded, as every scorer later loads it.
    free_memory()
    accuracy = evaluate_reward_model(context.output / MODEL_FOLDER, split)
    return outcome_of(context, data, {"train_loss": metrics.pop("loss"), **metrics, **accuracy})


def _margins(tokens: StoredTokens, rows: Integers, where: Where) -> Floats:
    """By how much the chosen completion scored higher, of these rows."""
    chosen, rejected = (tokens.number(name)[rows] for name in ("chosen_score", "rejected_score"))
    problems: list[str] = []
    for place in np.flatnonzero(~(chosen >= rejected)):
        row = int(rows[place])
        if np.isnan(chosen[place]) or np.isnan(rejected[place]):
            problem = "has no chosen_score or no rejected_score"
        else:
            scores = f"chosen_score {chosen[place]:g}, rejected_score {rejected[place]:g}"
            problem = f"the rejected completion scored higher ({scores})"
        problems.append(f"{where(tokens.line(row))}: {tokens.row_id(row)}: {problem}")
    if problems:
        raise DataError(
            several(problems, f"rows cannot give a margin (of {len(rows):,})"),
            hint="Set margin: none, or give every pair both scores.",
        )
    margins: Floats = chosen - rejected
    return margins


def evaluate_reward_model(folder: Path, split: Split) -> dict[str, Any]:
    """Accuracy on the held-out pairs, and that of a rule that knows only the lengths.

    Returns:
        `accuracy` with its 95 % interval (Wilson), `length_only_accuracy` (the better of "longer wins" and "shorter wins",
        chosen on the training pairs; ties count half), `accuracy_by_length` and the score spread.
    Raises:
        StageError: if a score is not finite.
    """
    from align.scoring.reward_model import RewardModelScorer

    scorer = RewardModelScorer(ModelFolder(folder), batch_tokens=FORWARD_TOKENS)
    rows = [(row.prompt_token_ids, ids) for row in split.held_out for ids in (row.chosen_token_ids, row.rejected_token_ids)]
    scores = scorer.score_rows(rows)
    if broken := sum(not math.isfinite(score) for score in scores):
        # A margin that is NaN would count as a pair ranked wrong.
        raise StageError(
            f"{folder}: the trained reward model gives {broken:,} of {len(scores):,} held-out completions a score that is NaN or "
            "infinite",
            hint=BROKEN_NUMBERS,
        )
    margins = [scores[i] - scores[i + 1] for i in range(0, len(scores), 2)]
    won = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    # Ties count half, but the interval needs a whole number of successes.
    interval = binomtest(round(sum(won)), len(won)).proportion_ci(0.95, method="wilson")
    differences = [len(row.chosen_token_ids) - len(row.rejected_token_ids) for row in split.held_out]
    mean = sum(scores) / len(scores)
    return {
        "pairs_train": len(split.train),
        "pairs_held_out": len(split.held_out),
        "accuracy": sum(won) / len(won),
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "length_only_accuracy": length_only_accuracy(split),
        "accuracy_by_length": _by_length(differences, won),
        "margin_mean": sum(margins) / len(margins),
        "score_mean": mean,
        "score_spread": (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5,
    }


def length_only_accuracy(split: Split) -> float:
    """Held-out accuracy of the rule "the longer wins" or its opposite, whichever was better on the training pairs."""

    def longer_wins(rows: Sequence[EncodedPreference]) -> float:
        differences = [len(row.chosen_token_ids) - len(row.rejected_token_ids) for row in rows]
        return sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences) / max(len(rows), 1)

    accuracy = longer_wins(split.held_out)
    return accuracy if longer_wins(split.train) >= 0.5 else 1 - accuracy


def _by_length(differences: Sequence[int], won: Sequence[float]) -> dict[str, dict[str, float]]:
    buckets = {}
    for low, high in LENGTH_BUCKETS:
        inside = [w for d, w in zip(differences, won, strict=True) if (low is None or d >= low) and (high is None or d < high)]
        name = f"chosen longer by {low} or more" if high is None else f"below {high}" if low is None else f"{low} to {high - 1}"
        if inside:
            buckets[name] = {"pairs": len(inside), "accuracy": sum(inside) / len(inside)}
    return buckets
