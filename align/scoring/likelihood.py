"""Log-probabilities that a language model, causal or encoder–decoder, gives to completions and to plain texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from align.errors import StageError
from align.losses.logps import IGNORED_LABEL
from align.models.chat_format import load_format
from align.models.finite import BROKEN_NUMBERS
from align.models.folder import ModelFolder
from align.models.head import last_hidden_states, target_logps, token_logps
from align.models.load import load_causal_lm, load_seq2seq_lm
from align.models.logits import check_logits
from align.models.seq2seq import Seq2SeqCollator, label_logps
from align.runtime.device import device_name, free_memory, frozen_dtype
from align.scoring.batching import map_batches, pad_right
from align.scoring.shared_prompt import Row, lay_out, row_units, unit_tokens


@torch.inference_mode()
def completion_logps(
    model: Any,
    rows: Sequence[Row],
    *,
    pad_token_id: int,
    batch_tokens: int,
    autocast: torch.dtype | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Log-probability of each completion given its prompt, summed over the completion's tokens, in nats.

    Args:
        model: a causal language model in evaluation mode.
        rows: (prompt ids, completion ids). With an empty prompt the first completion token is not counted: nothing predicts it.
        batch_tokens: most padded tokens per forward pass; the result does not depend on it beyond rounding.
        autocast: arithmetic of the forward pass; None is that of the weights.
        report: called with the number of rows done.
    Returns:
        One number per row, in the order given; 0.0 for an empty completion.
    """
    device = next(model.parameters()).device
    units = row_units(model, rows, batch_tokens)

    def totals_of_shared(batch: list[int]) -> torch.Tensor:
        row = lay_out([rows[index] for index in batch])
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            logps = target_logps(model, row.states(model)[row.sources.to(device)], row.targets.to(device))
        return torch.zeros(len(batch), dtype=torch.float64, device=device).index_add_(0, row.numbers.to(device), logps.double())

    def totals(batch: list[int]) -> torch.Tensor:
        sequences = [rows[index][0] + rows[index][1] for index in batch]
        input_ids, attention_mask = (tensor.to(device) for tensor in pad_right(sequences, pad_token_id))
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED_LABEL)
        for row, index in enumerate(batch):
            # The prompt is given: only tokens of the completion count.
            labels[row, : len(rows[index][0])] = IGNORED_LABEL
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            hidden = last_hidden_states(model, input_ids=input_ids, attention_mask=attention_mask)
            # The state at one token predicts the next.
            logps = token_logps(model, hidden[:, :-1], labels[:, 1:])
        # Summed in float64: in float32, the rounding would grow with the length of a completion.
        return logps.double().sum(-1)

    compute = totals if len(units) == len(rows) else totals_of_shared
    return map_batches([unit_tokens(rows, unit) for unit in units], batch_tokens, compute, report, units=units)


def text_rows(folder: ModelFolder, texts: Sequence[str]) -> list[Row]:
    """Plain texts as a causal model reads them: completions without a prompt. Those of less than two tokens are left out.

    They begin with the tokenizer's beginning-of-sequence token where it has one: models that were trained with it predict badly
    without. The model has no positions beyond its limit, so longer ones are cut.
    """
    from transformers import AutoConfig

    path = (folder.base if folder.is_adapter else folder).path
    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    limit = config.get_text_config().max_position_embeddings
    encoded = [list(ids)[:limit] for ids in load_format(folder).tokenizer(list(texts), add_special_tokens=True)["input_ids"]]
    return [([], ids) for ids in encoded if len(ids) > 1]


def perplexity_of(tokens: int, logps: Sequence[float], *, where: str) -> float | None:
    """exp of the mean negative log-probability per token; None without any.

    Args:
        where: the model, for the error.
        tokens: of all texts, without the first of each, which nothing predicts.
        logps: one per text.
    """
    if not tokens:
        return None
    mean = -sum(logps) / tokens
    try:
        return math.exp(mean)
    except OverflowError:
        message = f"{where}: the model needs {mean:,.0f} nats per token of the plain texts, so its perplexity is no number"
        raise StageError(message, hint=BROKEN_NUMBERS) from None


