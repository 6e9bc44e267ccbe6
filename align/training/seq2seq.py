"""Supervised fine-tuning of encoder–decoder models (T5 style): the prompt to the encoder, the completion to the decoder.

Cross-entropy on the completion's tokens as for other models (`align.training.sft`). Samples are not packed into rows: a batch
holds samples of similar length and is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from align.config.sections import FineTuning
from align.data.encoding import EncodedInstruction
from align.data.template import ChatFormat
from align.losses.logps import IGNORED_LABEL
from align.models.dropout import set_dropout
from align.models.folder import ModelFolder
from align.models.load import load_seq2seq_lm
from align.models.logits import keep_in_float32
from align.models.save import save_model
from align.models.seq2seq import Seq2SeqCollator, label_logps
from align.models.trainable import count_trained
from align.runtime.context import RunContext
from align.training.epoch import train_and_save
from align.training.label_guard import check_label_spans
from align.training.loop import GuardedTraining, resolve_precision, training_arguments
from align.training.sampler import LengthGroupedTrainer
from align.training.sft import GUARD_ROWS, SftResult
from align.training.sharding import sum_of_all

Sample = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion."""


class Seq2SeqSftTrainer(GuardedTraining, LengthGroupedTrainer):
    """Minimises the mean loss per completion token of every optimizer batch, however that batch is cut into micro-batches.

    It is not transformers' Seq2SeqTrainer, which only adds sampling during evaluation; sampling is a stage of its own here.
    """

    def __init__(
        self, model: PreTrainedModel, samples: Sequence[Sample], collator: Seq2SeqCollator, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__(model, samples, collator, arguments, lengths=[_tokens(sample) for sample in samples])

    def batch_counts(self, batches: Sequence[Mapping[str, Tensor]], fillers: Sequence[Mapping[str, Tensor]] = ()) -> Any:
        """Labels."""
        return sum_of_all([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches], self.args.device)

    def batch_loss(self, model: Any, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Cross-entropy, summed over the labels and divided by their number in the whole optimizer step."""
        return -label_logps(model, inputs).sum() / counts  # type: ignore[no-any-return]

    def row_fill(self) -> float:
        """Share of the tokens of the first epoch's batches, prompts and completions, that are not padding."""
        order, size = list(self._get_train_sampler()), self.pass_size.size
        room = 0
        for start in range(0, len(order), size):
            batch = [self.train_dataset[index] for index in order[start : start + size]]
            room += len(batch) * sum(max(map(len, side)) for side in zip(*batch, strict=True))
        return sum(self._lengths) / room


def _tokens(sample: Sample) -> int:
    return sum(map(len, sample))


def train_seq2seq_sft(
    encoded: Sequence[EncodedInstruction],
    completion_texts: Callable[[int], list[str]],
    context: RunContext,
    config: FineTuning,
    *,
    source: ModelFolder,
    output: Path,
    chat_format: ChatFormat,
) -> SftResult:
    """Train a copy of the encoder–decoder model in `source` and save it to `output`.

    Args and errors are those of `train_sft`.
    """
    samples = [(row.prompt_token_ids, row.completion_token_ids) for row in encoded]
    model = load_seq2seq_lm(source, dtype="float32")
    set_dropout(model, config.dropout)
    keep_in_float32(model.get_output_embeddings())
    collator = Seq2SeqCollator(pad_token_id=chat_format.pad_token_id, start_token_id=int(model.config.decoder_start_token_id))
    _guard_labels(samples, completion_texts, collator, chat_format)
    trainer = Seq2SeqSftTrainer(model, samples, collator, training_arguments(config, context, num_rows=len(samples)))
    dtype = source.saved_dtype(config.save_dtype)
    save = lambda folder: save_model(trainer.model, chat_format, folder, dtype=dtype)  # noqa: E731
    tokens, keeps_all = sum(map(_tokens, samples)), config.keep_epochs == "all"
    history = train_and_save(trainer, save, context, config, output, every_epoch=keeps_all, per_epoch={"tokens": tokens})
    metrics = {
        "train_loss": history.of_last_epoch("loss", rows=len(samples), batch_size=config.batch_size),
        "steps": history.steps,
        "tokens": tokens,
        "trained_tokens": tokens * config.num_epochs,
        "row_fill": trainer.row_fill(),
        "trained_parameters": count_trained(trainer.model),
        "precision": resolve_precision(config.precision),
        "micro_batch_size": trainer.pass_size.size,
        "gradient_checkpointing": trainer.pass_size.recomputes,
        "architecture": "encoder_decoder",
    }
    return SftResult(history, metrics)


def _guard_labels(
    samples: Sequence[Sample], completion_texts: Callable[[int], list[str]], collator: Seq2SeqCollator, chat_format: ChatFormat
) -> None:
    """Decode the labels of a sample of rows, as the trainer will see them, and compare them with the completions."""
    chosen = list(range(0, len(samples), max(1, len(samples) // GUARD_ROWS)))
    labels = collator([samples[index] for index in chosen])["labels"]
    check_label_spans(labels.tolist(), [text for index in chosen for text in completion_texts(index)], chat_format)
