"""README.md of an exported model: what it is, how it was made, what was measured, and what is not known about it.

Everything in it is read from manifests. The card says nothing that they do not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from align.export.check import MAX_COMPLETION_TOKENS, TIE_LOGITS, CheckReport
from align.export.limits import limits_of
from align.export.lineage import Comparison, Step
from align.export.markdown import environment, settings_text, yaml_text
from align.export.source import ModelSource
from align.report import wording
from align.report.results import ModelResult
from align.report.verdict import verdicts
from align.report.wording import estimate_text
from align.store.artifact import INPUT_STAGE

CARD_NAME = "README.md"
TEMPLATE_NAME = "card.md.jinja"
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{7,64})")
"""How manifests write a model of the hub: its id and the commit."""


def render_card(
    source: ModelSource,
    steps: Sequence[Step],
    comparisons: Sequence[Comparison],
    *,
    dtype: str,
    checks: Sequence[CheckReport],
) -> str:
    """The card as Markdown with YAML front matter. The same arguments give the same text: it holds no time.

    Args:
        steps: what the model was made from, in order, the model itself last; empty for a model that align did not make.
        comparisons: the comparisons that include the model.
        checks: what was compared after export; empty if the check was left out.
    """
    return environment().get_template(TEMPLATE_NAME).render(
        front_matter=yaml_text(_front_matter(source, steps)),
        title=source.name if source.run is None else f"{source.run.resolve().name}: {source.name}",
        reward=source.purpose == "reward",
        caps_scores=source.folder.caps_scores,
        dtype=dtype,
        merged=_merged_text(source),
        steps=steps,
        own=steps[-1] if steps else None,
        parent=_parent(steps),
        settings=[(step, settings_text(step)) for step in steps if step.stage != INPUT_STAGE],
        data=[step for step in steps if step.stage == INPUT_STAGE and step.kind != "model"],
        comparisons=comparisons,
        wording=wording,
        verdicts=verdicts,
        sampling_text=_sampling_text,
        behaviour_rows=_behaviour_rows,
        metrics=_numbers(steps[-1].manifest.metrics) if steps and steps[-1].manifest else {},
        checks=checks,
        prompts_text=_prompts_text(checks),
        tokens=MAX_COMPLETION_TOKENS,
        tie=TIE_LOGITS,
        limits=limits_of(source, steps, comparisons),
    )  # fmt: skip


def _prompts_text(checks: Sequence[CheckReport]) -> str:
    """Where the prompts of the check came from."""
    own = checks[0].own_prompts if checks else 0
    if not own:
        return "The prompts were short neutral ones in English and Korean."
    rest = f", {checks[0].compared - own} were short neutral ones" if own < checks[0].compared else ""
    return f"{own} prompts were the run's own{rest}."


def _front_matter(source: ModelSource, steps: Sequence[Step]) -> dict[str, Any]:
    matter: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if source.purpose == "reward" else "text-generation",
    }
    bases = [match["id"] for step in steps if step.kind == "model" and (match := HUB_ID.fullmatch(step.source or ""))]
    if bases:  # the hub takes nothing but its own ids here
        matter["base_model"] = bases[0]
        matter["base_model_relation"] = "finetune"
    methods = dict.fromkeys(name for step in _line_of_training(steps) for name in _methods(step))
    matter["tags"] = ["align", *(name.replace("_", "-") for name in methods)]
    return matter


def _methods(step: Step) -> list[str]:
    """The stage's type and, where an adapter was trained, its method."""
    peft = step.manifest.config.get("peft") if step.manifest is not None else None
    return [step.stage, *([str(peft["method"])] if isinstance(peft, dict) else [])]


def _merged_text(source: ModelSource) -> str:
    """What was merged, for a model that was an adapter; else nothing."""
    if source.folder.peft is None:
        return ""
    if source.folder.peft.method == "qlora":
        return "Its QLoRA adapter is merged into its base as that was in training: rounded to 4 bits a weight, and back."
    return "Its LoRA adapter is merged into its base."


def _line_of_training(steps: Sequence[Step]) -> list[Step]:
    """The trainings in the line from the base to this model, without those of reward models that scored for it."""
    # By fingerprint, not by name: two recipes may call different stages the same.
    by_fingerprint = {step.fingerprint: step for step in steps}
    line: list[Step] = []
    step = steps[-1] if steps else None
    while step is not None and step.manifest is not None:
        # Every stage that trains has one, and no other stage has.
        if "learning_rate" in step.manifest.config:
            line.insert(0, step)
        step = _model_input(step, by_fingerprint)
    return line


def _model_input(step: Step, by_fingerprint: Mapping[str, Step]) -> Step | None:
    assert step.manifest is not None
    name = step.manifest.config.get("model")
    return by_fingerprint.get(step.manifest.chosen_input or step.manifest.inputs.get(str(name), ""))


def _parent(steps: Sequence[Step]) -> Step | None:
    """What the model's training started from."""
    if not steps or steps[-1].manifest is None:
        return None
    return _model_input(steps[-1], {step.fingerprint: step for step in steps})


def _numbers(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of a stage that are single numbers or words."""
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in metrics.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }


def _sampling_text(config: Mapping[str, Any]) -> str:
    parts = [f"temperature {config['temperature']:g}"]
    parts += [f"top_p {config['top_p']:g}"] if config["top_p"] < 1 else []
    parts += [f"top_k {config['top_k']}"] if config["top_k"] else []
    return ", ".join([*parts, f"at most {config['max_completion_tokens']} tokens"])


def _behaviour_rows(row: ModelResult, base: ModelResult | None) -> Iterable[tuple[str, str, str]]:
    """(what, this model, baseline) for each measurement other than the scores."""

    def both(what: str, text: Any) -> tuple[str, str, str]:
        return what, text(row), "–" if base is None else text(base)

    yield both("mean completion, tokens", lambda one: estimate_text(one.completion_tokens, 1))
    yield both("completions that ended by themselves", lambda one: f"{100 * one.eos_share:.1f} %")
    yield both("distinct word pairs", lambda one: "–" if one.distinct_2 is None else f"{one.distinct_2:.3f}")
    if row.retention_perplexity is not None:
        yield both(
            "perplexity on retention text", lambda one: f"{one.retention_perplexity:.3f}" if one.retention_perplexity else "–"
        )
    if row.kl_to_baseline is not None:
        yield "KL to the baseline, nats per completion", estimate_text(row.kl_to_baseline, 2), "–"
