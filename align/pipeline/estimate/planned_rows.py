"""How many rows, of about how many tokens, a stage will read: those of an input, or those that stages before it will make."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput
from align.data.source import SourceFile, read_file
from align.errors import AlignError
from align.models.folder import ModelFolder
from align.pipeline.estimate.lengths import MeasuredRows
from align.pipeline.inputs import ResolvedInput
from align.pipeline.plan import Plan
from align.selection.best_of_n import BestRule
from align.selection.label import LabelRule
from align.selection.pair_rule import PairRule
from align.selection.policy import K
from align.store.artifact import Artifact
from align.training.needs import SAMPLED_ROWS


@dataclass(frozen=True)
class PlannedRows:
    """About what a name of the recipe stands for."""

    rows: float
    prompt: float
    """Tokens, on average."""
    completion: float
    """Tokens of all completions of a row together, on average."""
    each: int = 1
    """Rows of one prompt."""
    sides: int = 1
    """Completions of a row: 2 of a pair."""
    is_bound: bool = False
    """Whether they are yet to be made: all completions as long as they may become, and no row dropped."""

    @property
    def tokens(self) -> float:
        """Of all rows, prompts once."""
        return self.rows * (self.prompt + self.completion)


class RowsPlanner:
    """Rows of a plan by name, each read once."""

    def __init__(self, plan: Plan, measured: MeasuredRows) -> None:
        self._plan = plan
        self._measured = measured
        self._stages = {stage.name: stage for stage in plan.stages}
        self._known: dict[tuple[str, Path], PlannedRows | None] = {}

    def rows(self, name: str, folder: ModelFolder) -> PlannedRows | None:
        """None where they cannot be read, or follow from rows that cannot.

        Args:
            folder: of the model whose tokenizer counts.
        """
        key = name, folder.path
        if key not in self._known:
            self._known[key] = self._find(name, folder)
        return self._known[key]

    def _find(self, name: str, folder: ModelFolder) -> PlannedRows | None:
        if (stage := self._stages.get(name)) is None:
            data = self._plan.inputs.get(name)
            return None if data is None else self._read(data, folder, lambda: count_rows(data))
        if stage.status == "cached" and (manifest := stage.entry.read_manifest()) is not None:
            found = self._read(Artifact(name, stage.entry.path, manifest), folder, lambda: manifest.rows_out)
            return None if found is None else replace(found, each=self._each(name))
        config: Any = stage.node.config
        if stage.stage_type == "generate":
            prompts, each = self.rows(config.prompts, folder), self._each(name)
            if prompts is None:
                return None
            return PlannedRows(prompts.rows * each, prompts.prompt, config.max_completion_tokens, each, is_bound=True)
        if stage.stage_type == "score":
            return self.rows(config.candidates, folder)
        if isinstance(config, BestRule | LabelRule | PairRule):
            scored = self.rows(config.scored, folder)  # type: ignore[union-attr]
            return None if scored is None else _selected(config, scored)
        return None

    def _each(self, name: str) -> int:
        """Candidates of one prompt; 1 where the recipe does not say, which counts too many rows rather than too few."""
        stage = self._stages.get(name)
        if stage is None or stage.stage_type not in ("generate", "score"):
            return 1
        config: Any = stage.node.config
        return int(config.num_candidates) if stage.stage_type == "generate" else self._each(config.candidates)

    def _read(self, data: ResolvedInput | Artifact, folder: ModelFolder, count: Callable[[], int | None]) -> PlannedRows | None:
        lengths = self._measured.lengths(data, folder.path)
        if not lengths:
            return None
        try:
            rows = len(lengths) if len(lengths) < SAMPLED_ROWS else count()
        except (AlignError, OSError):  # the stage reports what is wrong when it runs
            rows = None
        if rows is None:
            return None
        prompt = sum(row.prompt for row in lengths) / len(lengths)
        completion, sides = sum(sum(row.completions) for row in lengths) / len(lengths), len(lengths[0].completions)
        return PlannedRows(rows, prompt, completion, sides=sides)


def _selected(rule: BestRule | LabelRule | PairRule, scored: PlannedRows) -> PlannedRows:
    """What best of n, labelling, or the building of pairs makes of candidates at most."""
    if isinstance(rule, PairRule):
        kept, completions = most_pairs(rule, scored.each), 2
    elif isinstance(rule, LabelRule):
        kept, completions = scored.each if rule.threshold is not None else min(2, scored.each), 1
    else:
        kept, completions = min(rule.keep, scored.each), 1
    rows = scored.rows / scored.each * kept
    return PlannedRows(rows, scored.prompt, completions * scored.completion, kept, completions, is_bound=True)


def most_pairs(rule: PairRule, candidates: int) -> int:
    """Pairs that a prompt gives at most."""
    if rule.policy == "best_vs_each":
        return max(1, candidates - 1)
    if rule.policy == "top_k_bottom_k":
        return max(1, min((rule.k or K) ** 2, candidates * (candidates - 1) // 2))
    return 1


def count_rows(data: ResolvedInput) -> int | None:
    """About how many rows an input has, by the sizes of its files and of its first rows; None where that is not known."""
    if data.artifact is not None:
        return data.artifact.manifest.rows_out
    spec, source = data.spec, data.source
    assert isinstance(spec, DataInput)  # only data inputs can be without an artifact
    assert source is not None  # every data input has one
    counts = Counter[str | None]()
    for file in source.files:
        count = _rows_in(file)
        if count is None:
            return None
        count += counts[file.part]
        counts[file.part] = count if file.max_rows is None else min(count, file.max_rows)
    low, high = spec.share or (0.0, 1.0)
    return round(counts.total() * (high - low))


def _rows_in(file: SourceFile) -> int | None:
    path = file.origin
    if not isinstance(path, Path):
        return file.max_rows
    if path.suffix == ".gz" or file.format == ".arrow":
        return None
    if file.format == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    first = list(itertools.islice(read_file(file), SAMPLED_ROWS))
    if len(first) < SAMPLED_ROWS:
        return len(first)
    size = sum(len(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace")) for _, row in first)
    return round(path.stat().st_size * len(first) / size)
