"""Input batches of encoder–decoder models (T5 style), and the log-probabilities that these models give to completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from align.losses.logps import IGNORED_LABEL


class Seq2SeqCollator:
    """Pads (prompt ids, completion ids) on the right: the prompt goes to the encoder, the completion to the decoder.

    Gives `input_ids` and `attention_mask` [batch, prompt], `decoder_input_ids`, `decoder_attention_mask` and `labels`
    [batch, completion]; a mask is 1 on real tokens. The decoder's input is the start token and the completion without its last
    token, so that position t predicts label t. A label of -100 is padding, which is never counted.

    Args:
        pad_token_id: fills `input_ids` and `decoder_input_ids` where a mask is 0. T5 starts its decoder with the same token;
            the masks tell the two apart.
        start_token_id: `decoder_start_token_id` of the model's configuration.
    """

    def __init__(self, *, pad_token_id: int, start_token_id: int) -> None:
        self._pad = pad_token_id
        self._start = start_token_id

    def __call__(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        decoder_rows = [[self._start, *completion[:-1]] for _, completion in rows]
        return {
            "input_ids": _padded([prompt for prompt, _ in rows], self._pad),
            "attention_mask": _padded([[1] * len(prompt) for prompt, _ in rows], 0),
            "decoder_input_ids": _padded(decoder_rows, self._pad),
            "decoder_attention_mask": _padded([[1] * len(row) for row in decoder_rows], 0),
            # An empty completion still has a decoder row, the start token, and needs a label of that length.
            "labels": _padded([completion or [IGNORED_LABEL] for _, completion in rows], IGNORED_LABEL),
        }


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def label_logps(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """[batch, completion] log-probability of every label in nats, float32; zero where the label is -100. Carries the gradient.

    Args:
        model: an encoder–decoder language model.
        inputs: what `Seq2SeqCollator` gives, on the model's device.
    """
    labels = inputs["labels"]
    rest = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    # The model's own logits: T5 scales the states before its head, BART adds a bias behind it.
    logits = model(**rest, use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none")
    return -losses
