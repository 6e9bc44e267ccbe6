"""Completions of the current policy, with their scores: what one round of updates learns from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
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
from align.runtime.life import still_working
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
    all_scores: Tensor
    """The finite ones of all completions that were sampled, whether or not they are learned from."""
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
    weights_version: int
    """Rollout batches that the policy had learned from when it sampled these completions."""
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


@dataclass(frozen=True)
class ScoredEpisode:
    """One completion with its scores."""

    sampled: SampledEpisode
    candidate: ScoredCandidate
    score: float
    """Weighted sum of the scores that are optimised; NaN where one is missing, 0 where none is optimised."""


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

    @property
    def groups_per_batch(self) -> int:
        return self._config.rollout_batch_size // self._group_size

    def drawn(self, number: int, *, after: int = 0, groups: int | None = None) -> list[tuple[int, Prompt, EncodedPrompt]]:
        """The prompts of rollout batch `number` (from 0), each with the number of its draw: a new shuffle for every pass.

        Args:
            after: prompts that were drawn beyond those of whole rollout batches.
            groups: prompts to draw; default: those of a whole rollout batch.
        """
        size, count = self.groups_per_batch, len(self._prompts)
        first = number * size + after
        # A rollout batch may reach over the end of a pass, into the next shuffle.
        orders: dict[int, list[int]] = {}
        drawn = []
        for draw in range(first, first + (size if groups is None else groups)):
            pass_number = draw // count
            if pass_number not in orders:
                generator = torch.Generator().manual_seed(derive_seed(self._seed, "prompts", pass_number))
                orders[pass_number] = torch.randperm(count, generator=generator).tolist()
            drawn.append((draw, *self._prompts[orders[pass_number][draw % count]]))
        return drawn

    def sample(self, number: int, engine: TextEngine, *, after: int = 0, groups: int | None = None) -> list[SampledEpisode]:
        """The completions of rollout batch `number`, see `drawn`; those of one prompt follow each other."""
        outputs = engine.generate(self.requests(number, after=after, groups=groups), self.settings)
        return self.episodes(number, outputs, after=after, groups=groups)

    def requests(self, number: int, *, after: int = 0, groups: int | None = None) -> list[GenerationRequest]:
        """What an engine is asked for rollout batch `number`, see `drawn`."""
        # By draw, not by prompt: a prompt that is drawn again gets other completions.
        return [
            GenerationRequest(row.prompt_token_ids, derive_seed(self._seed, "sample", draw))
            for draw, _, row in self.drawn(number, after=after, groups=groups)
        ]

    def episodes(
        self, number: int, outputs: Sequence[Sequence[SampledCompletion]], *, after: int = 0, groups: int | None = None
    ) -> list[SampledEpisode]:
        """The completions that an engine gave for `requests`, with their texts."""
        drawn = self.drawn(number, after=after, groups=groups)
        requests = self.requests(number, after=after, groups=groups)
        episodes = []
        for (draw, prompt, row), request, completions in zip(drawn, requests, outputs, strict=True):
            for place, completion in enumerate(completions):
                # A prompt is drawn again in later passes, so its number within the training keeps candidates apart.
                index, seed = draw * self._group_size + place, request.seed + place
                candidate = make_candidate(prompt, index, completion, seed, self._format)
                episodes.append(SampledEpisode(draw, row.prompt_token_ids, completion, candidate))
        return episodes

    def score(self, sampled: Sequence[SampledEpisode]) -> list[ScoredEpisode]:
        """The same episodes with their scores."""
        scored = self._scorers.score([episode.candidate for episode in sampled], lambda done: still_working())
        return [
            ScoredEpisode(episode, candidate, self._weighted(candidate))
            for episode, candidate in zip(sampled, scored, strict=True)
        ]

    def rollout(self, scored: Sequence[ScoredEpisode], *, skipped: Collection[int] = ()) -> Rollout:
        """The episodes whose scores are all finite, with those scores.

        Args:
            skipped: groups that are not learned from.
        Raises:
            StageError: if no score is finite.
        """
        finite = [row for row in scored if math.isfinite(row.score)]
        if not finite:
            raise StageError(
                f"None of {len(scored)} completions got a finite score from {', '.join(self._score_weights)}",
                hint="Look at the reward model: do its scores on held-out pairs make sense?",
            )
        means = {name: _finite_mean([row.candidate.scores[name] for row in scored]) for name in self._scorers.names}
        kept = [row for row in finite if row.sampled.group not in skipped]
        sampled = [row.sampled for row in kept]
        return Rollout(
            episodes=[Episode(episode.prompt_token_ids, episode.completion.token_ids) for episode in sampled],
            sampler_logps=torch.tensor([logp for episode in sampled for logp in episode.completion.logps or []]),
            scores=torch.tensor([row.score for row in kept]),
            all_scores=torch.tensor([row.score for row in finite]),
            ended=torch.tensor([episode.completion.finish_reason == "stop" for episode in sampled]),
            groups=torch.tensor([episode.group for episode in sampled]),
            watched={
                **{name: means[name] for name in means if name not in self._score_weights},
                **{
                    f"{name}/disagreement": _finite_mean([row.candidate.disagreement[name] for row in scored])
                    for name in scored[0].candidate.disagreement
                },
            },
            parts={name: means[name] for name in self._score_weights if len(self._score_weights) > 1},
            nonfinite=len(scored) - len(finite),
            weights_version=scored[0].sampled.completion.weights_version,
            texts=[
                SampledText(
                    prompt_id=row.candidate.prompt_id,
                    completion=row.candidate.completion,
                    score=row.score if self._score_weights else None,
                    weights_version=row.sampled.completion.weights_version,
                )
                for row in scored
            ],
        )

    def equal_groups(self, scored: Sequence[ScoredEpisode]) -> set[int]:
        """Groups whose finite scores are all equal, so that no completion is better than another."""
        scores: dict[int, set[float]] = {row.sampled.group: set() for row in scored}
        for row in scored:
            if math.isfinite(row.score):
                scores[row.sampled.group].add(row.score)
        return {group for group, values in scores.items() if len(values) < 2}

    def _weighted(self, candidate: ScoredCandidate) -> float:
        """NaN where a score is missing."""
        # NaN survives the sum, so one missing score drops the completion.
        scores = {name: candidate.scores[name] for name in self._score_weights}
        return sum(self._score_weights[name] * (math.nan if score is None else score) for name, score in scores.items())


def _finite_mean(values: Sequence[float | None]) -> float:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite else math.nan
