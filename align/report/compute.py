"""About how many floating-point operations a finished stage took.

A forward pass takes FORWARD · P operations for every token, P being the model's parameters. Training takes BACKWARD · P more, or
half of that where the base is frozen, and FORWARD · P more where activations are computed again (gradient checkpointing). Not
counted are attention, whose operations grow with the square of a row, padding, and measuring on held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from align.models.folder import ModelFolder
from align.models.shape import BACKWARD, FORWARD, read_shape
from align.store.artifact import Artifact, Manifest

Parameters = Callable[[Artifact], int | None]
"""Number of parameters of a model; None where its files do not show it."""


def parameters_of(model: Artifact) -> int | None:
    """Parameters of a decoder-only model or of an adapter's base; None for other models, whose tokens do not pass all weights."""
    shape = read_shape(ModelFolder.of(model))
    return None if shape is None else shape.parameters


def stage_flops(manifest: Manifest, by_fingerprint: Mapping[str, Artifact], parameters: Parameters) -> float | None:
    """Operations of one stage; 0 for a stage that runs no model here, as rules, judges and selections do.

    Args:
        by_fingerprint: everything that the stage was made from.
    Returns:
        None where a number of tokens was not recorded, or a model's parameters are not known.
    """
    inputs = {name: by_fingerprint.get(fingerprint) for name, fingerprint in manifest.inputs.items()}
    total = 0.0
    try:
        for name, per_parameter in _passes(manifest, inputs):
            model = inputs[name]
            size = None if model is None else parameters(model)
            if size is None:
                return None
            total += size * per_parameter
    except KeyError:  # a stage of an earlier version recorded less
        return None
    return total


def _passes(manifest: Manifest, inputs: Mapping[str, Artifact | None]) -> Iterator[tuple[str, float]]:
    """Models by the names they have in the stage's settings, and operations for every parameter of theirs."""
    config, metrics = manifest.config, manifest.metrics
    if "rollout_batch_size" in config:
        scorers = _models({**config.get("scorers", {}), **config["watch"]})
        seen, learned, on_groups = metrics["tokens"], _trained(manifest), "group_size" in config
        # Methods on groups may sample more than they learn from.
        sampled = metrics["scored_tokens"] if on_groups else seen
        if "teacher" in config:  # it reads what is learned from, as often as that is read
            yield config["model"], FORWARD * sampled + learned
            yield config["teacher"], float(FORWARD * metrics["trained_tokens"])
        else:
            has_reference = not on_groups or config["kl_coef"] > 0 or config["kl_limit"] is not None
            # The policy samples and is read as it was; the reference is another pass. Each sees a token once.
            yield config["model"], FORWARD * (sampled + (1 + has_reference) * seen) + learned
            if not on_groups:
                yield config["value_model"] or next(iter(scorers), config["model"]), FORWARD * seen + learned
        for scorer in scorers:
            yield scorer, FORWARD * sampled
    elif "learning_rate" in config:
        yield config["model"], _trained(manifest)
        if "reference" in config:
            yield config["reference"] or config["model"], FORWARD * metrics["tokens"]
    elif "num_candidates" in config:
        # A choice among models counts the tokens of all, which are of one size unless people mix them.
        sampled = config["model"] if "model" in config else next(iter(config["models"].values()))
        yield sampled, FORWARD * (metrics["prompt_tokens"] + metrics["new_tokens"])
        for scorer in _models({"": config.get("scorer")}):
            yield scorer, FORWARD * _candidate_tokens(manifest)
    elif "candidates" in config and (scorers := _models(config["scorers"])):
        sampler = inputs[config["candidates"]]
        for scorer in scorers:
            yield scorer, FORWARD * _candidate_tokens(sampler.manifest if sampler else manifest)


def _models(scorers: Mapping[str, Any]) -> list[str]:
    """Names of the reward models among the scorers, and of those in ensembles."""
    members = (scorer.get("ensemble", ()) if isinstance(scorer, dict) else [scorer] for scorer in scorers.values())
    return [name for names in members for name in names if isinstance(name, str)]


def _trained(manifest: Manifest) -> float:
    """Operations of training, for every parameter."""
    config, metrics = manifest.config, manifest.metrics
    backward = BACKWARD if config["peft"] is None else BACKWARD // 2
    again = FORWARD if metrics["gradient_checkpointing"] else 0
    return float((FORWARD + backward + again) * metrics["trained_tokens"])


def _candidate_tokens(sampling: Manifest) -> int:
    """Tokens that a scorer reads: every completion with its prompt."""
    return int(sampling.config["num_candidates"] * sampling.metrics["prompt_tokens"] + sampling.metrics["new_tokens"])
