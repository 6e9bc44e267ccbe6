"""The engine that samples with the policy's weights: exchanging them, and knowing which of them sampled what.

The version of weights is the number of rollout batches that the policy has learned from. It goes to the engine with the weights
and comes back with every completion, so that nothing is learned from completions of other weights than is meant.
"""

from __future__ import annotations

import collections
from pathlib import Path

from align.engines.checksum import differing_parts
from align.engines.protocol import GenerationRequest, SampledCompletion, TextEngine
from align.errors import StageError
from align.runtime.group import all_of, to_first
from align.training.online.models import Models
from align.training.online.rollout import RolloutSampler, SampledEpisode
from align.training.sharding import own_share

SHOWN_PARTS = 3
AGAIN = "Run again to go on from the last checkpoint; report it if it recurs."


Completions = list[list[SampledCompletion]]


class PolicyEngine:
    """Samples with the policy's weights. All processes of a training call its methods together; the first ones have engines.

    Each engine samples its share of the prompts, and the first process gets the completions of all.
    """

    def __init__(self, engine: TextEngine | None, sampler: RolloutSampler, models: Models, *, checks: bool) -> None:
        """Take over an engine.

        Args:
            engine: runs the model that training starts from, and is closed by `close`; None in a process without one.
            checks: whether the engine's weights are compared with the policy's before it samples.
        """
        self._engine = engine
        self._sampler = sampler
        self._models = models
        self._settings = models.settings
        self._checks = checks
        self._version = 0
        self._sleeps = False

    def exchange(self, version: int) -> None:
        """See to it that the engine has the policy's weights as they are.

        Args:
            version: rollout batches that the policy has learned from.
        Raises:
            StageError: if the engine's weights are to be checked, and are others.
        """
        # The engine starts with the weights of the policy's folder, so the first batch usually needs no exchange. After its sleep
        # it has none.
        if version > 0 or self._models.differ_from_folder or self._sleeps:
            self._hand_over(version)
        if self._checks:
            self._compare(version)

    def wait(self) -> None:
        """Return once the weights may change."""

    def sample(self, number: int, *, after: int, groups: int) -> list[SampledEpisode]:
        """The completions of a rollout batch, see `RolloutSampler.requests`; empty in all processes but the first.

        Raises:
            StageError: if other weights sampled them than those of the last exchange.
        """
        outputs = self._generate(self._share(number, after=after, groups=groups))
        return self._episodes(number, outputs, self._version, after=after, groups=groups)

    def _share(self, number: int, *, after: int = 0, groups: int | None = None) -> list[GenerationRequest]:
        """What the engine of this process is asked for a rollout batch."""
        requests = self._sampler.requests(number, after=after, groups=groups)
        own = own_share(len(requests), self._settings.rank, self._settings.spread.samplers)
        return requests[own.start : own.stop] if self._engine is not None else []

    def _generate(self, requests: list[GenerationRequest]) -> Completions:
        return self._engine.generate(requests, self._sampler.settings) if self._engine is not None and requests else []

    def _episodes(self, number: int, outputs: Completions, version: int, *, after: int, groups: int) -> list[SampledEpisode]:
        """What all engines sampled for a rollout batch; empty in all processes but the first.

        Args:
            outputs: of this process.
            version: of the weights that are meant.
        """
        outputs = self._of_all(outputs)
        if self._settings.rank > 0:
            return []
        episodes = self._sampler.episodes(number, outputs, after=after, groups=groups)
        check_version(episodes, version)
        return episodes

    def _of_all(self, outputs: Completions) -> Completions:
        """The completions of all engines, in the order of the prompts, in the first process; nothing in the others."""
        if self._settings.spread.samplers == 1:
            return outputs
        return [group for part in to_first(outputs) for group in part]

    def sleep(self) -> None:
        """Let the engine lend its memory to what follows, where it can."""
        if self._engine is not None:
            self._engine.sleep()
        self._sleeps = True

    def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.close()

    def save(self, folder: Path, number: int, *, writes: bool) -> None:
        """Write what a checkpoint needs beyond the models; see `AheadEngine.save`."""

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote."""

    def _hand_over(self, version: int) -> None:
        """Give the engine the policy's weights, which all processes put together."""
        weights = self._models.policy_weights()
        if self._engine is None:
            collections.deque(weights, maxlen=0)
        else:
            if self._sleeps:
                self._engine.wake_up()
            self._engine.update_weights(weights, version=version)
        self._version, self._sleeps = version, False

    def _compare(self, version: int) -> None:
        weights = self._models.policy_weights()
        differing: list[str] = []
        if self._engine is None:
            collections.deque(weights, maxlen=0)
        else:
            differing = differing_parts(weights, self._engine.weight_checksums())
        if differing := list(dict.fromkeys(part for parts in all_of(differing) for part in parts)):
            raise wrong_weights(differing, version)


def check_version(episodes: list[SampledEpisode], expected: int) -> None:
    """Refuse completions that other weights sampled.

    Raises:
        StageError: with the version that was found.
    """
    others = {episode.completion.weights_version for episode in episodes} - {expected}
    if others:
        raise StageError(
            f"The engine sampled with weights of version {min(others)} in place of {expected}; nothing was learned from them",
            hint=f"The engine did not take the weights over. {AGAIN}",
        )


def wrong_weights(parts: list[str], version: int) -> StageError:
    """The error of a comparison.

    Args:
        parts: of the model, in which the weights differ.
    """
    shown = ", ".join(parts[:SHOWN_PARTS]) + (f" and {len(parts) - SHOWN_PARTS} more" if len(parts) > SHOWN_PARTS else "")
    hint = f"The exchange of weights failed. {AGAIN}"
    if version == 0:
        hint = (
            "Nothing has been learned yet, so the engine reads this model otherwise than the trainer, or keeps its weights in a "
            "form that cannot be compared. Set engine: transformers, or leave check_weights out and look at rollout/sampler_gap."
        )
    return StageError(f"check_weights: the engine's weights are not the policy's of version {version} in {shown}", hint=hint)
