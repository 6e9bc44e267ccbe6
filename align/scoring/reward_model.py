"""Scores of a reward model, from a float32 head, in batches of similar length.

A score does not depend on what else is in its batch, but for rounding: rows are padded on the right, padding is masked, and the
score is read at the last real token. Completions of the same prompt follow it in one row, and do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from align.data.template_problems import TemplateProblem
from align.models.attention import padded_mask
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.models.load import load_reward_model
from align.models.logits import keep_in_float32
from align.records import Candidate
from align.runtime.device import device_name, free_memory, frozen_dtype
from align.scoring.batching import map_batches, pad_right
from align.scoring.shared_prompt import Row, lay_out, row_units, unit_tokens


class RewardModelScorer:
    """A reward model, loaded once and in memory until it is closed."""

    def __init__(self, folder: ModelFolder, *, batch_tokens: int) -> None:
        self._device = torch.device(device_name())
        self._format = load_format(folder)
        pad_token_id = self._format.pad_token_id
        model: Any = load_reward_model(folder, dtype=frozen_dtype(), new_head=False, pad_token_id=pad_token_id)
        keep_in_float32(model.score.float())
        self._model = model.to(self._device).eval()
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Row], *, report: Callable[[int], None] = lambda done: None) -> list[float]:
        """One raw score per row, in the order given; may be non-finite if the model is broken.

        Args:
            rows: prompts and completions; not both may be empty.
            report: called with the number of rows done.
        """
        units = row_units(self._model, rows, self._batch_tokens)

        def scores_of_shared(batch: list[int]) -> torch.Tensor:
            row = lay_out([rows[index] for index in batch])
            return self._model.score(row.states(self._model)[row.last.to(self._device)])[:, 0].float()  # type: ignore[no-any-return]

        def scores(batch: list[int]) -> torch.Tensor:
            padded = pad_right([rows[index][0] + rows[index][1] for index in batch], self._format.pad_token_id)
            input_ids, attention_mask = (tensor.to(self._device) for tensor in padded)
            attention_mask = padded_mask(self._model, attention_mask)
            # No cache: each sequence is read once, and the cache would only take memory.
            output = self._model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            return output.logits[:, 0].float()  # type: ignore[no-any-return]

        compute = scores if len(units) == len(rows) else scores_of_shared
        return map_batches([unit_tokens(rows, unit) for unit in units], self._batch_tokens, compute, report, units=units)

    def score_candidates(
        self, candidates: Sequence[Candidate], *, report: Callable[[int], None] = lambda done: None
    ) -> list[float | None]:
        """One score per candidate; None if the reward model's template cannot render its prompt.

        A completion that ended by itself is closed as in training; a truncated one is not. It is read as it was sampled: a
        template may trim or refuse what a policy wrote.
        """
        texts: list[list[str]] = []
        for candidate in candidates:
            try:
                tail = self._format.continuation(candidate.completion, ended=candidate.finish_reason == "stop")
                texts.append([self._format.prompt_text(candidate.prompt), tail])
            except TemplateProblem:
                # The candidate keeps its place without a score, so that the result stays in the order given.
                texts.append([])
        rows = [(tokens[0], tokens[1]) for tokens in self._format.token_ids_of(texts) if tokens]
        scores = iter(self.score_rows(rows, report=report))
        return [next(scores) if pair else None for pair in texts]

    def close(self) -> None:
        """Free its memory; it cannot be used any more."""
        del self._model
        free_memory()