class LikelihoodModel:
    """A causal language model, loaded to read log-probabilities from."""

    def __init__(self, folder: ModelFolder, *, batch_tokens: int) -> None:
        self._model = load_causal_lm(folder, dtype=frozen_dtype()).to(device_name()).eval()
        check_logits(self._model, str(folder.path))
        self._folder = folder
        self._format = load_format(folder)
        self._batch_tokens = batch_tokens

    def completion_logps(
        self, rows: Sequence[Row], *, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[float]:
        """See `completion_logps`; `report` is called with (rows done, all rows).

        Raises:
            StageError: if one of them is not finite.
        """
        logps = completion_logps(
            self._model,
            rows,
            pad_token_id=self._format.pad_token_id,
            batch_tokens=self._batch_tokens,
            report=lambda done: report(done, len(rows)),
        )
        return _finite(logps, self._folder)

    def perplexity(self, texts: Sequence[str], *, report: Callable[[int, int], None] = lambda done, total: None) -> float | None:
        """See `perplexity_of`."""
        rows = text_rows(self._folder, texts)
        logps = self.completion_logps(rows, report=report)
        return perplexity_of(sum(len(ids) - 1 for _, ids in rows), logps, where=str(self._folder.path))

    def close(self) -> None:
        """Free its memory; it cannot be used any more."""
        del self._model
        free_memory()


class Seq2SeqLikelihoodModel:
    """An encoder–decoder model in float32, loaded to read log-probabilities from."""

    def __init__(self, folder: ModelFolder, *, batch_tokens: int) -> None:
        self._device = device_name()
        self._folder = folder
        self._model = load_seq2seq_lm(folder, dtype="float32").to(self._device).eval()
        self._collate = Seq2SeqCollator(
            pad_token_id=load_format(folder).pad_token_id, start_token_id=int(self._model.config.decoder_start_token_id)
        )
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def completion_logps(
        self, rows: Sequence[Row], *, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[float]:
        """Log-probability of each completion given its prompt, summed over the completion's tokens, in nats.

        Args:
            rows: (prompt ids, completion ids): what the encoder reads, what the decoder writes.
            report: called with (rows done, all rows).
        Returns:
            One number per row, in the order given; 0.0 for an empty completion.
        Raises:
            StageError: if one of them is not finite.
        """

        def totals(batch: list[int]) -> torch.Tensor:
            inputs = {name: tensor.to(self._device) for name, tensor in self._collate([rows[index] for index in batch]).items()}
            return label_logps(self._model, inputs).double().sum(-1)

        lengths = [len(prompt) + len(completion) for prompt, completion in rows]
        logps = map_batches(lengths, self._batch_tokens, totals, lambda done: report(done, len(rows)))
        return _finite(logps, self._folder)

    def perplexity(self, texts: Sequence[str], *, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """None: of a plain text it is not defined which part the encoder reads and which the decoder writes."""

    def close(self) -> None:
        """Free its memory; it cannot be used any more."""
        del self._model
        free_memory()


def _finite(logps: list[float], folder: ModelFolder) -> list[float]:
    """The log-probabilities, of which no mean can be taken if one is not finite."""
    for number, logp in enumerate(logps, start=1):
        if not math.isfinite(logp):
            raise StageError(
                f"{folder.path}: the model gives text {number:,} of {len(logps):,} the log-probability {logp}",
                hint=BROKEN_NUMBERS,
            )
    return logps


def open_likelihood_model(folder: ModelFolder, *, batch_tokens: int) -> LikelihoodModel | Seq2SeqLikelihoodModel:
    """The model in `folder`, whether it is a causal or an encoder–decoder one, to read log-probabilities from."""
    reader = Seq2SeqLikelihoodModel if folder.encoder_decoder else LikelihoodModel
    return reader(folder, batch_tokens=batch_tokens)
