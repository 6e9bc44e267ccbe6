"""The graph of a recipe: which stage needs which, whether the kinds fit, and an order to run them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args

from align.config.advice import LEAVE_OUT
from align.config.architecture import architecture_in
from align.config.base import Problem, StrictModel
from align.config.explain import kind_phrase
from align.config.inputs import AnyInput, ArtifactInput, ModelInput, ModelKind
from align.config.names import listing, nearest
from align.config.paths import DATA_SUFFIXES, hub_id_in, locate
from align.config.reference import FieldPath, kinds_of
from align.config.shape import reference_kinds, references_in

LONGEST_ADVICE = 2
"""More stages than this between two kinds are not proposed."""


class GraphModel(StrictModel):
    """A stage's configuration, which may have rules about the stages and inputs that it names."""

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        """Problems of fields that do not agree with what they name.

        Paths begin at the stage. As in `check_fields`, values may be of any type.
        """
        yield from ()


class StageTypeLike(Protocol):
    """The part of a stage type that the reader of recipes uses; the registry's entries have it."""

    @property
    def name(self) -> str: ...

    @property
    def produces(self) -> str: ...

    @property
    def config_type(self) -> type[GraphModel]: ...


@dataclass(frozen=True)
class Draft:
    """A stage as it was written: its type, if that exists, and its fields, valid or not."""

    stage_type: StageTypeLike
    fields: Mapping[str, Any]

    def references(self) -> Iterator[tuple[FieldPath, Any, str]]:
        yield from self._references

    @cached_property
    def _references(self) -> tuple[tuple[FieldPath, Any, str], ...]:
        return tuple(references_in(self.stage_type.config_type, self.fields))  # every check of the graph asks for them


@dataclass(frozen=True)
class RecipeGraph:
    """All stages and inputs of a recipe, as they were written."""

    drafts: Mapping[str, Draft]
    inputs: Mapping[str, AnyInput]
    """The valid ones."""
    folder: Path
    """Where relative paths of inputs start."""

    @cached_property
    def encoder_decoders(self) -> dict[str | None, str]:
        """The architecture by name, of the inputs that are encoder–decoder models on this machine."""
        # A result of align keeps its model in a folder of this name.
        places = {name: f"{spec.artifact}/model" for name, spec in self.inputs.items() if isinstance(spec, ArtifactInput)}
        for name, spec in self.inputs.items():
            if isinstance(spec, ModelInput) and spec.kind == "model" and spec.path:
                places[name] = spec.path
        found = {name: architecture_in(locate(place, self.folder)) for name, place in places.items()}
        return {name: architecture for name, architecture in found.items() if architecture is not None}


def check_references(
    drafts: Mapping[str, Draft], inputs: Sequence[str], kinds: Mapping[str, str], stage_types: Mapping[str, StageTypeLike]
) -> Iterator[Problem]:
    """Problems of references: to an unknown name, to the stage itself, or to a result of the wrong kind.

    Args:
        drafts: the stages whose type is known.
        inputs: names of the inputs.
        kinds: kind by name, of all inputs and stages that have one. A name without a kind (its own entry is wrong) fits all.
        stage_types: every stage type there is.
    """
    for stage, draft in drafts.items():
        for field_path, wanted, name in draft.references():
            path = ("stages", stage, *field_path)
            if name == stage:
                yield Problem(path, "a stage cannot use its own result")
            elif name not in kinds:
                yield Problem(path, _unknown_name(name, wanted, stage, kinds))
            elif kinds[name] and kinds[name] not in kinds_of(wanted):
                verb = "holds" if name in inputs else "makes"
                advice = _advice(kinds[name], wanted, stage, kinds, stage_types)
                phrase = " or ".join(kind_phrase(kind) for kind in kinds_of(wanted))
                yield Problem(path, f"wants {phrase}, but '{name}' {verb} {kind_phrase(kinds[name])}; {advice}")


def _fitting(wanted: Any, stage: str, kinds: Mapping[str, str]) -> list[str]:
    return [name for name, kind in kinds.items() if kind in kinds_of(wanted) and name != stage]


