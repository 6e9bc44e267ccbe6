"""Completions of the current policy, with their scores: what one round of updates learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from align.config.online import Rollouts
from align.data.encoding import EncodedPrompt
from align.data.template import ChatFormat
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings, TextEngine
from align.engines.shards import make_candidate
from align.errors import RecipeError, StageError
from align.records import Candidate, Prompt, ScoredCandidate
from align.runtime.events import SampledText
from align.runtime.seed import derive_seed
from align.scoring.scorers import ScorerSet
from align.training.online.layout import Episode


@dataclass(frozen=True)
class Rollout:
    """Completions that can be learned from."""

    episodes: list[Episode]
    sampler_logps: Tensor
    """[completion tokens], nats, as the engine computed them."""
    scores: Tensor
    """[episodes], weighted sums of the scorers' raw scores."""
    ended: Tensor
    """[episodes], True where the completion ended by itself."""
    groups: Tensor
    """[episodes]: completions of one prompt have the same number. A group lacks those without a finite score."""
    watched: dict[str, float]
    """Mean of every scorer that is only watched, by name."""
    parts: dict[str, float]
    """Mean of every scorer that is optimised, by name; empty where `scores` are those of the only one."""
    nonfinite: int
    """Completions left out because a score was not finite."""
    texts: list[SampledText] = field(default_factory=list)
    """The completions as text, with their scores."""


@dataclass(frozen=True)
class SampledEpisode:
    """One completion before it is scored: its tokens, and the same as text for the scorers."""

    group: int
    """Number of the prompt's draw, counted over the whole training."""
    prompt_token_ids: list[int]
    completion: SampledCompletion
    candidate: Candidate


class RolloutSampler:
    """Draws prompts, samples completions and scores them.

    Which prompts, and every seed, follow from the stage's seed and the number of the rollout batch alone.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        encoded: Sequence[EncodedPrompt],
        config: Rollouts,
        *,
        scorers: ScorerSet,
        score_weights: Mapping[str, float],
        chat_format: ChatFormat,
        seed: int,
        group_size: int = 1,
    ) -> None:
        """Make a sampler; nothing is drawn before a rollout.

        Args:
            group_size: completions sampled for every prompt that is drawn.
            prompts: the prompts of `encoded`, in its order.
            scorers: those that are optimised and those that are watched.
            score_weights: weight by name, of the scorers that are optimised.
        Raises:
            RecipeError: if a rollout batch is not made of whole groups.
        """
        if config.rollout_batch_size % group_size:
            raise RecipeError(
                f"rollout_batch_size is {config.rollout_batch_size}, not a multiple of {group_size} completions per prompt",
                hint=f"Set it to {math.ceil(config.rollout_batch_size / group_size) * group_size}.",
            )
        self._prompts = list(zip(prompts, encoded, strict=True))
        self._config = config
        self._scorers = scorers
        self._score_weights = score_weights
        self._format = chat_format
        self._seed = seed
        self._group_size = group_size

    @property
    def num_rollouts(self) -> int:
        """Rollout batches of the whole training: enough for every episode, the last one full."""
        num_episodes = self._config.num_episodes or len(self._prompts) * self._group_size
        return -(-num_episodes // self._config.rollout_batch_size)

    @property
    def settings(self) -> SamplingSettings:
        return SamplingSettings(
            temperature=self._config.temperature,
            top_p=1.0,
            top_k=None,
            max_completion_tokens=self._config.max_completion_tokens,
            num_candidates=self._group_size,
            stop_token_ids=self._format.stop_token_ids,
            with_logps=True,
        )

    def drawn(self, number: int) -> list[tuple[int, Prompt, EncodedPrompt]]:
        """The prompts of rollout batch `number` (from 0), each with the number of its draw: a new shuffle for every pass."""
        size, count = self._config.rollout_batch_size // self._group_size, len(self._prompts)
        # A rollout batch may reach over the end of a pass, into the next shuffle.
        orders: dict[int, list[int]] = {}
        drawn = []
        for draw in range(number * size, (number + 1) * size):
            pass_number = draw // count
            if pass_number not in orders:
                generator = torch.Generator().manual_seed(derive_seed(self._seed, "prompts", pass_number))
                orders[pass_number] = torch.randperm(count, generator=generator).tolist()
            drawn.append((draw, *self._prompts[orders[pass_number][draw % count]]))
        return drawn

    def sample(self, number: int, engine: TextEngine) -> list[SampledEpisode]:
        """The completions of rollout batch `number`; those of one prompt follow each other."""
        drawn, settings = self.drawn(number), self.settings
        # By draw, not by prompt: a prompt that is drawn again gets other completions.
        requests = [GenerationRequest(row.prompt_token_ids, derive_seed(self._seed, "sample", draw)) for draw, _, row in drawn]
        outputs = engine.generate(requests, settings)
        episodes = []
        for (draw, prompt, row), request, completions in zip(drawn, requests, outputs, strict=True):
            for place, completion in enumerate(completions):
                # A prompt is drawn again in later passes, so its number within the training keeps candidates apart.
                index, seed = draw * self._group_size + place, request.seed + place
                candidate = make_candidate(prompt, index, completion, seed, self._format)
                episodes.append(SampledEpisode(draw, row.prompt_token_ids, completion, candidate))
        return episodes

    def score(self, sampled: Sequence[SampledEpisode]) -> Rollout:
        """The episodes whose scores are all finite, with those scores.

        Raises:
            StageError: if not one is left.
        """
        scored = self._scorers.score([episode.candidate for episode in sampled], lambda done: None)
        sums = [self._weighted(candidate) for candidate in scored]
        kept = [index for index, value in enumerate(sums) if math.isfinite(value)]
        if not kept:
            raise StageError(
                f"None of {len(sampled)} completions got a finite score from {', '.join(self._score_weights)}",
                hint="Look at the reward model: do its scores on held-out pairs make sense?",
            )
        means = {name: _finite_mean([candidate.scores[name] for candidate in scored]) for name in self._scorers.names}
        logps = [logp for index in kept for logp in sampled[index].completion.logps or []]
        return Rollout(
            episodes=[Episode(sampled[index].prompt_token_ids, sampled[index].completion.token_ids) for index in kept],
            sampler_logps=torch.tensor(logps),
            scores=torch.tensor([sums[index] for index in kept]),
            ended=torch.tensor([sampled[index].completion.finish_reason == "stop" for index in kept]),
            groups=torch.tensor([sampled[index].group for index in kept]),
            watched={name: means[name] for name in means if name not in self._score_weights},
            parts={name: means[name] for name in self._score_weights if len(self._score_weights) > 1},
            nonfinite=len(sampled) - len(kept),
            texts=[
                SampledText(prompt_id=candidate.prompt_id, completion=candidate.completion, score=value)
                for candidate, value in zip(scored, sums, strict=True)
            ],
        )

    def _weighted(self, candidate: ScoredCandidate) -> float:
        """NaN where a score is missing."""
        # NaN survives the sum, so one missing score drops the completion.
        scores = {name: candidate.scores[name] for name in self._score_weights}
        return sum(self._score_weights[name] * (math.nan if score is None else score) for name, score in scores.items())


def _finite_mean(values: Sequence[float | None]) -> float:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite else math.nan
