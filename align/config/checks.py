"""Checks that types cannot express: fields that must agree with each other, and files that must exist."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config.architecture import CONFIG_NAME, ENCODER_DECODER_STAGES, architecture_in, encoder_decoder_refusal
from align.config.base import Problem, StrictModel
from align.config.explain import kind_phrase
from align.config.graph import Draft, RecipeGraph
from align.config.inputs import ADAPTER_KINDS, MANIFEST_NAME, AnyInput, ArtifactInput, CandidatesInput, DataInput
from align.config.names import listing, unknown
from align.config.paths import advice_on_missing, exists, locate
from align.config.reference import FieldPath, kinds_of
from align.config.sections import says_right_or_wrong
from align.runtime.plain_file import other_kind, read_small_file


def check_input_path(spec: AnyInput, folder: Path, path: FieldPath) -> Iterator[Problem]:
    """Check that the files or the folder of an input exist and have the right type. Asks no hub."""
    # Data may be a file or a glob as well; every other input is a folder.
    if isinstance(spec, (DataInput, CandidatesInput)):
        yield from _check_data_paths(spec, folder, path)
        return
    field, written = ("artifact", spec.artifact) if isinstance(spec, ArtifactInput) else ("path", spec.path)
    if written is None:
        return
    place = locate(written, folder)
    if not written:
        yield Problem((*path, field), "must not be empty")
    elif not exists(place):
        hub = "hub_id: {}, revision: main" if field == "path" else ""
        yield Problem((*path, field), f"there is no such folder: {place}{advice_on_missing(written, folder, hub=hub)}")
    elif not place.is_dir():
        holder = f"; did you mean '{Path(written).parent}'?" if (place.parent / CONFIG_NAME).is_file() else ""
        what = kind_phrase(spec.kind)
        verb = "is" if what.startswith(("a ", "an ")) else "are"
        yield Problem((*path, field), f"{place} is {other_kind(place) or 'a file'}; {what} {verb} read from a folder{holder}")
    elif isinstance(spec, ArtifactInput):
        yield from _check_artifact(spec, place, (*path, field))
    elif spec.kind == "reward_model" and (architecture := architecture_in(place)):
        yield Problem((*path, field), f"{place} is an encoder–decoder model ({architecture}), which cannot be a reward model")


def _check_data_paths(spec: DataInput | CandidatesInput, folder: Path, path: FieldPath) -> Iterator[Problem]:
    """Check that a data path is a file, a folder with files, or a glob that matches something."""
    written: dict[FieldPath, str | None] = {("path",): spec.path}
    mixture = spec.mixture if isinstance(spec, DataInput) else None
    written |= {("mixture", name, "path"): part.path for name, part in (mixture or {}).items()}
    for field, text in written.items():
        place = locate(text or "", folder)
        # An empty path would be the recipe's own folder, which exists.
        if text == "":
            yield Problem((*path, *field), "must not be empty")
        elif text is None or (exists(place) and place.is_file()):
            continue
        elif exists(place) and place.is_dir():
            if (place / CONFIG_NAME).is_file() or not any(place.iterdir()):
                what = "is a model's folder" if (place / CONFIG_NAME).is_file() else "is an empty folder"
                yield Problem((*path, *field), f"{place} {what}; {kind_phrase(spec.kind)} are read from data files")
        elif (kind := other_kind(place)) is not None:
            yield Problem((*path, *field), f"{place} is {kind}, not a file; save what it gives, and name that file")
        elif not glob.has_magic(text):
            hub = "dataset: {}, split: train" if isinstance(spec, DataInput) else ""
            yield Problem((*path, *field), f"there is no such file: {place}{advice_on_missing(text, folder, hub=hub)}")
        elif not glob.glob(str(place), recursive=True):
            yield Problem((*path, *field), f"no file fits: {place}")


def check_decontamination(inputs: Mapping[str, AnyInput], names: Sequence[str]) -> Iterator[Problem]:
    """Check that every entry of `decontaminate` is an input of prompts that is read from files.

    Args:
        inputs: the valid ones.
        names: of all inputs; a reference to an invalid input is not reported, since the input itself is.
    """
    for name, spec in inputs.items():
        for number, evaluation in enumerate(spec.decontaminate if isinstance(spec, DataInput) else ()):
            path, held = ("inputs", name, "decontaminate", number), inputs.get(evaluation)
            if evaluation not in names:
                yield Problem(path, unknown(evaluation, [other for other in names if other != name], what="input"))
            elif evaluation == name:
                yield Problem(path, "an input cannot be compared with itself")
            elif held is not None and not (isinstance(held, DataInput) and held.kind == "prompts"):
                yield Problem(path, f"'{evaluation}' holds {kind_phrase(held.kind)}; expected an input of the kind prompts")
            elif isinstance(held, DataInput) and (held.dataset is not None or held.mixture is not None):
                yield Problem(path, f"'{evaluation}' must be read from files (path), to know them before anything is fetched")


def artifact_kind(folder: Path) -> str | None:
    """The kind under which recipes name the result in `folder`, by its manifest; None if no manifest can be read."""
    manifest = manifest_of(folder)
    whole = {adapter: kind for kind, adapter in ADAPTER_KINDS.items()}
    return whole.get(str(manifest["kind"]), str(manifest["kind"])) if "kind" in manifest else None


def manifest_of(folder: Path) -> Mapping[str, Any]:
    """The manifest in `folder`, unchecked; empty when there is no readable one."""
    try:
        manifest = json.loads(read_small_file(folder / MANIFEST_NAME))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _check_artifact(spec: ArtifactInput, place: Path, path: FieldPath) -> Iterator[Problem]:
    kind = artifact_kind(place)
    if kind is None:
        advice = f"; did you mean 'path: {spec.artifact}'?" if (place / CONFIG_NAME).is_file() else ""
        yield Problem(path, f"{place} has no {MANIFEST_NAME}, so it is not a finished result of align{advice}")
    elif kind != spec.kind:
        yield Problem((*path[:-1], "kind"), f"expected '{kind}', which is what {place} holds, got '{spec.kind}'")


def check_stage(name: str, draft: Draft, graph: RecipeGraph) -> Iterator[Problem]:
    """Problems of one stage's fields that must agree with each other or with the stage or input they name.

    The values may be of any type: problems of type are reported elsewhere.
    """
    config_type = draft.stage_type.config_type
    yield from (
        problem._replace(path=("stages", name, *problem.path))
        for problem in (
            *config_type.check_fields(draft.fields),
            *config_type.check_graph(draft.fields, graph),
            *_check_encoder_decoder(draft, graph),
        )
    )


def _check_encoder_decoder(draft: Draft, graph: RecipeGraph) -> Iterator[Problem]:
    """Refuse encoder–decoder models in stages, or with options, that do not support them."""
    stage_type = draft.stage_type.name
    # A stage may name several such models, but its engine is one problem.
    engine_reported = False
    for field_path, wanted, name in draft.references():
        origin = _origin(name, graph) if "model" in kinds_of(wanted) else None
        if origin not in graph.encoder_decoders:
            continue
        architecture = graph.encoder_decoders[origin]
        model = f"'{name}' is an encoder–decoder model ({architecture})"
        if stage_type not in ENCODER_DECODER_STAGES:
            refusal = encoder_decoder_refusal(f"'{name}'", architecture, stage_type)
            yield Problem(field_path, f"{refusal}: name another model")
        elif draft.fields.get("peft") is not None:
            yield Problem(("peft",), f"{model}, whose weights are all trained; leave peft out")
        elif draft.fields.get("engine") == "vllm" and not engine_reported:
            engine_reported = True
            yield Problem(("engine",), f"{model}, which vllm does not serve; write transformers, or leave engine out")


def _origin(name: str, graph: RecipeGraph) -> str | None:
    """The input that a referenced model starts from, found by going back through the stages that train it."""
    # Stages in a circle would be followed for ever; the circle itself is reported elsewhere.
    passed: set[str] = set()
    while name in graph.drafts and name not in passed:
        passed.add(name)
        before = graph.drafts[name].fields.get("model") if graph.drafts[name].stage_type.produces == "model" else None
        if not isinstance(before, str):
            return None
        name = before
    return name


def check_several_candidates(sampled: Any, graph: RecipeGraph, field: str, what: str) -> Iterator[Problem]:
    """A problem where the stage that samples candidates gives one per prompt, or the same ones, to what compares them.

    Args:
        sampled: name of the stage, of any type.
        field: where to report it.
        what: what needs several candidates, as the beginning of a sentence.
    """
    draft = graph.drafts.get(sampled) if isinstance(sampled, str) else None
    if draft is None:
        return
    if draft.fields.get("num_candidates") == 1:
        yield Problem((field,), f"{what} needs two candidates of a prompt, but '{sampled}' samples one; raise its num_candidates")
    elif draft.fields.get("temperature") == 0:
        same = f"samples the same one each time (temperature: {draft.fields['temperature']})"
        yield Problem((field,), f"{what} needs two different candidates of a prompt, but '{sampled}' {same}; raise it")


def check_scorers(fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
    """Problems of scorers that the stage named by `scored` does not have."""
    scored = fields.get("scored")
    source = graph.drafts.get(scored) if isinstance(scored, str) else None
    known = source.fields.get("scorers") if source else None
    several = fields.get("scorers")
    named: dict[FieldPath, Any] = {("scorer",): fields.get("scorer")}
    named |= {("scorers", name): name for name in (several if isinstance(several, dict) else {})}
    for field, scorer in named.items():
        # Without valid scorers to compare with, the stage that lacks them has the problem.
        if isinstance(scorer, str) and isinstance(known, dict) and known and scorer not in known:
            yield Problem(field, f"'{scorer}': {unknown(scorer, list(known), what='scorer')} (of the stage '{scored}')")


def check_choice(fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
    """Problems of a choice among models by what a comparison holds out: its prompts, or its independent scorer."""
    prompts, scorer = fields.get("prompts"), fields.get("scorer")
    comparisons = {name: draft for name, draft in graph.drafts.items() if draft.stage_type.produces == "comparison"}
    for name, draft in comparisons.items():
        held_out, judges = draft.fields.get("prompts"), draft.fields.get("scorers")
        if isinstance(prompts, str) and isinstance(held_out, str) and _same_rows(prompts, held_out, graph):
            same = f"'{prompts}' are" if prompts == held_out else f"'{prompts}' is the same file as '{held_out}',"
            text = f"{same} the held-out prompts of '{name}'; choose on others, or the chosen model looks too good on these"
            yield Problem(("prompts",), text)
        if not isinstance(judges, dict) or len(judges) < 2 or scorer not in judges.values():
            continue
        if not any(_uses(scorer, other.fields) for other in graph.drafts.values() if not _only_judges(other)):
            label = next(key for key, judge in judges.items() if judge == scorer)
            others = listing(repr(key) for key in judges if key != label)
            text = f"this is the scorer '{label}' of '{name}', which no other stage uses: a choice by it leaves the comparison"
            yield Problem(("scorer",), f"{text} no independent judge; choose by {others}, or another scorer")


def check_pass_at(model: type[StrictModel], fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that the pass@k of a comparison can be computed from its completions, by a scorer that says right or wrong."""
    wanted, scorers = fields.get("pass_at"), fields.get("scorers")
    if wanted is None:
        for key in ("pass_scorer", "pass_score"):
            # A recipe with all defaults written out must read as the same recipe.
            if fields.get(key, default := model.model_fields[key].default) != default:
                yield Problem((key,), f"{key} is for pass@k; say which k in pass_at, such as pass_at: [1, 8]")
        return
    scorers = scorers if isinstance(scorers, dict) else {}
    numbers = [k for k in wanted if type(k) is int] if isinstance(wanted, list) else []
    most, temperature = (fields.get(name, model.model_fields[name].default) for name in ("num_candidates", "temperature"))
    for index, k in enumerate(numbers):
        if k in numbers[:index]:
            yield Problem(("pass_at", index), f"{k} is here twice")
        elif type(most) is int and k > most:
            text = f"pass@{k} needs at least {k} completions per prompt and model; num_candidates is {most}"
            yield Problem(("pass_at", index), text)
        elif f"pass@{k}" in scorers:
            yield Problem(("scorers", f"pass@{k}"), "a column of pass_at has this name; give the scorer another")
    if temperature == 0 and (larger := [k for k in numbers if k > 1]):
        text = f"temperature 0 gives the same completion each time, so pass@{larger[0]} would be pass@1; set temperature: 1"
        yield Problem(("temperature",), text)
    if not scorers:
        return
    key = next((key for key in ("pass_scorer", "deciding_scorer") if isinstance(fields.get(key), str)), "")
    name = fields.get(key, list(scorers)[-1])
    if name not in scorers and key == "pass_scorer":
        yield Problem(("pass_scorer",), unknown(name, list(scorers), what="scorer"))
    elif name in scorers and not says_right_or_wrong(scorers[name]):
        fitting = next((other for other, scorer in scorers.items() if says_right_or_wrong(scorer)), None)
        advice = f"set pass_scorer: {fitting}" if fitting else "add one made of rules to scorers"
        text = f"pass@k needs a scorer that says right or wrong, which '{name}' does not; {advice}"
        yield Problem(("pass_scorer" if key == "pass_scorer" else "pass_at",), text)


def _only_judges(draft: Draft) -> bool:
    """Whether a stage scores finished models only."""
    return draft.stage_type.produces == "comparison" or draft.stage_type.name.startswith("select_")


def _same_rows(one: str, other: str, graph: RecipeGraph) -> bool:
    """Whether two inputs have the same place, and no shares that lie apart."""
    shares = sorted(share for name in (one, other) if (share := getattr(graph.inputs.get(name), "share", None)) is not None)
    apart = len(shares) == 2 and shares[0][1] <= shares[1][0]
    return _place_of(one, graph) == _place_of(other, graph) and not apart


def _place_of(name: str, graph: RecipeGraph) -> Any:
    """Where the rows of an input are; its name where that is not known."""
    spec = graph.inputs.get(name)
    if not isinstance(spec, DataInput) or spec.mixture is not None:
        return name
    if not spec.path:
        return spec.dataset, spec.subset, spec.split
    place = locate(spec.path, graph.folder)
    return place.resolve() if exists(place) else name  # a name that no file can have cannot be resolved either


def _uses(scorer: Any, value: Any) -> bool:
    """Whether a scorer is somewhere in a stage's fields."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(value == scorer) or any(_uses(scorer, part) for part in inside)
