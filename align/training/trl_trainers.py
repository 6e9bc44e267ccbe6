"""TRL's trainer for fine-tuning, adapted. The only file that imports TRL.

By default TRL would tokenise again (our tokens are checked and final), write model cards, report to its makers, and compute at
every step the entropy of every position, prompts and padding included. So the loss is computed here, from log-probabilities of
the completion's tokens only; tests/numerics compares it with TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from align.data.template import ChatFormat
from align.losses.logps import IGNORED_LABEL
from align.models.head import extend_forward, last_hidden_states, token_logps
from align.training.loop import GuardedTraining
from align.training.packing import PackedCollator
from align.training.sharding import allow_fsdp_on_cpu, sum_of_all

ROUTER_SETTINGS = ("output_router_logits", "router_aux_loss_coef")


class GuardedSFTTrainer(GuardedTraining, SFTTrainer):
    """TRL's SFTTrainer on rows that are packed already."""

    def batch_counts(self, batches: Sequence[Mapping[str, Tensor]], fillers: Sequence[Mapping[str, Tensor]] = ()) -> Any:
        """Labelled tokens."""
        return sum_of_all([(batch["labels"][:, 1:] != IGNORED_LABEL).sum() for batch in batches], self.args.device)

    def batch_loss(self, model: Any, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Cross-entropy, summed over labelled tokens and divided by their number in the whole optimizer step."""
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        return -model(**rest, logps_of=inputs["labels"]).sum() / counts  # type: ignore[no-any-return]


def sft_trainer(
    model: PreTrainedModel, chat_format: ChatFormat, rows: Sequence[dict[str, list[int]]], arguments: dict[str, Any]
) -> SFTTrainer:
    """Cross-entropy on labels, normalised by the number of labelled tokens of the whole batch."""
    packed = getattr(model, "is_loaded_in_4bit", False)
    adapter = {name: value.data for name, value in model.named_parameters() if packed and value.requires_grad}
    # TRL lets mixtures of experts return their router's logits, for a loss that is not taken here. Saved so, none could sample.
    settings = model.config.get_text_config()
    router = {name: getattr(settings, name) for name in ROUTER_SETTINGS if hasattr(settings, name)}
    config = SFTConfig(**arguments, packing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    allow_fsdp_on_cpu(config)
    trainer = GuardedSFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows[:1]),
        processing_class=chat_format.tokenizer,
        data_collator=PackedCollator(chat_format.pad_token_id),
    )
    # TRL asks for a data set of its own kind, which would hold every token of all rows.
    trainer.train_dataset = rows
    settings.update(router)
    for name, value in model.named_parameters():
        if name in adapter:  # TRL makes the adapter of a 4-bit model bfloat16, in which small updates vanish
            value.data = adapter[name].to(value.device)
    add_label_logps(trainer.model)
    return trainer


def add_label_logps(model: Any) -> None:
    """Let `model(…, logps_of=labels)` return `token_logps` of the shifted labels, [batch, seq - 1], in place of logits."""
    extend_forward(model, "logps_of", _label_logps)


def _label_logps(model: Any, labels: Tensor, **inputs: Any) -> Tensor:
    return token_logps(model, last_hidden_states(model, **inputs)[:, :-1], labels[:, 1:])
