"""Sampling from encoder–decoder models (T5 style) with transformers; vLLM does not serve them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from align.engines.transformers_engine import NextLogits, TransformersEngine
from align.models.folder import ModelFolder
from align.models.load import load_seq2seq_lm


class Seq2SeqEngine(TransformersEngine):
    """An encoder–decoder model with the same batches, generators and draws as a causal one.

    The encoder reads every prompt of a batch once, for all its candidates; the decoder keeps its cache.
    """

    def _load(self, model_folder: ModelFolder) -> Any:
        return load_seq2seq_lm(model_folder, dtype=self._dtype)

    def _room(self, prompts: Sequence[list[int]]) -> int:
        """Most tokens of a completion; the prompt takes none of it, because the encoder reads it."""
        return self._max_model_tokens

    def _begin(self, prompts: Sequence[list[int]]) -> NextLogits:
        # The encoder sees each distinct prompt once; its candidates share the states.
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        input_ids = pad_sequence([torch.tensor(prompt, device=self._device) for prompt in numbers], batch_first=True)
        lengths = torch.tensor([len(prompt) for prompt in numbers], device=self._device)
        mask = (torch.arange(input_ids.shape[1], device=self._device) < lengths[:, None]).long()
        states = self._model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        rows = torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=self._device)
        encoded, encoder_mask = BaseModelOutput(last_hidden_state=states[rows]), mask[rows]
        start = int(self._model.config.decoder_start_token_id)
        cache = None

        def following(drawn: list[int] | None) -> Tensor:
            nonlocal cache
            newest = [start] * len(prompts) if drawn is None else drawn
            output = self._model(
                encoder_outputs=encoded,
                attention_mask=encoder_mask,
                decoder_input_ids=torch.tensor(newest, device=self._device)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            return output.logits[:, -1]  # type: ignore[no-any-return]

        return following
