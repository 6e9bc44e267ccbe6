"""The training of the compared models: its time, its parameters and memory, and its logs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.report.rows import Trained
from align.store.artifact import INPUT_STAGE, METRICS_NAME, SFT_STAGE, Artifact, Manifest

SELECTION_STAGE = "select_checkpoint"
TRAINED_PARAMETERS = "trained_parameters"
"""Name of the number of trained parameters in the metrics of every training stage."""


def train_seconds(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> float | None:
    """Wall time, in seconds, of the stages that made a model: its training and, where there was one, the choice of a checkpoint.

    Args:
        artifact: the model.
        artifacts: everything that the compared models were made from.
    Returns:
        None where the model was not trained here.
    """
    training = _training_manifest(artifact, artifacts)
    if training is None:
        return None
    # A selected checkpoint or model has cost both its training and the sampling and scoring that chose it.
    return training.seconds if training is artifact.manifest else artifact.manifest.seconds + training.seconds


def trained(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> Trained | None:
    """How many parameters a model's training changed, and in how much memory. Arguments and None are as for `train_seconds`."""
    training = _training_manifest(artifact, artifacts)
    if training is None:
        return None
    # 0 is the manifest's default and means that nothing was measured.
    return Trained(training.metrics.get(TRAINED_PARAMETERS), training.peak_memory_bytes or None)


def _training_manifest(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> Manifest | None:
    """The manifest of the stage that trained a model. A selected checkpoint or model was trained by one of the stage's inputs."""
    manifest = artifact.manifest
    if (chosen := manifest.chosen_input) is not None:
        source = next((made for made in artifacts.values() if made.fingerprint == chosen), None)
        return None if source is None else _training_manifest(source, artifacts)
    if manifest.stage == SELECTION_STAGE:
        inputs = set(manifest.inputs.values())
        makers = (made.manifest for made in artifacts.values() if made.fingerprint in inputs)
        return next((maker for maker in makers if maker.stage == SFT_STAGE), None)
    return None if manifest.stage == INPUT_STAGE else manifest


def training_logs(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """What every training stage logged, by stage."""
    logs = {}
    for name, artifact in artifacts.items():
        path = artifact.path / METRICS_NAME
        if artifact.manifest.stage != INPUT_STAGE and path.exists():
            logs[name] = read_log(path)
    return logs


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; NaN in place of null."""
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
