"""What a comparison tells of the training behind its models: how long it took, and what it logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from align.report.rows import Trained
from align.store.artifact import INPUT_STAGE, METRICS_NAME, SFT_STAGE, Artifact

SELECTION_STAGE = "select_checkpoint"
TRAINED_PARAMETERS = "trained_parameters"
"""What the metrics of every training stage call the number of parameters that it trains."""


def train_seconds(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> float | None:
    """Seconds of the stage that trained a model, wall time; None where it was not trained here.

    A checkpoint that was selected was trained by another stage: its price is the seconds of both.

    Args:
        artifact: the model.
        artifacts: everything the comparison's models were made from.
    """
    if artifact.manifest.stage == INPUT_STAGE:
        return None
    if artifact.manifest.stage != SELECTION_STAGE:
        return artifact.manifest.seconds
    inputs = set(artifact.manifest.inputs.values())
    trained = [made.manifest for made in artifacts.values() if made.fingerprint in inputs and made.manifest.stage == SFT_STAGE]
    seconds = {manifest.fingerprint: manifest.seconds for manifest in trained}
    return artifact.manifest.seconds + sum(seconds.values()) if seconds else None


def trained(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> Trained | None:
    """How much of a model its training changed, and in how much memory; None where it was not trained here.

    Args:
        artifact, artifacts: as for `train_seconds`; of a checkpoint that was selected, what trained it counts.
    """
    manifest = artifact.manifest
    if manifest.stage == SELECTION_STAGE:
        inputs = set(manifest.inputs.values())
        makers = (other.manifest for other in artifacts.values() if other.fingerprint in inputs)
        maker = next((other for other in makers if other.stage == SFT_STAGE), None)
        if maker is None:
            return None
        manifest = maker
    if manifest.stage == INPUT_STAGE:
        return None
    return Trained(manifest.metrics.get(TRAINED_PARAMETERS), manifest.peak_memory_bytes or None)


def training_logs(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """What every training stage logged, by stage."""
    logs = {}
    for name, artifact in artifacts.items():
        path = artifact.path / METRICS_NAME
        if artifact.manifest.stage != INPUT_STAGE and path.exists():
            logs[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return logs
