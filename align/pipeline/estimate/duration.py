"""About how long stages take, from what similar stages took before in the same store."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from align.pipeline.estimate.kept import kept_answers
from align.pipeline.plan import Plan, PlannedStage, semantic_config
from align.stage import StageConfig
from align.store.artifact import INPUT_STAGE, Entry, Manifest
from align.store.kept import KEPT_SECONDS, REUSED_SECONDS

ROWS_FIELDS = ("prompts", "candidates", "scored", "pairs", "data")
"""Fields that refer to the rows that a stage works through; the first that a configuration has counts."""
SIZE_FIELDS = ("num_epochs", "num_candidates", "num_episodes")
"""Twice the number is about twice the time."""


class DurationEstimator:
    """Knows the finished results of a store. A similar stage is one of the same type that starts from the same models.

    Among several, the one whose configuration differs least counts, and of these the newest. Its time is scaled by rows, epochs,
    candidates and episodes, and by how many workers shared the work then and will now. What a process takes to start comes on
    top, as it was lately.
    """

    def __init__(
        self, plan: Plan, workers: Mapping[str, int] | None = None, order: Sequence[Sequence[PlannedStage]] | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            workers: of a stage, by its name; they have devices of their own. A stage without them is not scaled by their number.
            order: the stages as they run, those side by side together; default: one by one.
        """
        self._plan = plan
        self._order = [[stage] for stage in plan.stages] if order is None else order
        self._workers = workers or {}
        self._stages = {stage.fingerprint: stage for stage in plan.stages}
        self._manifests: dict[Path, Manifest] = {}
        self._models = {value.fingerprint for value in plan.inputs.values() if value.model is not None}

    def seconds(self, stage: PlannedStage) -> float | None:
        """About how long a stage takes; None where no similar one has finished."""
        if self._is_made(stage):
            return 0.0
        if (nearest := self._nearest(stage)) is None:
            return None
        settings = semantic_config(_config(stage))
        scale = self._scale(settings, stage.inputs, nearest) * self._share(stage, nearest)
        newest = sorted(self._finished(), key=lambda item: -item[0].stat().st_mtime)
        return self._start_seconds(stage, [manifest for _, manifest in newest]) + self._work(stage, nearest) * scale

    def kept_answers(self, stage: PlannedStage) -> dict[str, bool]:
        """See the function of this name."""
        return kept_answers(self._plan, stage, (manifest for _, manifest in self._finished()))

    def _work(self, stage: PlannedStage, nearest: Manifest) -> float:
        """What the nearest would have taken if the store had had as much of its results as it has of this stage's."""
        kept, reused = (float(nearest.metrics.get(name, 0)) for name in (KEPT_SECONDS, REUSED_SECONDS))
        if not kept:
            return nearest.seconds
        needed = self.kept_answers(stage).values()
        return max(0.0, nearest.seconds + reused - kept) + kept * (1 - sum(needed) / max(1, len(needed)))

    def is_scaled_by_workers(self, stage: PlannedStage) -> bool:
        """Whether `seconds` supposes that twice the workers take half the time."""
        nearest = None if self._is_made(stage) else self._nearest(stage)
        return nearest is not None and self._share(stage, nearest) != 1

    def _share(self, stage: PlannedStage, before: Manifest) -> float:
        """Workers that shared the work before, for each that will now."""
        now = self._workers.get(stage.name)
        then: int = before.machine.get("processes", before.machine.get("engines", 1))
        return 1.0 if now is None else then / now

    def _nearest(self, stage: PlannedStage) -> Manifest | None:
        config = _config(stage)
        settings, models = semantic_config(config), self._models_below(stage.fingerprint)
        finished = sorted(self._finished(), key=lambda item: -item[0].stat().st_mtime)
        similar = [
            (_differences(settings, manifest.config), age, manifest)
            for age, (_, manifest) in enumerate(finished)
            if manifest.stage == stage.stage_type and self._models_below(manifest.fingerprint) == models
        ]
        if not similar:
            return None
        return min(similar, key=lambda item: item[:2])[2]

    def later_seconds(self, stage: PlannedStage) -> float | None:
        """About how long the stages after `stage` and those beside it take together; None where one of them is not known."""
        place = next(number for number, group in enumerate(self._order) if stage in group)
        after = [[later for later in group if later.status == "run"] for group in self._order[place + 1 :]]
        parts = [[self.seconds(later) for later in group if later.fingerprint != stage.fingerprint] for group in after]
        known = [[part for part in group if part is not None] for group in parts]
        return sum(max(group, default=0.0) for group in known) if known == parts else None

    def _start_seconds(self, stage: PlannedStage, newest: Iterable[Manifest]) -> float:
        """Until the stage's work begins. The first stage of a run waits for the imports that the others are forked from."""
        starts = [manifest.start_seconds for manifest in newest if manifest.start_seconds]
        lately = starts[: len(self._plan.stages)]  # about those of one run
        if not lately:
            return 0.0
        first = next((other for other in self._plan.stages if other.status == "run"), None)
        return max(lately) if stage is first else statistics.median(lately)

    def _is_made(self, stage: PlannedStage) -> bool:
        """Whether the result is there, or an earlier stage of the plan makes it under another name."""
        same = (other for other in self._plan.stages if other.entry.path == stage.entry.path and other.status != "skipped")
        first = next(same, stage)
        return first is not stage or stage.status == "cached"

    def _finished(self) -> Iterator[tuple[Path, Manifest]]:
        # A manifest never changes, so each is read once; new ones come while the run goes on.
        for path in self._plan.store.root.glob("*/manifest.json"):
            if path not in self._manifests and (manifest := Entry(path.parent).read_manifest()) is not None:
                self._manifests[path] = manifest
            if path in self._manifests:
                yield path, self._manifests[path]

    def _models_below(self, fingerprint: str) -> frozenset[str]:
        """Fingerprints of the models from outside that a result was made from."""
        if fingerprint in self._models:
            return frozenset({fingerprint})
        inputs = self._inputs_of(fingerprint)
        return frozenset().union(*(self._models_below(source) for source in inputs.values()))

    def _inputs_of(self, fingerprint: str) -> Mapping[str, str]:
        if (stage := self._stages.get(fingerprint)) is not None:
            return stage.inputs
        made = self._by_fingerprint.get(fingerprint)
        return {} if made is None or made.stage == INPUT_STAGE else made.inputs

    @cached_property
    def _by_fingerprint(self) -> dict[str, Manifest]:
        return {manifest.fingerprint: manifest for _, manifest in self._finished()}

    def _scale(self, settings: Mapping[str, Any], inputs: Mapping[str, str], nearest: Manifest) -> float:
        here, there = self._rows(settings, inputs), self._rows(nearest.config, nearest.inputs)
        scale = here / there if here and there else 1.0
        for name in SIZE_FIELDS:
            before, now = nearest.config.get(name), settings.get(name)
            if before and now:
                scale *= now / before
        return scale

    def _rows(self, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> int | None:
        name = next((settings[field] for field in ROWS_FIELDS if isinstance(settings.get(field), str)), None)
        made = self._manifest(inputs.get(name or ""))
        return None if made is None else made.rows_out

    def _manifest(self, fingerprint: str | None) -> Manifest | None:
        return next((manifest for _, manifest in self._finished() if manifest.fingerprint == fingerprint), None)


def _config(stage: PlannedStage) -> StageConfig:
    config = stage.node.config
    assert isinstance(config, StageConfig)
    return config


def _differences(settings: Mapping[str, Any], others: Mapping[str, Any]) -> int:
    return sum(others.get(name) != value for name, value in settings.items())
