"""Sampling with transformers, for machines without vLLM. It is slower and gives the same guarantees."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from align.engines.checksum import WeightChecksums, checksums_of
from align.engines.protocol import BrokenLogits, GenerationRequest, SampledCompletion, SamplingSettings
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.sizes import ENGINE_ROWS
from align.models.virtual_tokens import start_cache
from align.runtime.device import device_name, free_memory, out_of_memory
from align.runtime.life import still_working
from align.runtime.profile import phase

_Row = tuple[list[int], int, int]
"""Of a completion: its prompt's tokens, its seed, and the number of its request."""

NextLogits = Callable[[list[int] | None], Tensor]
"""Takes the tokens just drawn, one per row (None at first), and returns the logits of the next ones, [rows, vocabulary]."""


def filter_logits(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """[rows, vocabulary] log-probabilities after temperature, top-k and top-p; excluded tokens are -inf."""
    logits = logits.float() / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        smallest_kept = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    logps = logits.log_softmax(-1)
    if settings.top_p < 1:
        ordered, order = logps.sort(dim=-1, descending=True)
        # A token stays when the mass before it is below top_p; the most likely one always stays.
        excluded = ordered.exp().cumsum(-1) - ordered.exp() >= settings.top_p
        logps = logps.masked_fill(excluded.scatter(1, order, excluded), -torch.inf)
    return logps


class TransformersEngine:
    """A causal language model and a sampling loop with one generator per candidate, so that rows do not affect each other."""

    name = "transformers"
    version = transformers.__version__

    def __init__(self, model_folder: ModelFolder, *, dtype: str, max_model_tokens: int) -> None:
        self._device = torch.device(device_name())
        self._dtype = dtype
        self._max_model_tokens = max_model_tokens
        self._model: Any = None
        self._weights_version = 0
        self.load_weights(model_folder)

    def load_weights(self, model_folder: ModelFolder) -> None:
        self.close()  # the old model and the new one together may not fit
        self._weights_version = 0
        self._where = str(model_folder.path)
        self._model = self._load(model_folder).to(self._device).eval()

    def _load(self, model_folder: ModelFolder) -> Any:
        return load_causal_lm(model_folder, dtype=self._dtype)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        own = dict(self._model.named_parameters())  # tied weights once
        with torch.no_grad():
            for name, tensor in weights:
                if (parameter := own.pop(name, None)) is not None:
                    parameter.copy_(tensor)
        if own:
            raise ValueError(f"no new weights for {', '.join(sorted(own)[:3])}")
        self._weights_version = version

    def weight_checksums(self) -> WeightChecksums:
        parts = checksums_of(self._model.named_parameters(), self._dtype)  # tied weights once
        return WeightChecksums(parts, self._dtype, has_tied_head=False)

    def sleep(self) -> None:
        """Nothing is freed: between two calls it holds its weights only."""

    def wake_up(self) -> None:
        """Nothing was freed."""

    def close(self) -> None:
        self._model = None
        free_memory()

    @phase("sample")
    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        rows = [
            (request.prompt_token_ids, request.seed + index, number)
            for number, request in enumerate(requests)
            for index in range(settings.num_candidates)
        ]
        # Sorted by length so that a batch has little padding; the sort is stable, so the batches are a function of the requests.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
        sampled: list[SampledCompletion | None] = [None] * len(rows)
        for start in range(0, len(order), ENGINE_ROWS):
            batch = order[start : start + ENGINE_ROWS]
            for index, completion in zip(batch, self._sample([rows[index] for index in batch], settings), strict=True):
                sampled[index] = completion
        finished = [completion for completion in sampled if completion is not None]
        return [finished[start : start + settings.num_candidates] for start in range(0, len(finished), settings.num_candidates)]

    def _sample(self, rows: Sequence[_Row], settings: SamplingSettings) -> list[SampledCompletion]:
        """One completion per row, in one batch, or in halves of it where memory is not enough."""
        try:
            return list(self._sample_batch(rows, settings))
        except Exception as error:
            problem = out_of_memory(error)
            if problem is None or len(rows) == 1:
                raise
        # Not in the handler: the error holds the frames of the batch, and they its tensors.
        free_memory()
        half = len(rows) // 2
        print(f"out of memory with {len(rows)} completions at once; going on with {half} ({problem})")
        return [*self._sample(rows[:half], settings), *self._sample(rows[half:], settings)]

    @torch.inference_mode()
    def _sample_batch(self, rows: Sequence[_Row], settings: SamplingSettings) -> Iterator[SampledCompletion]:
        prompts = [prompt for prompt, _, _ in rows]
        following = self._begin(prompts)
        generators = [torch.Generator().manual_seed(seed) for _, seed, _ in rows]
        stops = set(settings.stop_token_ids)
        tokens: list[list[int]] = [[] for _ in rows]
        logps: list[list[float]] = [[] for _ in rows]
        open_rows = set(range(len(rows)))
        drawn: list[int] | None = None
        for _ in range(min(settings.max_completion_tokens, self._room(prompts))):
            still_working()
            drawn, drawn_logps = self._draw(following(drawn), generators, settings)
            for row in list(open_rows):
                if not math.isfinite(drawn_logps[row]):
                    raise BrokenLogits.of(self._where, rows[row][2], len(tokens[row]))
                tokens[row].append(drawn[row])
                logps[row].append(drawn_logps[row])
                if drawn[row] in stops:
                    open_rows.remove(row)
            if not open_rows:
                break
        return (
            SampledCompletion(
                ids, "length" if row in open_rows else "stop", logps[row] if settings.with_logps else None, self._weights_version
            )
            for row, ids in enumerate(tokens)
        )

    def _room(self, prompts: Sequence[list[int]]) -> int:
        """Most tokens of a completion: prompt and completion share the model's context."""
        return self._max_model_tokens - max(map(len, prompts))

    def _begin(self, prompts: Sequence[list[int]]) -> NextLogits:
        """Pads prompts on the left, so that all rows continue at the same position."""
        rows = [torch.tensor(prompt, dtype=torch.long, device=self._device) for prompt in prompts]
        input_ids = pad_sequence(rows, batch_first=True, padding_side="left")
        attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        # Only the logits of a prompt's last token are read; [rows, prompt, vocabulary] would be 10 GB in bfloat16 for 64 rows of
        # 512 tokens and 152,000 words. A few architectures cannot leave the others out.
        takes_last = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        last_only = {"logits_to_keep": 1} if takes_last else {}
        cache = start_cache(self._model, len(prompts))
        if cache is not None:
            attention_mask = torch.cat([attention_mask.new_ones(len(prompts), cache.get_seq_length()), attention_mask], dim=1)

        def following(drawn: list[int] | None) -> Tensor:
            nonlocal input_ids, attention_mask, cache
            if drawn is not None:
                input_ids = torch.tensor(drawn, device=self._device)[:, None]
                attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(drawn), 1)], dim=1)
            # Positions count real tokens; left padding would be at -1, which no position table has.
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            output = self._model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **last_only,
            )
            cache = output.past_key_values
            return output.logits[:, -1]  # type: ignore[no-any-return]

        return following

    @staticmethod
    def _draw(logits: Tensor, generators: Sequence[torch.Generator], settings: SamplingSettings) -> tuple[list[int], list[float]]:
        """The token of every row, and its log-probability, which is not finite exactly if the row's logits are broken."""
        if settings.temperature == 0:
            greedy = logits.argmax(-1)  # NaN counts as the largest
            # 0 for what is certain, and NaN where the largest logit is not finite.
            return greedy.tolist(), (logits.gather(-1, greedy[:, None])[:, 0].float() * 0.0).abs().tolist()
        # On the CPU, where a seed gives the same noise whatever the device.
        logps = filter_logits(logits, settings).cpu()
        # Exponential race: argmax of p / Exp(1) noise is a draw from p (equivalent to the Gumbel-max trick).
        noise = torch.stack([torch.empty(logps.shape[1]).exponential_(generator=generator) for generator in generators])
        drawn = (logps - noise.log()).argmax(-1)
        return drawn.tolist(), logps.gather(-1, drawn[:, None])[:, 0].tolist()
