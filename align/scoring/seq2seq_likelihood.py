"""Log-probabilities that an encoder–decoder model (T5 style) gives to completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from align.models.load import load_seq2seq_lm, load_tokenizer
from align.models.seq2seq import Seq2SeqCollator, label_logps
from align.scoring.batching import length_sorted_batches


class Seq2SeqLikelihoodModel:
    """An encoder–decoder model in float32, loaded to read log-probabilities from."""

    def __init__(self, folder: Path, *, batch_tokens: int) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_seq2seq_lm(folder, dtype="float32").to(self._device).eval()
        self._collate = Seq2SeqCollator(
            pad_token_id=int(load_tokenizer(folder).pad_token_id), start_token_id=int(self._model.config.decoder_start_token_id)
        )
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def completion_logps(
        self, rows: Sequence[tuple[list[int], list[int]]], *, report: Callable[[int, int], None] = lambda done, total: None
    ) -> list[float]:
        """Log-probability of each completion given its prompt, summed over the completion's tokens, in nats.

        Args:
            rows: (prompt ids, completion ids): what the encoder reads, what the decoder writes.
            report: called with (rows done, all rows).
        Returns:
            One number per row, in the order given; 0.0 for an empty completion.
        """
        totals = [0.0] * len(rows)
        done = 0
        for batch in length_sorted_batches([len(prompt) + len(completion) for prompt, completion in rows], self._batch_tokens):
            inputs = {name: tensor.to(self._device) for name, tensor in self._collate([rows[index] for index in batch]).items()}
            for index, value in zip(batch, label_logps(self._model, inputs).double().sum(-1).tolist(), strict=True):
                totals[index] = value
            done += len(batch)
            report(done, len(rows))
        return totals

    def perplexity(self, texts: Sequence[str], *, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """None: of a plain text it is not defined which part the encoder reads and which the decoder writes."""
