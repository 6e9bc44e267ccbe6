"""Reward model: a scalar score that ranks completions as a judge did.

Bradley–Terry: -log sigmoid(score(chosen) - score(rejected)) (Ouyang et al. 2022, eq. 1), initialised from a fine-tuned model
with a new score head. In: a model, preferences. Out: a reward model. Metrics: held-out accuracy with its interval, accuracy of
the rule "the longer completion wins" on the same pairs, accuracy by length difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from align.config.peft import LoraOnly
from align.config.reference import ModelReference, RowsReference
from align.config.sections import PairwiseOptimization
from align.data.encoding import Where, encode_preferences
from align.data.template import ChatFormat
from align.errors import DataError, several
from align.models.folder import refuse_encoder_decoder
from align.records import Preference
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, write_rows

VERSION = 4


class Config(PairwiseOptimization, LoraOnly, StageConfig):
    """Bradley–Terry reward model on preferences."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from; usually the SFT model."""
    data: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs kept out of training to measure accuracy, chosen by a hash of the prompt: a prompt is on one side."""
    center_coef: float = Field(default=0.01, ge=0)
    """Weight of (score(chosen) + score(rejected))², which keeps scores near zero (Eisenstein et al. 2023)."""
    margin: Literal["none", "scores"] = "none"
    """scores: the chosen score should be higher by chosen_score - rejected_score of the row (Llama 2, Touvron et al. 2023)."""

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        return "a score is read from a trained head, which virtual tokens alone would leave as it was drawn"


def run(context: StageContext[Config]) -> StageOutcome:
    """Split the pairs by prompt, train on one part, measure on the other."""
    from align.models.load import load_tokenizer
    from align.models.start import Start
    from align.training.reward_model import evaluate_reward_model, split_by_prompt, train_reward_model

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.data)
    refuse_encoder_decoder("reward_model", source)
    chat_format = ChatFormat(load_tokenizer(source.model_path), where=source.where(None))
    start = Start(source.model_path, config.peft, context.store_root, context.name)
    limit = min(config.max_tokens, start.context_tokens)
    records = data.rows(Preference)
    encoded = encode_preferences(records, chat_format, max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    split = split_by_prompt(records, encoded.rows, share=config.held_out_share, seed=context.seed)
    if not split.train or not split.held_out:
        raise DataError(
            f"{data.where(None)}: {len(encoded.rows)} pairs leave {len(split.train)} to train on and {len(split.held_out)} to "
            "measure accuracy on; both are needed",
            hint="Give more pairs with different prompts, or change held_out_share.",
        )
    trained = {row.id for row in split.train}
    margins = _margins([record for record in records if record.id in trained], data.where) if config.margin == "scores" else None
    output = context.output / MODEL_FOLDER
    history, metrics = train_reward_model(
        split.train,
        context,
        config,
        start=start,
        output=output,
        chat_format=chat_format,
        center_coef=config.center_coef,
        margins=margins,
    )
    metrics.update(evaluate_reward_model(output, split))
    write_rows(context.output / DROPS_NAME, encoded.drops)
    history.write(context.output / METRICS_NAME)
    return StageOutcome(metrics=metrics, rows_in=len(records), rows_out=len(encoded.rows), dropped=encoded.dropped())


def _margins(records: Sequence[Preference], where: Where) -> dict[str, float]:
    """By how much the chosen completion scored higher, by pair id."""
    margins: dict[str, float] = {}
    problems: list[str] = []
    for record in records:
        if record.chosen_score is None or record.rejected_score is None:
            problems.append(f"{where(record.line)}: {record.id}: has no chosen_score or no rejected_score")
        elif record.chosen_score < record.rejected_score:
            scores = f"chosen_score {record.chosen_score:g}, rejected_score {record.rejected_score:g}"
            problems.append(f"{where(record.line)}: {record.id}: the rejected completion scored higher ({scores})")
        else:
            margins[record.id] = record.chosen_score - record.rejected_score
    if problems:
        raise DataError(
            several(problems, f"rows cannot give a margin (of {len(records):,})"),
            hint="Set margin: none, or give every pair both scores.",
        )
    return margins
