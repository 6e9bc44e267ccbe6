"""A preference set as files to share: the pairs, what was dropped and why, and the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.writer import write_canonical
from align.errors import EnvironmentProblem, StageError
from align.export.dataset_card import render_dataset_card
from align.rows import PREFERENCES
from align.store.artifact import DROPS_NAME, ROWS_NAME, Artifact, Entry
from align.store.atomic import atomic_writer, write_bytes


@dataclass(frozen=True)
class PreferenceSet:
    """What was written."""

    pairs: Path
    drops: Path
    card: Path
    artifact: Artifact

    def to_json(self) -> dict[str, Any]:
        manifest = self.artifact.manifest
        return {
            "pairs": str(self.pairs),
            "drops": str(self.drops),
            "card": str(self.card),
            "fingerprint": manifest.fingerprint,
            "prompts_in": manifest.rows_in,
            "pairs_out": manifest.rows_out,
            "dropped": manifest.dropped,
            "metrics": manifest.metrics,
        }

    def lines(self) -> Iterator[str]:
        """The same as lines for the terminal."""
        manifest = self.artifact.manifest
        yield f"{self.pairs}: {manifest.rows_out:,} pairs of {manifest.rows_in:,} prompts"
        if manifest.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(manifest.dropped.items()))
            yield f"{self.drops}: {reasons}"
        if (share := manifest.metrics.get("longer_chosen_share")) is not None:
            yield f"The longer completion was chosen in {100 * share:.1f} % of the pairs."
        yield f"Card: {self.card}"


def write_preference_set(stage_folder: Path, out: Path, *, command: Sequence[str]) -> PreferenceSet:
    """Write the pairs of a finished stage to `out` (JSON Lines or Parquet, by its ending), drops and card beside it.

    The pairs are written last: if they exist, so do the others.

    Args:
        stage_folder: the run's link to the result in its store.
        command: what the user typed, for the card.
    """
    folder = stage_folder.resolve()
    entry = Entry.given(folder)
    state, problem = entry.verify()
    if state == "damaged":
        raise EnvironmentProblem(f"{stage_folder}: {problem}", hint="Run the command again: it makes the pairs again.")
    manifest = entry.read_manifest()
    if manifest is None:
        raise StageError(f"{stage_folder}: the pairs were removed while they were needed", hint="Run the command again.")
    artifact = Artifact(stage_folder.name, folder, manifest)
    made = PreferenceSet(out, out.with_name(f"{out.stem}.drops.jsonl"), out.with_name(f"{out.stem}.README.md"), artifact)
    with (folder / DROPS_NAME).open("rb") as stream, atomic_writer(made.drops) as written:
        shutil.copyfileobj(stream, written)
    card = render_dataset_card(artifact, file_name=out.name, drops_name=made.drops.name, command=command)
    write_bytes(made.card, card.encode())
    with (folder / ROWS_NAME).open("rb") as rows:
        write_canonical(out, PREFERENCES, map(json.loads, rows))
    return made
