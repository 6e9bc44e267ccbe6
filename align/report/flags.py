"""The red flags of a row: what it gave up compared with the baseline."""

from __future__ import annotations

from align.config.healthy import MOST_KL, MOST_UPDATE_KL
from align.report.collapse import RedFlag, fell, repeats_itself, rule_fell, said_too_often
from align.report.rows import Row


def red_flags(row: Row, baseline: Row) -> list[RedFlag]:
    """Signs that the row gave something up, in a fixed order; often none."""
    flags = []
    if fell(row.distinct_2, baseline.distinct_2):
        flags.append(RedFlag(kind="distinct_2", value=row.distinct_2 or 0.0, baseline=baseline.distinct_2))
    if fell(row.distinct_answers, baseline.distinct_answers):
        flags.append(RedFlag(kind="distinct_answers", value=row.distinct_answers or 0.0, baseline=baseline.distinct_answers))
    if row.compression and baseline.compression and fell(1 / row.compression, 1 / baseline.compression):
        flags.append(RedFlag(kind="compression", value=row.compression, baseline=baseline.compression))
    if repeats_itself(row.repetition, baseline.repetition):
        flags.append(RedFlag(kind="repetition", value=row.repetition or 0.0, baseline=baseline.repetition))
    if row.frequent is not None and said_too_often(row.frequent, baseline.frequent):
        before = baseline.frequent.share if baseline.frequent else None
        flags.append(RedFlag(kind="frequent_sentence", detail=row.frequent.text, value=row.frequent.share, baseline=before))
    for scorer, rates in row.rules.items():
        for rule, rate in rates.items():
            if rule_fell(rate, before := baseline.rules[scorer][rule]):
                flags.append(RedFlag(kind="rule", detail=f"{scorer}: {rule}", value=rate, baseline=before))
    if row.kl is not None and (kl := float(row.kl.mean())) > MOST_KL:
        flags.append(RedFlag(kind="kl", value=kl, baseline=None))
    if row.update_kl is not None and row.update_kl > MOST_UPDATE_KL:
        flags.append(RedFlag(kind="update_kl", value=row.update_kl, baseline=None))
    return flags
