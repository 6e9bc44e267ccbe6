"""A sampling task: the prompts that fit a model, as tokens, and every setting that decides a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from align.config.sections import Generation
from align.data.encoding import Where, encode_prompts
from align.data.template import ChatFormat
from align.engines.protocol import SamplingSettings
from align.errors import RecipeError
from align.models.folder import ModelFolder
from align.records import Drop, Prompt


@dataclass(frozen=True)
class SamplingTask:
    """Everything that decides the candidates of one model.

    `prompt_token_ids[i]` are the tokens of `prompts[i]`; `stop_token_ids` end a completion.
    """

    model_folder: ModelFolder
    prompts: Sequence[Prompt]
    prompt_token_ids: Sequence[list[int]]
    stop_token_ids: tuple[int, ...]
    config: Generation
    seed: int
    first_candidate: int = 0
    """Index of a prompt's first candidate. Candidate i has the seed of the prompt plus i, whichever is sampled first."""

    @property
    def num_shards(self) -> int:
        return -(-len(self.prompts) // self.config.shard_prompts)

    def slice_of(self, shard: int) -> slice:
        """Which prompts are in a shard."""
        return slice(shard * self.config.shard_prompts, (shard + 1) * self.config.shard_prompts)

    def prompts_of(self, shard: int) -> Sequence[Prompt]:
        return self.prompts[self.slice_of(shard)]

    @property
    def per_shard(self) -> dict[str, float]:
        """Completions of one shard, on average, for a rate."""
        return {"completions": len(self.prompts) * self.config.num_candidates / self.num_shards}

    @property
    def max_model_tokens(self) -> int:
        """Tokens of the longest prompt and completion together; never more than the model's context."""
        return max_prompt_tokens_for(self.model_folder, self.config) + self.config.max_completion_tokens

    def settings(self) -> SamplingSettings:
        return SamplingSettings(
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
            max_completion_tokens=self.config.max_completion_tokens,
            num_candidates=self.config.num_candidates,
            stop_token_ids=self.stop_token_ids,
        )


def prepare_task(
    prompts: Sequence[Prompt], chat_format: ChatFormat, config: Generation, *, model_folder: ModelFolder, seed: int, where: Where
) -> tuple[SamplingTask, list[Drop]]:
    """Encode prompts for one model. Returns the task and drops for the prompts that do not fit.

    Raises:
        DataError: if a prompt does not fit and `config.on_invalid` is error, or none fits.
    """
    room = max_prompt_tokens_for(model_folder, config)
    encoded = encode_prompts(prompts, chat_format, max_prompt_tokens=room, on_invalid=config.on_invalid, where=where)
    # Dropped prompts leave gaps, so rows are matched by id.
    by_id = {prompt.id: prompt for prompt in prompts}
    task = SamplingTask(
        model_folder=model_folder,
        prompts=[by_id[row.id] for row in encoded.rows],
        prompt_token_ids=[row.prompt_token_ids for row in encoded.rows],
        stop_token_ids=chat_format.stop_token_ids,
        config=config,
        seed=seed,
    )
    return task, list(encoded.drops)


class TokenLimits(Protocol):
    """Limits on the length of prompts and completions."""

    @property
    def max_prompt_tokens(self) -> int: ...

    @property
    def max_completion_tokens(self) -> int: ...


def max_prompt_tokens_for(model_folder: ModelFolder, sampling: TokenLimits) -> int:
    """Most tokens of a prompt, so that it and its completion fit the model's context.

    The encoder of an encoder–decoder model reads the prompt and the decoder writes the completion: each has the whole context.

    Raises:
        RecipeError: if max_completion_tokens alone fills the context.
    """
    context = model_folder.context_tokens
    # A whole completion is reserved, so that every prompt may get one of max_completion_tokens.
    room = min(sampling.max_prompt_tokens, context - sampling.max_completion_tokens)
    if model_folder.encoder_decoder and sampling.max_completion_tokens <= context:
        room = min(sampling.max_prompt_tokens, context)
    if room < 1:
        raise RecipeError(
            f"{model_folder.path}: the model sees {context} tokens, max_completion_tokens is {sampling.max_completion_tokens}: "
            "there is no room for a prompt",
            hint="Lower max_completion_tokens.",
        )
    return room
