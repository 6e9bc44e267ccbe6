"""Supervised fine-tuning: teach a model to give the completions of a file.

Cross-entropy on the completion's tokens only (InstructGPT, Ouyang et al. 2022, §3.5; cosine decay as there).
In: a model with a chat template (encoder–decoder models do without), instructions. Out: a model, and one checkpoint per epoch
under `epochs/` unless `keep_epochs` is none.
Metrics: loss, learning rate and gradient norm per logging step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from align.config.peft import AnyPeft, VirtualTokens
from align.config.reference import ModelReference, RowsReference
from align.config.sections import FineTuning, OnInvalid
from align.data.encoding import EncodedInstruction, encode_instructions
from align.data.template import ChatFormat
from align.errors import RecipeError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Drop, Instruction
from align.stage import StageConfig, StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, EPOCHS_NAME, METRICS_NAME, MODEL_FOLDER, Artifact, write_rows
from align.store.atomic import link_tree
from align.training.needs import TrainingNeeds, sample_passes

if TYPE_CHECKING:
    from align.training.sft import SftResult

VERSION = 5


class Config(FineTuning, AnyPeft, StageConfig):
    """Supervised fine-tuning on instructions."""

    model: ModelReference
    """Model to start from."""
    data: RowsReference[Instruction]
    """Prompts and the completions to imitate."""
    max_tokens: int = Field(default=1024, ge=8)
    """Most tokens of prompt and completion together. A longer row, or one beyond the model's context, is an error or a drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a row that is too long."""
    train_on: Literal["last", "all"] = "last"
    """Take the loss on the completion (the last assistant message), or on every assistant message of a conversation."""
    packing: bool = True
    """Several short samples share a row of max_tokens; they do not see each other. Not with encoder–decoder models and virtual
    tokens, which take one sample a row."""

    def training_needs(self) -> TrainingNeeds:
        passes = partial(sample_passes, self, max_tokens=self.max_tokens, packing=self.packing)
        kept = self.num_epochs if self.keep_epochs == "all" else 0
        return TrainingNeeds(
            self.model, self.data, self.precision, self.peft, passes, self, save_dtype=self.save_dtype, num_epochs_kept=kept
        )

    @model_validator(mode="after")
    def _virtual_tokens_stand_alone(self) -> Config:
        if isinstance(self.peft, VirtualTokens) and self.packing and "packing" in self.model_fields_set:
            raise ValueError(
                f"packing: true does not go with {self.peft.method}: virtual tokens stand in front of a row, so in front of its "
                "first sample only; leave packing out"
            )
        return self


def run(context: StageContext[Config]) -> StageOutcome:
    """Encode and check every row, train, keep the model and, if wanted, one checkpoint per epoch."""

    source, data = context.artifact(context.config.model), context.artifact(context.config.data)
    folder = ModelFolder.of(source)
    chat_format = load_format(folder, where=source.where(None))
    train = _train_encoder_decoder if folder.encoder_decoder else _train_decoder_only
    drops, num_records, result = train(context, folder, data, chat_format)
    if context.is_first:
        write_rows(context.output / DROPS_NAME, drops)
        result.history.write(context.output / METRICS_NAME)
        if context.config.keep_epochs == "all":
            # Not moved: a kill before the commit must find them in the work folder again.
            link_tree(context.work / EPOCHS_NAME, context.output / EPOCHS_NAME)
    dropped = dict(Counter(drop.drop_reason for drop in drops).most_common())
    return StageOutcome(metrics=result.metrics, rows_in=num_records, rows_out=num_records - len(drops), dropped=dropped)


def _train_decoder_only(
    context: StageContext[Config], folder: ModelFolder, data: Artifact, chat_format: ChatFormat
) -> tuple[Sequence[Drop], int, SftResult]:
    """All weights or an adapter, on rows in which samples may be packed; dropped rows and the number of all."""
    from align.data.forms import COMPLETION, EVERY_TURN
    from align.models.trainable import TrainableModel
    from align.training.sft import train_sft
    from align.training.token_store import stored_tokens

    config = context.config
    trainable = TrainableModel(folder, config.peft, context.store_root, context.name, config.save_dtype)
    limit = min(config.max_tokens, trainable.context_tokens)
    tokens = stored_tokens(context, data, folder, chat_format, EVERY_TURN if config.train_on == "all" else COMPLETION)
    rows, drops = tokens.read(max_tokens=limit, on_invalid=config.on_invalid, where=data.where)
    records = data.row_file(Instruction)
    result = train_sft(
        rows,
        rows.measures["total"].tolist(),
        lambda number: _completion_texts(rows[number], records[int(tokens.records[rows.places[number]])], chat_format),
        context,
        config,
        trainable=trainable,
        output=context.output / MODEL_FOLDER,
        chat_format=chat_format,
        max_tokens=limit,
        packing=config.packing and not isinstance(config.peft, VirtualTokens),
    )
    return drops, len(records), result


def _train_encoder_decoder(
    context: StageContext[Config], folder: ModelFolder, data: Artifact, chat_format: ChatFormat
) -> tuple[Sequence[Drop], int, SftResult]:
    """All weights, one sample a row; prompt and completion may each be as long as the model can see."""
    from align.training.seq2seq import train_seq2seq_sft

    config = context.config
    if config.peft is not None:
        where = context.artifact(config.model).where(None)
        raise RecipeError(
            f"{context.name}: peft is for decoder-only models, and {where} is encoder–decoder",
            hint="Leave peft out: all its weights are trained.",
        )
    records = data.rows(Instruction)
    encoded = encode_instructions(
        records,
        chat_format,
        max_tokens=config.max_tokens,
        max_side_tokens=folder.context_tokens,
        every_turn=config.train_on == "all",
        on_invalid=config.on_invalid,
        where=data.where,
    )
    # Dropped rows leave gaps, so texts are matched by id.
    by_id = {record.id: record for record in records}
    result = train_seq2seq_sft(
        encoded.rows,
        lambda number: _completion_texts(encoded.rows[number], by_id[encoded.rows[number].id], chat_format),
        context,
        config,
        source=folder,
        output=context.output / MODEL_FOLDER,
        chat_format=chat_format,
    )
    return encoded.drops, len(records), result


def _completion_texts(row: EncodedInstruction, record: Instruction, chat_format: ChatFormat) -> list[str]:
    """The texts of a row's completions."""
    messages = [*record.prompt, record.answer]
    places = row.turns or (len(record.prompt),)
    return [chat_format.completion_text(messages[:place], messages[place]) for place in places]
