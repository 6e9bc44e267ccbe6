"""The options that decide which preference pairs a prompt gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from align.config.base import Problem, StrictModel
from align.config.selection import POLICY_OPTIONS, Combine, OnLengthFlip, PairPolicy
from align.selection.ranking import RankingRule

Weight = Annotated[float, Field(gt=0)]


class PairRule(StrictModel):
    """What decides which pairs a prompt gives."""

    scorer: str | None = Field(default=None, min_length=1)
    """Name of the scorer that ranks. Or scorers."""
    scorers: dict[str, Weight] | None = Field(default=None, min_length=1)
    """Weight by scorer, where several rank together: {rm: 1.0, gold: 0.5}."""
    combine: Combine | None = None
    """With scorers: add up weighted scores, weighted standard scores per prompt (z_scores), or shares of candidates beaten
    (vote). Default: weighted_sum."""
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    """With scorers: share of their weight that must strictly prefer the chosen completion. Default: 0."""
    policy: PairPolicy = "max_min"
    """Which candidates make a pair; see docs/pairs.md."""
    min_margin: float = Field(default=0.0, ge=0)
    """A pair whose scores are closer than this is dropped."""
    max_margin: float | None = Field(default=None, gt=0)
    """For policy margin_window, which needs it: largest margin."""
    sigmas: float | None = Field(default=None, gt=0)
    """For policy mean_sigma: distance from the mean, in standard deviations. Default: 2."""
    k: int | None = Field(default=None, ge=1)
    """For policy top_k_bottom_k: candidates from either end. Default: 2."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """For policy length_matched: largest ratio of the lengths of the two completions, in characters. Default: 1.25."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score for every 100 characters, before ranking."""
    on_length_flip: OnLengthFlip | None = None
    """With length_penalty: what to do with a pair whose order follows from the penalty alone. Default: drop."""
    keep_truncated: bool = False
    """Use candidates that were cut at the token limit."""
    rso_beta: float | None = Field(default=None, gt=0)
    """For policy rso: temperature of acceptance, in the unit of the scores. Default: 0.5."""
    rso_accept: int | None = Field(default=None, ge=2)
    """For policy rso: candidates that are accepted before two are drawn. Default: 2."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        if fields.get("scorer") is None and fields.get("scorers") is None:
            text = "this key is missing; expected a text (or scorers, each with its weight)"
            yield Problem(("scorer",), text, at_key=True)
        policy = fields.get("policy", cls.model_fields["policy"].default)
        for option, needed in POLICY_OPTIONS.items():
            if policy != needed and fields.get(option) is not None:
                yield Problem((option,), f"goes with policy: {needed} only; here the policy is {policy}", at_key=True)

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.scorer is not None and self.scorers is not None:
            raise ValueError("one of scorer and scorers must be given, not both")
        if self.scorers is None and (self.combine is not None or self.min_agreement is not None):
            raise ValueError("combine and min_agreement must be given with scorers only")
        if self.on_length_flip is not None and not self.length_penalty:
            raise ValueError("on_length_flip must be given with a length_penalty only")
        if self.policy == "margin_window" and (self.max_margin is None or not self.max_margin > self.min_margin):
            raise ValueError(f"max_margin must be given with margin_window and be above min_margin, not {self.max_margin}")
        return self

    @cached_property
    def ranking(self) -> RankingRule:
        """How candidates are ordered."""
        return RankingRule(
            scorers=self.scorers if self.scorers is not None else {str(self.scorer): 1.0},
            combine=self.combine or "weighted_sum",
            length_penalty=self.length_penalty,
            keep_truncated=self.keep_truncated,
        )
