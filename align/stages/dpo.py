"""Direct Preference Optimization: make the chosen completions likelier than the rejected ones, near a reference.

-log sigmoid(beta * (policy margin - reference margin)), Rafailov et al. 2023, eq. 7; hinge (Zhao et al. 2023) and IPO (Azar et
al. 2023) on the same margins. The reference is the model that training starts from, unless another is named; its
log-probabilities are computed once and kept in the store, and where it is the model itself the loss at step 0 is ln 2.
In: a model, preferences. Out: a model. Metrics: loss, rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins,
logps/chosen, logps/rejected.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from align.config.peft import AnyPeft
from align.config.reference import ModelReference, RowsReference
from align.config.sections import PairwiseOptimization
from align.data.encoding import encode_preferences
from align.data.template import ChatFormat
from align.errors import RecipeError
from align.models.folder import context_tokens, refuse_encoder_decoder
from align.records import Preference
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, METRICS_NAME, MODEL_FOLDER, Artifact, write_rows

VERSION = 4


class Config(PairwiseOptimization, AnyPeft, StageConfig):
    """DPO on preferences."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"checkpoint_steps"})

    model: ModelReference
    """Model to start from."""
    pairs: RowsReference[Preference]
    """Pairs of a chosen and a rejected completion."""
    reference: ModelReference | None = None
    """Model to stay near. Default: model."""
    variant: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Shape of the loss: sigmoid is DPO itself, hinge as in SLiC-HF, ipo a squared distance on averages per token."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed share of flipped labels (conservative DPO); for the variant sigmoid only."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode the pairs, get the reference's log-probabilities, check that the loss starts where it must, train."""
    from align.models.load import load_tokenizer
    from align.models.start import Start
    from align.training.dpo import Reference, train_dpo
    from align.training.pairwise.objective import DpoObjective

    config = context.config
    source, data = context.artifact(config.model), context.artifact(config.pairs)
    reference = context.artifact(config.reference or config.model)
    refuse_encoder_decoder("dpo", source, reference)
    chat_format = ChatFormat(load_tokenizer(source.model_path), where=source.where(None))
    _check_vocabulary(source, reference)
    start = Start(source.model_path, config.peft, context.store_root, context.name)
    limit = min(config.max_tokens, start.context_tokens, context_tokens(reference.model_path))
    records = data.rows(Preference)
    encoded = encode_preferences(records, chat_format, max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    history, metrics = train_dpo(
        encoded.rows,
        context,
        config,
        start=start,
        reference=Reference(reference, reference.fingerprint == source.fingerprint, context.store_root),
        output=context.output / MODEL_FOLDER,
        chat_format=chat_format,
        objective=DpoObjective(config.beta, config.label_smoothing, config.variant),
    )
    write_rows(context.output / DROPS_NAME, encoded.drops)
    history.write(context.output / METRICS_NAME)
    return StageOutcome(metrics=metrics, rows_in=len(records), rows_out=len(encoded.rows), dropped=encoded.dropped())


def _check_vocabulary(source: Artifact, reference: Artifact) -> None:
    """Policy and reference read the same tokens, so that a number must mean the same token to both."""
    from align.models.load import differing_tokens

    if reference.fingerprint == source.fingerprint:
        return
    if differing := differing_tokens(source.model_path, reference.model_path):
        raise RecipeError(
            f"{reference.name}: the reference of {source.name} needs the same tokenizer, but {len(differing):,} tokens differ "
            f"({', '.join(map(repr, differing[:3]))}, …)",
            hint="Name a reference that was made from the same base model.",
        )
