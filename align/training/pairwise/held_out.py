"""Pairs kept out of a reward model's training, and its accuracy on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from align.data.encoding import EncodedPreference
from align.models.folder import ModelFolder
from align.models.sizes import FORWARD_TOKENS
from align.records import Preference
from align.runtime.seed import SEED_BITS, derive_seed

LENGTH_BUCKETS = ((None, -8), (-8, 0), (0, 8), (8, None))
"""Bounds of (chosen - rejected) length in tokens, low inclusive, high exclusive."""


@dataclass(frozen=True)
class Split:
    """Pairs to train on, and pairs kept for the accuracy; no prompt is on both sides."""

    train: list[EncodedPreference]
    held_out: list[EncodedPreference]


def split_by_prompt(records: Sequence[Preference], encoded: Sequence[EncodedPreference], *, share: float, seed: int) -> Split:
    """Keep about `share` of the prompts out. Which ones follows from the prompt's text and the seed, not from the order."""
    prompts = {record.id: "\n".join(f"{message.role}: {message.content}" for message in record.prompt) for record in records}
    split = Split([], [])
    for row in encoded:
        drawn = derive_seed(seed, "held_out", prompts[row.id]) / 2**SEED_BITS
        (split.held_out if drawn < share else split.train).append(row)
    return split


def evaluate_reward_model(folder: Path, split: Split) -> dict[str, Any]:
    """Accuracy on the held-out pairs, and that of a rule that knows only the lengths.

    Returns:
        `accuracy` with its 95 % interval (Wilson), `length_only_accuracy` (the better of "longer wins" and "shorter wins",
        chosen on the training pairs; ties count half), `accuracy_by_length` and the score spread.
    """
    from align.scoring.reward_model import RewardModelScorer

    scorer = RewardModelScorer(ModelFolder(folder), batch_tokens=FORWARD_TOKENS)
    sequences = [row.prompt_token_ids + ids for row in split.held_out for ids in (row.chosen_token_ids, row.rejected_token_ids)]
    scores = scorer.score_token_ids(sequences)
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
