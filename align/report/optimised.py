"""Which scorers the compared models were trained or selected with: such a score can rise without better completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from align.report.cost import made_from
from align.store.artifact import Artifact, Manifest


class ScorerUse(NamedTuple):
    """How independent the scorers of a comparison are of what the models learned from."""

    optimised: dict[str, list[str]]
    """By scorer: the models that were trained or selected with it."""
    same_rows: dict[str, str]
    """By reward model that no model was trained or selected with: one that was, and that learned from the same rows."""


def scorer_use(scorers: Mapping[str, Any], models: Sequence[str], baseline: str, artifacts: Mapping[str, Artifact]) -> ScorerUse:
    """Follow the path of every model.

    Args:
        scorers: as in a configuration, by the name in the comparison: the name of a reward model, or rules as JSON.
        models: the compared models.
        baseline: one of them. Another model's path is what it was made from and the baseline was not.
        artifacts: everything that the models were made from, and the reward models, by name.
    """
    by_fingerprint = {artifact.fingerprint: artifact for artifact in artifacts.values()}
    of_baseline = made_from(baseline, list(artifacts.values()), by_fingerprint)
    used: dict[str, set[str]] = {}
    for model in models:
        path = made_from(model, list(artifacts.values()), by_fingerprint)
        path = path if model == baseline else path - of_baseline
        used[model] = {key for step in path for key in _optimised_by(by_fingerprint[step].manifest, by_fingerprint)}
    fingerprints = {name: artifact.fingerprint for name, artifact in artifacts.items()}
    keys = {name: _keys(scorer, fingerprints) for name, scorer in scorers.items()}
    optimised = {name: [model for model in models if found & used[model]] for name, found in keys.items()}
    others = [by_fingerprint[key] for key in set().union(*used.values()) if key in by_fingerprint]
    same_rows = {
        name: twins[0]
        for name, found in keys.items()
        if not optimised[name]
        and (twins := sorted(twin for key in found & by_fingerprint.keys() for twin in _twins(by_fingerprint[key], others)))
    }
    return ScorerUse({name: found for name, found in optimised.items() if found}, same_rows)


def _optimised_by(manifest: Manifest, by_fingerprint: Mapping[str, Artifact]) -> Iterator[str]:
    """The scorers that decided what a stage made; those that it only watched or wrote down are not among them."""
    config = manifest.config
    if "scored" in config:  # a choice among candidates, by the names of their scores
        source = by_fingerprint.get(manifest.inputs.get(config["scored"], ""))
        given = source.manifest.config.get("scorers", {}) if source else {}
        names = [config["scorer"]] if config.get("scorer") else list(config.get("scorers") or ())
        yield from (key for name in names if source and name in given for key in _keys(given[name], source.manifest.inputs))
    elif "candidates" not in config:
        chosen = [config["scorer"]] if config.get("scorer") else list((config.get("scorers") or {}).values())
        yield from (key for scorer in chosen for key in _keys(scorer, manifest.inputs))


def _keys(scorer: Any, fingerprints: Mapping[str, str]) -> set[str]:
    """The same for the same scorer, whatever it is called: the fingerprints of its reward models, or the rules as text."""
    if isinstance(scorer, dict):
        members = scorer.get("ensemble")
        return {fingerprints.get(name, "") for name in members} if members else {json.dumps(scorer, sort_keys=True)}
    return {fingerprints.get(scorer, "")}


def _twins(judge: Artifact, others: Sequence[Artifact]) -> list[str]:
    """The names of the reward models among `others` that were trained on the rows that the judge was trained on."""
    return sorted(other.name for other in others if _rows(judge) & _rows(other))


def _rows(reward_model: Artifact) -> set[str]:
    manifest = reward_model.manifest
    return {manifest.inputs[name] for name in (manifest.config.get("data"),) if name in manifest.inputs}
