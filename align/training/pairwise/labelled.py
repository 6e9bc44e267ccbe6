"""A method on single completions that are good or bad; importing it loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from align.config.base import Problem
from align.config.reference import ModelReference, RowsReference
from align.records import Labelled, Preference
from align.training.needs import TrainingNeeds, labelled_needs
from align.training.pairwise.objective import PairwiseConfig

if TYPE_CHECKING:
    from align.training.pairwise.rows import PairRows


class LabelledConfig(PairwiseConfig):
    """Of a method that stays near a reference, and estimates how near it is from completions that belong to other prompts.

    A pair is a completion and, as its rejected side, one of another prompt. Besides the columns of `ReferenceConfig`, its batches
    have `desirable`, [pairs], 1 or 0. The mean of the log-ratios of the rejected sides is over the whole optimizer batch.
    """

    has_shared_value = True

    data: RowsReference[Labelled | Preference]
    """Completions that are good or bad. Of preferences, chosen is good and rejected is bad."""
    reference: ModelReference | None = None
    """Model to stay near. Default: model."""

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        if fields.get("batch_size") == 1:
            yield Problem(("batch_size",), "must be 2 or more: the KL is estimated from the rows of a batch")

    def training_needs(self) -> TrainingNeeds:
        return replace(labelled_needs(self, self.model, self.data, self.peft), reference=self.reference or self.model)

    @property
    def reads(self) -> Callable[..., PairRows]:
        from align.training.pairwise.rows import read_labelled

        return read_labelled
