"""The card of a preference set: how its pairs were made, what was dropped, and how much length alone explains.

Everything in it is read from manifests and rows. The card says nothing that they do not say.
"""

from __future__ import annotations

import shlex
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from align.data.quality.length_baseline import LengthBaseline, length_baseline
from align.export.lineage import Step, trace
from align.export.markdown import environment, place, settings_text, yaml_text
from align.records import Preference
from align.store.artifact import INPUT_STAGE, ROWS_NAME, Artifact, read_rows

TEMPLATE_NAME = "dataset_card.md.jinja"
NUM_SAMPLES = 3
SHOWN_CHARACTERS = 600
"""Of a text in the samples."""
HUB_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


@dataclass
class _Measured:
    """Numbers of all pairs, read in one pass."""

    scores: dict[str, array[float]] = field(default_factory=lambda: {side: array("d") for side in ("chosen", "rejected")})
    characters: dict[str, array[int]] = field(default_factory=lambda: {side: array("q") for side in ("chosen", "rejected")})
    samples: list[Preference] = field(default_factory=list)
    length: LengthBaseline | None = None


def render_dataset_card(artifact: Artifact, *, file_name: str, drops_name: str, command: Sequence[str]) -> str:
    """The card as Markdown with YAML front matter. The same arguments give the same text: it holds no time.

    Args:
        artifact: preferences that a stage made, in their store.
        file_name: the file of pairs beside the card. drops_name: the file of what was dropped.
        command: what the user typed; folders of this machine are taken out.
    """
    steps = trace(artifact)
    measured = _measure(artifact)
    dropped = artifact.manifest.dropped
    return environment().get_template(TEMPLATE_NAME).render(
        front_matter=yaml_text(_front_matter(artifact, file_name)),
        title=file_name,
        file_name=file_name,
        loader="parquet" if file_name.endswith(".parquet") else "json",
        own=steps[-1],
        steps=steps,
        settings=[(step, settings_text(step)) for step in steps if step.stage != INPUT_STAGE],
        command=_shown_command(command),
        rows_in=artifact.manifest.rows_in,
        drops=dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
        drops_name=drops_name,
        earlier_drops=[(step.name, step.manifest.dropped) for step in steps[:-1] if step.manifest and step.manifest.dropped],
        finish_reasons=_finish_reasons(steps),
        summaries=list(_summaries(measured)),
        judges=list(_judges(steps)),
        length=measured.length,
        samples=[_sample(pair) for pair in measured.samples],
    )  # fmt: skip


def _front_matter(artifact: Artifact, file_name: str) -> dict[str, Any]:
    rows = artifact.manifest.rows_out or 0
    return {
        "license": "unknown",
        "task_categories": ["text-generation"],
        "tags": ["align", "preferences", str(artifact.manifest.config.get("policy", artifact.manifest.stage)).replace("_", "-")],
        "size_categories": [next((name for limit, name in HUB_SIZES if rows < limit), "n>10M")],
        "configs": [{"config_name": "default", "data_files": file_name}],
    }


def _measure(artifact: Artifact) -> _Measured:
    measured = _Measured()
    count = artifact.manifest.rows_out or 0
    # Evenly spaced by position, so that the card cannot pick flattering pairs.
    wanted = {round(index * (count - 1) / max(NUM_SAMPLES - 1, 1)) for index in range(NUM_SAMPLES)}

    # A generator that fills `measured` as it goes: the length rule and the other numbers share one pass over the file.
    def lengths() -> Iterator[tuple[str, int, int]]:
        for number, pair in enumerate(read_rows(artifact.path / ROWS_NAME, Preference)):
            for side, text, score in (
                ("chosen", pair.chosen, pair.chosen_score),
                ("rejected", pair.rejected, pair.rejected_score),
            ):
                measured.characters[side].append(len(text))
                if score is not None:
                    measured.scores[side].append(score)
            if number in wanted:
                measured.samples.append(pair)
            yield pair.id, len(pair.chosen), len(pair.rejected)

    measured.length = length_baseline(lengths())
    return measured


def _summaries(measured: _Measured) -> Iterator[Mapping[str, str]]:
    for what, sides, decimals in (("score", measured.scores, 3), ("characters", measured.characters, 0)):
        for side, values in sides.items():
            if len(values):
                numbers = np.asarray(values, dtype=np.float64)
                low, median, high = np.quantile(numbers, (0.05, 0.5, 0.95))
                texts = {"mean": numbers.mean(), "low": low, "median": median, "high": high}
                yield {"what": f"{what}, {side}", **{name: f"{value:,.{decimals}f}" for name, value in texts.items()}}


def _finish_reasons(steps: Sequence[Step]) -> dict[str, float]:
    """Share of completions by how they ended, over all stages that sampled."""
    counts: Counter[str] = Counter()
    for step in steps:
        counts.update(step.manifest.metrics.get("finish_reasons", {}) if step.manifest else {})
    return {reason: count / counts.total() for reason, count in counts.most_common()}


def _judges(steps: Sequence[Step]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for step in steps:
        for name, metrics in step.manifest.metrics.items() if step.manifest else ():
            if isinstance(metrics, dict) and "consistent_share" in metrics:
                yield name, metrics


def _sample(pair: Preference) -> dict[str, Any]:
    scored = pair.chosen_score is not None and pair.rejected_score is not None
    turns = [(message.role, _shortened(message.text)) for message in pair.prompt]
    return {
        "id": pair.id,
        "margin": f"{(pair.chosen_score or 0) - (pair.rejected_score or 0):.3g}" if scored else "",
        "parts": [*turns, ("chosen", _shortened(pair.chosen)), ("rejected", _shortened(pair.rejected))],
    }


def _shortened(text: str) -> str:
    """A text that fits a card. Control characters are shown as escapes, because they could hide or reorder the text."""
    visible = "".join(one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text)
    return visible if len(visible) <= SHOWN_CHARACTERS else f"{visible[:SHOWN_CHARACTERS]}…"


def _shown_command(command: Sequence[str]) -> str:
    """The command without the folders of this machine, in NAME=PATH too."""
    shown = []
    for argument in command:
        name, equals, path = argument.partition("=")
        shown.append(f"{name}={place(path)}" if equals else place(argument) if argument else argument)
    return shlex.join(shown)
