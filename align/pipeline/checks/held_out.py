"""That a choice among models does not look at the prompts that a comparison holds out, whatever their files are called."""

from __future__ import annotations

from collections.abc import Iterator

from align.config.inputs import DataInput
from align.data.share import in_share
from align.errors import AlignError
from align.pipeline.checks.finding import Finding
from align.pipeline.checks.rows import is_local
from align.pipeline.inputs import ResolvedInput
from align.pipeline.plan import Plan, PlannedStage
from align.records import Prompt, prompt_key

CHOICE_STAGE, COMPARISON_STAGE = "select_model", "compare"


def choices_and_comparisons(plan: Plan, stage: PlannedStage) -> Iterator[tuple[str, str, str]]:
    """For a choice: its prompts, the prompts of a comparison, and the name of that; the prompts are two inputs."""
    if stage.stage_type == CHOICE_STAGE:
        own = stage.node.config.prompts  # type: ignore[attr-defined]
        for other in plan.stages:
            if other.stage_type == COMPARISON_STAGE and (held := other.node.config.prompts) != own:  # type: ignore[attr-defined]
                yield own, held, other.name


def check_held_out(name: str, where: str, own: ResolvedInput, held: ResolvedInput, comparison: str) -> list[Finding]:
    """Whether the prompts of a choice are those of a comparison, or some of them. Prompts that are yet to be downloaded pass.

    Args:
        name, where: of the choice; its place in the recipe.
    """
    of_choice, held_out = (_keys(resolved) for resolved in (own, held))
    # What is left out because of the other prompts is not known before the rows are read.
    if own.artifact is None and isinstance(own.spec, DataInput) and held.name in own.spec.decontaminate:
        return []
    shared = of_choice & held_out
    if not shared:
        return []
    every = len(shared) == len(of_choice)
    count = f"all {len(of_choice):,}" if every else f"{len(shared):,} of {len(of_choice):,}"
    text = f"{where}: {count} prompts of '{own.name}' are in '{held.name}', which '{comparison}' holds out"
    more = "" if every else f" decontaminate: [{held.name}] at inputs.{own.name} leaves the shared ones out."
    return [Finding(name, text, f"Choose on other prompts.{more}")]


def _keys(resolved: ResolvedInput) -> set[str]:
    from align.data.validation import valid_rows  # imports NumPy

    spec, source = resolved.spec, resolved.source
    try:
        if resolved.artifact is not None:
            return {prompt_key(row) for row in resolved.artifact.rows(Prompt)}
        if source is not None and isinstance(spec, DataInput) and is_local(source):
            return {prompt_key(row) for row in valid_rows(source, spec) if in_share(spec, row)}
    except AlignError:  # `check_rows` reports it
        pass
    return set()
