"""What a person reads in place of a metric's key, and how its value is written. Dashboards and files keep the keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

NOTHING = "–"
"""In place of a value that is missing."""


def number_text(value: float) -> str:
    """A number in four significant digits, whole numbers in full."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def percent_text(share: float) -> str:
    """A share from 0 to 1 as `79.7 %`, whole percents as `80 %`."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def left_text(seconds: float) -> str:
    """`about 5 min`: an estimate is not shown to the second."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours} h {minutes:02d} min" if hours < 10 else f"about {hours} h"


def duration_text(seconds: float) -> str:
    """`12.3 s`, `4 min 10 s`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 6000:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


@dataclass(frozen=True)
class Metric:
    """How people read one metric."""

    words: str
    """What it is, such as `pairs ranked right`; of a rate its unit, such as `tokens/s`."""
    unit: str = ""
    write: Callable[[float], str] = number_text
    headline: bool = False
    """Whether it is among the few numbers that say how a stage went."""
    is_rate: bool = False
    """Written as `4,245 tokens/s`: the words stand behind the value."""

    def value_text(self, value: Any) -> str:
        """The value with its unit."""
        if not is_number(value):
            return NOTHING if value is None else str(value)
        return self.write(value) + (f" {self.unit}" if self.unit and math.isfinite(value) else "")

    def text(self, value: Any) -> str:
        """Words and value: `loss 0.5`, `pairs ranked right 80 %`."""
        return f"{self.value_text(value)} {self.words}" if self.is_rate else f"{self.words} {self.value_text(value)}"


def _share(words: str, *, headline: bool = False) -> Metric:
    return Metric(words, write=percent_text, headline=headline)


def _rate(words: str) -> Metric:
    return Metric(words, write=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", is_rate=True)


METRICS: Mapping[str, Metric] = {
    # Training in general.
    "loss": Metric("loss", headline=True),
    "train_loss": Metric("loss", headline=True),
    "loss_at_step_0": Metric("loss before the first step"),
    "eval_loss": Metric("validation loss"),
    "nll_loss": Metric("loss on chosen", unit="nats"),
    "learning_rate": Metric("learning rate"),
    "lr": Metric("learning rate"),
    "grad_norm": Metric("gradient norm"),
    "epoch": Metric("epoch"),
    "steps": Metric("steps"),
    "tokens": Metric("tokens"),
    "trained_tokens": Metric("tokens trained on"),
    "packed_rows": Metric("packed rows"),
    "row_fill": _share("row filled"),
    "trained_parameters": Metric("trained parameters"),
    "precision": Metric("computed in"),
    "micro_batch_size": Metric("rows at a time"),
    "micro_batch_tokens": Metric("tokens at a time"),
    "gradient_checkpointing": Metric("gradient checkpointing"),
    "batch_form": Metric("form of a batch"),
    "tokens_per_second": _rate("tokens/s"),
    "pairs_per_second": _rate("pairs/s"),
    "rows_per_second": _rate("rows/s"),
    "episodes_per_second": _rate("episodes/s"),
    # Pairs: reward model, DPO, ORPO.
    "pairs_train": Metric("training pairs"),
    "pairs_held_out": Metric("held-out pairs", headline=True),
    # Of held-out pairs in the numbers of a finished stage, of the batch in its curve.
    "accuracy": _share("pairs ranked right", headline=True),
    "accuracy_ci95": _share("95 % interval of pairs ranked right"),
    "length_only_accuracy": _share("ranked right by length alone"),
    "accuracy_by_length": Metric("ranked right by difference in length"),
    "margin": Metric("margin"),
    "mean_reward": Metric("mean score of a pair"),
    "center": Metric("squared sum of the scores of a pair"),
    "margin_mean": Metric("mean margin", headline=True),
    "margin_min": Metric("least margin"),
    "score_mean": Metric("mean score"),
    "score_spread": Metric("spread of scores"),
    "rewards/accuracies": _share("pairs ranked right", headline=True),
    "held_out/rewards/accuracies": _share("held-out pairs ranked right", headline=True),
    "rewards/margins": Metric("reward margin", unit="nats", headline=True),
    "rewards": Metric("rewards", unit="nats"),
    "rewards/chosen": Metric("reward of chosen", unit="nats"),
    "rewards/rejected": Metric("reward of rejected", unit="nats"),
    "rewards/desirable": Metric("reward of good completions", unit="nats", headline=True),
    "rewards/undesirable": Metric("reward of bad completions", unit="nats", headline=True),
    "logps/desirable": Metric("log-probability of good completions", unit="nats"),
    "logps/undesirable": Metric("log-probability of bad completions", unit="nats"),
    "logps": Metric("log-probabilities", unit="nats"),
    "logps/chosen": Metric("log-probability of chosen", unit="nats"),
    "logps/rejected": Metric("log-probability of rejected", unit="nats"),
    "log_odds_ratio": Metric("log odds ratio"),
    "log_odds_chosen": Metric("log odds of chosen"),
    # Sampling, scoring, selecting.
    "prompt_tokens": Metric("prompt tokens"),
    "new_tokens": Metric("sampled tokens"),
    "scored_completions": Metric("scored completions"),
    "engine_seconds": Metric("sampling took", write=duration_text),
    "completion_tokens_mean": Metric("tokens per completion", headline=True),
    "completion_tokens_p50": Metric("median tokens"),
    "completion_tokens_p95": Metric("95th percentile of tokens"),
    "distinct_share": _share("distinct completions", headline=True),
    "finish_reasons": Metric("ends of completions"),
    "mean": Metric("mean"),
    "spread": Metric("spread"),
    "min": Metric("lowest"),
    "max": Metric("highest"),
    "nonfinite": Metric("not finite"),
    "disagreement": Metric("disagreement of the members"),
    "score_mean_kept": Metric("mean score of kept", headline=True),
    "score_mean_all": Metric("of all", headline=True),
    "desirable_share": _share("good completions", headline=True),
    "score_mean_desirable": Metric("mean score of good completions"),
    "score_mean_undesirable": Metric("mean score of bad completions"),
    "characters_mean_desirable": Metric("characters of good completions"),
    "characters_mean_undesirable": Metric("characters of bad completions"),
    "chosen_characters_mean": Metric("characters of chosen"),
    "rejected_characters_mean": Metric("characters of rejected"),
    "longer_chosen_share": _share("longer one chosen"),
    "flipped_by_length": Metric("flipped by length"),
    "disagreement_share": _share("scorers disagree"),
    "selected_epoch": Metric("chosen epoch", headline=True),
    "epoch_of_lowest_loss": Metric("epoch of the lowest loss", headline=True),
    "prompts": Metric("prompts"),
    "epochs": Metric("epochs"),
    "selected": Metric("chosen"),
    "models": Metric("models"),
    # Online training.
    "score": Metric("score"),
    "kl": Metric("KL", unit="nats"),
    "rollouts": Metric("rollout batches"),
    "episodes": Metric("episodes"),
    "scores_first": Metric("score at the start", headline=True),
    "objective/scores": Metric("score", headline=True),
    "objective/scores_std": Metric("spread of scores"),
    "objective/kl": Metric("KL", unit="nats", headline=True),
    "objective/kl_coef": Metric("KL coefficient"),
    "objective/non_score_reward": Metric("reward from the KL penalty", unit="nats"),
    "objective/rlhf_reward": Metric("reward"),
    "objective/entropy": Metric("entropy", unit="nats"),
    "loss/divergence_avg": Metric("divergence from the teacher", unit="nats per token"),
    "teacher/kl": Metric("KL to the teacher", unit="nats per token", headline=True),
    "teacher/kl_first": Metric("KL to the teacher at the start", unit="nats per token", headline=True),
    "teacher/agreement": _share("tokens where the teacher has the same favourite"),
    "policy/approxkl_avg": Metric("KL of an update", unit="nats"),
    "policy/approxkl_max": Metric("largest KL of an update", unit="nats"),
    "policy/grad_norm": Metric("gradient norm of the policy"),
    "value/grad_norm": Metric("gradient norm of the value model"),
    "updates": Metric("optimizer steps per rollout batch"),
    "policy/clipfrac_avg": _share("clipped tokens"),
    "loss/policy_avg": Metric("policy loss"),
    "loss/value_avg": Metric("value loss"),
    "val/clipfrac_avg": _share("clipped values"),
    "loss/kl_avg": Metric("KL in the loss", unit="nats per token"),
    "zero_variance_groups": _share("prompts whose completions all score the same", headline=True),
    "rollout/truncated_masked": _share("cut completions left out"),
    "rollout/importance_masked": _share("tokens left out for the gap between engine and trainer"),
    "replaced_groups": Metric("prompts replaced by others"),
    "truncated_completions": Metric("cut completions left out"),
    "scored_tokens": Metric("tokens sampled and scored, with prompts"),
    "val/ratio": Metric("probability ratio to the sampling policy"),
    "val/explained_var": _share("variance that the value model explains"),
    "rollout/completion_tokens": Metric("tokens per completion"),
    "rollout/eos_share": _share("completions that end"),
    "rollout/sampler_gap": Metric("gap between engine and trainer", unit="nats per token"),
    "rollout/sampler_gap_max": Metric("largest gap between engine and trainer", unit="nats per token"),
    "rollout/weights_version": Metric("rollout batches learned from when it was sampled"),
    "kl_coef": Metric("KL coefficient"),
    "score_bias": Metric("score that counts as 0"),
    "nonfinite_scores": Metric("scores that are not finite"),
    "stopped_by_kl_limit": Metric("stopped by the KL limit"),
    "sync_share": _share("time spent copying weights"),
    "seconds": Metric("time by part"),
    # Comparison.
    "kept_seconds": Metric("answers, scores and likelihoods took", write=duration_text),
    "reused_seconds": Metric("saved by what the store had", write=duration_text),
    "prompts_seen_in_training": Metric("prompts seen in training"),
}

PREFIXES = {
    "eval_": "validation ",
    "held_out/": "held-out ",
    "objective/scores/": "watched score ",
    "objective/parts/": "part of the score: ",
}
"""Words for the start of a key; what follows is a metric or a name of the user's."""


def metric_of(key: str) -> Metric:
    """How people read the metric of this key; an unknown one is shown by its key, with spaces."""
    if (known := METRICS.get(key)) is not None:
        return known
    for prefix, words in PREFIXES.items():
        if key.startswith(prefix):
            rest = METRICS.get(key.removeprefix(prefix)) or Metric(key.removeprefix(prefix))
            return replace(rest, words=f"{words}{rest.words}", headline=False)
    return Metric(key.replace("_", " ").replace("/", " "))


def headlines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The few numbers that say how a stage went, in the order of its metrics. Metrics outside the table are not among them."""
    for key, value in metrics.items():
        if is_number(value) and (known := METRICS.get(key)) is not None and known.headline:
            yield known.text(value)


def not_finite(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers that are NaN or infinite, at any depth, each with its key, such as `rm.mean`."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from not_finite(value, f"{prefix}{key}.")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{prefix}{key}", number


def json_value(value: Any) -> Any:
    """The same value with null for every number that JSON does not have: NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, list | tuple) else value


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
