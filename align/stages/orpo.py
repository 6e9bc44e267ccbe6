"""Odds Ratio Preference Optimization: fine-tuning and preference in one loss, with one model in memory.

nll(chosen) - odds_ratio_weight * log sigmoid(log odds(chosen) - log odds(rejected)), Hong et al. 2024, eqs. 4-7. No reference.
In: a model (a base model that can chat, or a fine-tuned one), preferences. Out: a model. Metrics: loss, nll_loss, log_odds_ratio,
log_odds_chosen, rewards/accuracies, logps/chosen, logps/rejected.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align.config.peft import AnyPeft
from align.config.reference import ModelReference, RowsReference
from align.config.sections import PairwiseOptimization
from align.data.encoding import encode_preferences
from align.data.template import ChatFormat
from align.models.folder import refuse_encoder_decoder
from align.records import Preference
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, write_rows

VERSION = 3


class Config(PairwiseOptimization, AnyPeft, StageConfig):
    """ORPO on preferences."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from."""
    pairs: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""
    odds_ratio_weight: float = Field(default=0.1, ge=0)
    """Weight of the odds-ratio term beside the likelihood of the chosen completions (lambda of the paper)."""
    nll_tokens: Literal["completion", "prompt_and_completion"] = "completion"
    """Tokens of the likelihood term. TRL and the authors' code take the prompt's too."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode the pairs, train."""
    from align.models.load import load_tokenizer
    from align.models.start import Start
    from align.training.orpo import train_orpo

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.pairs)
    refuse_encoder_decoder("orpo", source)
    chat_format = ChatFormat(load_tokenizer(source.model_path), where=source.where(None))
    start = Start(source.model_path, config.peft, context.store_root, context.name)
    limit = min(config.max_tokens, start.context_tokens)
    records = data.rows(Preference)
    encoded = encode_preferences(records, chat_format, max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    history, metrics = train_orpo(
        encoded.rows,
        context,
        config,
        start=start,
        output=context.output / MODEL_FOLDER,
        chat_format=chat_format,
        odds_ratio_weight=config.odds_ratio_weight,
        nll_tokens=config.nll_tokens,
    )
    write_rows(context.output / DROPS_NAME, encoded.drops)
    history.write(context.output / METRICS_NAME)
    return StageOutcome(metrics=metrics, rows_in=len(records), rows_out=len(encoded.rows), dropped=encoded.dropped())