def _unknown_name(name: str, wanted: Any, stage: str, kinds: Mapping[str, str]) -> str:
    fitting = _fitting(wanted, stage, kinds)
    if (stem := Path(name).stem) in fitting:
        return f"no input or stage is called '{name}'; did you mean '{stem}'?"
    if name.lower() in LEAVE_OUT:
        return f"no input or stage is called '{name}'; leave the key out for the default"
    if Path(name).suffix in (".yaml", ".yml"):
        return f"no input or stage is called '{name}'; rules in a file are {{rules: {name}}}"
    if place := _as_place(name, kinds_of(wanted)[0]):
        return f"no input or stage is called '{name}'; make it an input and write its name here: inputs: {{NAME: {place}}}"
    # First among names of the right kind, then among all: a typo is likelier than a wrong kind.
    is_scorer = kinds_of(wanted) == ("reward_model",)
    near = nearest(name, fitting) or nearest(name, [other for other in kinds if other != stage])
    if near:
        return f"no input or stage is called '{name}'; did you mean '{near}'?"
    phrase = " or ".join(kind_phrase(kind) for kind in kinds_of(wanted))
    there = f"; of this kind there is: {listing(fitting)}" if fitting else f"; nothing in the recipe is {phrase}"
    rules = "; rules that check answers are {rules: [{type: …, name: …}]}, see `align docs score`" if is_scorer else ""
    return f"no input or stage is called '{name}'{there}{rules}"


def _as_place(text: str, kind: str) -> str:
    """The input for a file or a hub id that stands where a name belongs; empty for a name."""
    if hub_id := hub_id_in(text):
        source = "hub_id: {}, revision: main" if kind in get_args(ModelKind) else "dataset: {}, split: train"
        return f"{{kind: {kind}, {source.format(hub_id)}}}"
    if "/" in text or Path(text).suffix in DATA_SUFFIXES:
        return f"{{kind: {kind}, path: {text}}}"
    return ""


def _advice(made: str, wanted: Any, stage: str, kinds: Mapping[str, str], stage_types: Mapping[str, StageTypeLike]) -> str:
    """What to put between a result of one kind and a field that wants another, or what to name instead."""
    ways = [way for kind in kinds_of(wanted) if (way := way_between(made, kind, stage_types))]
    proposals = []
    if ways:
        way = min(ways, key=len)
        proposals.append(f"put a {' and a '.join(way)} stage between them")
    if fitting := _fitting(wanted, stage, kinds):
        quoted = [f"'{name}'" for name in fitting]
        proposals.append(f"name {listing(quoted)}")
    if not proposals:
        makers = [stage_type.name for stage_type in stage_types.values() if stage_type.produces in kinds_of(wanted)]
        proposals.append(f"give an input of kind {' or '.join(kinds_of(wanted))}")
        proposals += [f"add a stage that makes it ({listing(makers)})"] if makers else []
    return ", or ".join(proposals)


def way_between(made: str, wanted: str, stage_types: Mapping[str, StageTypeLike]) -> list[str] | None:
    """The shortest chain of stage types that turns one kind into another, if it is short enough to propose."""
    ways: dict[str, list[str]] = {made: []}
    taken = {stage_type: reference_kinds(stage_type.config_type) for stage_type in stage_types.values()}
    for _ in range(LONGEST_ADVICE):
        # One more stage in each round, so the first way that is found is a shortest one. A copy, since `ways` grows.
        for kind, way in list(ways.items()):
            for stage_type, kinds in taken.items():
                # A stage that needs the kind it makes (a model, to train it) cannot give the first one of that kind.
                if stage_type.produces not in ways and kind in kinds and stage_type.produces not in kinds:
                    ways[stage_type.produces] = [*way, stage_type.name]
        if wanted in ways:
            return ways[wanted]
    return None


def order_stages(drafts: Mapping[str, Draft]) -> tuple[list[str], list[Problem]]:
    """Names of the stages, each after all it needs and otherwise as written, and a problem for every circle."""
    needs: dict[str, dict[str, FieldPath]] = {
        stage: {name: path for path, _, name in draft.references() if name in drafts and name != stage}
        for stage, draft in drafts.items()
    }
    order: list[str] = []
    problems: list[Problem] = []
    waiting = list(drafts)
    while waiting:
        # Always the first ready stage in the file's order, so that the order changes only where it must.
        ready = next((stage for stage in waiting if not any(need in waiting for need in needs[stage])), None)
        if ready is not None:
            waiting.remove(ready)
            order.append(ready)
            continue
        circle = _circle(waiting, needs)
        # Without these stages, the others may be in order. Circles that share a stage with this one are not reported.
        waiting = [stage for stage in waiting if stage not in circle]
        path = ("stages", circle[0], *needs[circle[0]][circle[1]])
        problems.append(Problem(path, f"these stages need each other in a circle: {' → '.join(circle)}"))
    return order, problems


def _circle(waiting: Sequence[str], needs: Mapping[str, Mapping[str, FieldPath]]) -> list[str]:
    """A circle a, b, …, a among stages that need each other, starting with the one written first."""
    walked = [waiting[0]]
    while True:
        # No stage is ready, so each has a need that waits, and the walk must come back to itself.
        following = next(need for need in needs[walked[-1]] if need in waiting)
        if following in walked:
            circle = walked[walked.index(following) :]
            start = circle.index(min(circle, key=list(waiting).index))
            return [*circle[start:], *circle[:start], circle[start]]
        walked.append(following)
