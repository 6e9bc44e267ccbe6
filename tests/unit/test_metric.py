"""Words, units and formats of metrics."""

from __future__ import annotations

import math

import pytest

from align.metric import METRICS, duration_text, headlines, left_text, metric_of, number_text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("loss", 0.43218, "loss 0.4322"),
        ("rewards/accuracies", 0.797, "pairs ranked right 79.7 %"),
        ("rewards/accuracies", 0.8, "pairs ranked right 80 %"),
        ("rewards/margins", 0.5, "reward margin 0.5 nats"),
        ("objective/kl", math.nan, "KL nan"),
        ("tokens_per_second", 4244.6, "4,245 tokens/s"),
        ("tokens_per_second", 12.34, "12.3 tokens/s"),
        ("new_tokens", 65444, "sampled tokens 65,444"),
        ("engine_seconds", 75.2, "sampling took 75 s"),
        ("precision", "float32", "computed in float32"),
        ("learning_rate", None, "learning rate –"),
        ("eval_loss", 0.5, "validation loss 0.5"),
        ("eval_rewards/accuracies", 0.5, "validation pairs ranked right 50 %"),
        ("objective/scores/사람", 0.5, "watched score 사람 0.5"),
        ("my/own_metric", 2, "my own metric 2"),
    ],
)
def test_a_metric_in_words(key: str, value: object, text: str) -> None:
    assert metric_of(key).text(value) == text


def test_no_words_are_a_key() -> None:
    assert not [metric.words for metric in METRICS.values() if "_" in metric.words]
    # Rates such as tokens/s are the only words with a slash.
    assert not [metric.words for metric in METRICS.values() if "/" in metric.words and not metric.is_rate]


def test_headlines_leave_out_settings_and_what_nobody_described() -> None:
    metrics = {"steps": 20, "loss": 0.5, "odd": 3.0, "accuracy": 0.75, "precision": "float32", "margin_mean": None}
    assert list(headlines(metrics)) == ["loss 0.5", "pairs ranked right 75 %"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (53.4, "53 s"), (100, "1 min 40 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (12345, "12,345"), (0.000123456, "0.0001235"), (1.0, "1"), (float("nan"), "nan"), (float("inf"), "inf")],
)
def test_numbers(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "about 5 s"), (62, "about 60 s"), (95, "about 2 min"), (3600, "about 60 min"), (7500, "about 2 h 05 min")],
)
def test_time_left_is_rounded(seconds: float, text: str) -> None:
    assert left_text(seconds) == text
