"""The engine that samples with the policy's weights: exchanging them, and knowing which of them sampled what.

The version of weights is the number of rollout batches that the policy has learned from. It goes to the engine with the weights
and comes back with every completion, so that nothing is learned from completions of other weights than is meant.
"""

from __future__ import annotations

import collections
from pathlib import Path

from align.engines.checksum import differing_parts
from align.engines.protocol import TextEngine
from align.errors import StageError
from align.runtime.group import from_first
from align.training.online.models import Models
from align.training.online.rollout import RolloutSampler, SampledEpisode

SHOWN_PARTS = 3
AGAIN = "Run again to go on from the last checkpoint; report it if it recurs."


class PolicyEngine:
    """Samples with the policy's weights. All processes of a training call its methods together; the first has the engine."""

    def __init__(self, engine: TextEngine | None, sampler: RolloutSampler, models: Models, *, checks: bool) -> None:
        """Take over an engine.

        Args:
            engine: runs the model that training starts from, and is closed by `close`; None in all processes but the first.
            checks: whether the engine's weights are compared with the policy's before it samples.
        """
        self._engine = engine
        self._sampler = sampler
        self._models = models
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
        """The completions of a rollout batch, see `RolloutSampler.sample`; empty in all processes but the first.

        Raises:
            StageError: if other weights sampled them than those of the last exchange.
        """
        if self._engine is None:
            return []
        episodes = self._sampler.sample(number, self._engine, after=after, groups=groups)
        check_version(episodes, self._version)
        return episodes

    def sleep(self) -> None:
        """Let the engine lend its memory to what follows, where it can."""
        if self._engine is not None:
            self._engine.sleep()
        self._sleeps = True

    def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.close()

    def save(self, folder: Path, number: int) -> None:
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
        # An error of the first process ends all of them.
        if differing := from_first(differing):
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
