"""Direct Preference Optimization: make the chosen completions likelier than the rejected ones, near a reference.

-log sigmoid(beta * (policy margin - reference margin)), Rafailov et al. 2023, eq. 7. The reference is the model that training
starts from; its log-probabilities are computed once, before training, and the loss at step 0 is ln 2.
In: a model, preferences. Out: a model. Metrics: loss, rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins,
logps/chosen, logps/rejected.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.reference import ModelReference, PreferencesReference
from align.config.sections import OnInvalid, Optimization
from align.data.encoding import encode_preferences
from align.data.template import ChatFormat
from align.models.folder import context_tokens
from align.records import Preference
from align.stages.protocol import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, write_rows

VERSION = 1


class Config(Optimization, StageConfig):
    """DPO on preferences."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from; it is the reference as well."""
    pairs: PreferencesReference
    """Pairs of a chosen and a rejected completion."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels (conservative DPO)."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    max_tokens: int = Field(default=1024, ge=8)
    """A prompt and completion longer than this together, or than the model can see, is an error, or a counted drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a pair that is too long."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode the pairs, compute the reference once, check that the loss starts at ln 2, train."""
    from align.models.load import load_tokenizer
    from align.training.dpo import train_dpo

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.pairs)
    chat_format = ChatFormat(load_tokenizer(source.model_path), where=source.where(None))
    limit = min(config.max_tokens, context_tokens(source.model_path))
    records = data.rows(Preference)
    encoded = encode_preferences(records, chat_format, max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    history, metrics = train_dpo(
        encoded.rows,
        context,
        config,
        source=source.model_path,
        output=context.output / MODEL_FOLDER,
        chat_format=chat_format,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
    )
    write_rows(context.output / DROPS_NAME, encoded.drops)
    history.write(context.output / METRICS_NAME)
    return StageOutcome(metrics=metrics, rows_in=len(records), rows_out=len(encoded.rows), dropped=encoded.dropped())
