"""Reward model: a scalar score that ranks completions as a judge did.

Bradley–Terry: -log sigmoid(score(chosen) - score(rejected)) (Ouyang et al. 2022, eq. 1), initialised from a fine-tuned model
with a new score head. In: a model, preferences. Out: a reward model. Metrics: held-out accuracy with its interval, accuracy of
the rule "the longer completion wins" on the same pairs, accuracy by length difference.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import ModelReference, PreferencesReference
from align.config.sections import OnInvalid, Optimization
from align.data.encoding import encode_preferences
from align.data.template import ChatFormat
from align.errors import DataError
from align.models.folder import context_tokens
from align.records import Preference
from align.stages.protocol import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, write_rows

VERSION = 1


class Config(Optimization, StageConfig):
    """Bradley–Terry reward model on preferences."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from; usually the SFT model."""
    data: PreferencesReference
    """Pairs of a chosen and a rejected completion."""
    max_tokens: int = Field(default=1024, ge=8)
    """A prompt and completion longer than this together, or than the model can see, is an error, or a counted drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a pair that is too long."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the pairs kept out of training to measure accuracy, chosen by a hash of the prompt: a prompt is on one side."""
    center_coef: float = Field(default=0.01, ge=0)
    """Weight of (score(chosen) + score(rejected))², which keeps scores near zero (Eisenstein et al. 2023)."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Split the pairs by prompt, train on one part, measure on the other."""
    from align.models.load import load_tokenizer
    from align.training.reward_model import evaluate_reward_model, split_by_prompt, train_reward_model

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.data)
    chat_format = ChatFormat(load_tokenizer(source.model_path), where=source.where(None))
    limit = min(config.max_tokens, context_tokens(source.model_path))
    records = data.rows(Preference)
    encoded = encode_preferences(records, chat_format, max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    split = split_by_prompt(records, encoded.rows, share=config.held_out_share, seed=context.seed)
    if not split.train or not split.held_out:
        raise DataError(
            f"{data.where(None)}: {len(encoded.rows)} pairs leave {len(split.train)} to train on and {len(split.held_out)} to "
            "measure accuracy on; both are needed",
            hint="Give more pairs with different prompts, or change held_out_share.",
        )
    output = context.output / MODEL_FOLDER
    history, metrics = train_reward_model(
        split.train,
        context,
        config,
        source=source.model_path,
        output=output,
        chat_format=chat_format,
        center_coef=config.center_coef,
    )
    metrics.update(evaluate_reward_model(output, split))
    write_rows(context.output / DROPS_NAME, encoded.drops)
    history.write(context.output / METRICS_NAME)
    return StageOutcome(metrics=metrics, rows_in=len(records), rows_out=len(encoded.rows), dropped=encoded.dropped())
