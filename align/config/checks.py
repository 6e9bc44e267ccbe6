"""What types alone cannot say: fields that must agree with each other, and files that must be there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.config.explain import Mistake, kind_phrase, nearest, unknown
from align.config.graph import Draft
from align.config.inputs import ArtifactInput, DataInput, ModelInput
from align.config.reference import FieldPath

MANIFEST_NAME = "manifest.json"


def check_input_path(spec: ModelInput | DataInput | ArtifactInput, folder: Path, path: FieldPath) -> Iterator[Mistake]:
    """Whether the file or folder of an input is there and of the right sort. Nothing is looked up on a hub."""
    field, written = ("artifact", spec.artifact) if isinstance(spec, ArtifactInput) else ("path", spec.path)
    if written is None:
        return
    place = folder / Path(written).expanduser()
    if not written:
        yield Mistake((*path, field), "must not be empty")
    elif not place.exists():
        sort = "file" if isinstance(spec, DataInput) else "folder"
        yield Mistake((*path, field), f"there is no such {sort}: {place}{_beside(place)}")
    elif isinstance(spec, DataInput):
        if place.is_dir():
            yield Mistake((*path, field), f"{place} is a folder; {kind_phrase(spec.kind)} are read from a file")
    elif not place.is_dir():
        yield Mistake((*path, field), f"{place} is a file; {kind_phrase(spec.kind)} is read from a folder")
    elif isinstance(spec, ArtifactInput):
        yield from _check_artifact(spec, place, (*path, field))


def _beside(place: Path) -> str:
    """The name in the same folder that was probably meant."""
    try:
        near = nearest(place.name, [other.name for other in place.parent.iterdir()])
    except OSError:
        return ""
    return f"; did you mean '{near}'?" if near else ""


def artifact_kind(folder: Path) -> str | None:
    """The kind that the manifest in `folder` names, or None when there is no readable manifest."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return str(manifest["kind"]) if isinstance(manifest, dict) and "kind" in manifest else None


def _check_artifact(spec: ArtifactInput, place: Path, path: FieldPath) -> Iterator[Mistake]:
    kind = artifact_kind(place)
    if kind is None:
        yield Mistake(path, f"{place} has no {MANIFEST_NAME}, so it is not a finished result of align")
    elif kind != spec.kind:
        yield Mistake((*path[:-1], "kind"), f"expected '{kind}', which is what {place} holds, got '{spec.kind}'")


def check_stage(name: str, draft: Draft, drafts: Mapping[str, Draft]) -> Iterator[Mistake]:
    """Fields of one stage that must agree with each other or with the stage they name.

    The values may be of any type: what is wrong with a type has been said elsewhere.
    """
    path = ("stages", name)
    fields = draft.stage_type.config_type.model_fields
    if "models" in fields and "baseline" in fields:
        yield from _check_models(draft.fields, path)
    if "scorer" in fields and "scored" in fields:
        yield from _check_scorer(draft.fields, path, drafts)
    if "micro_batch_size" in fields and "batch_size" in fields:
        whole, part = (draft.fields.get(field, fields[field].default) for field in ("batch_size", "micro_batch_size"))
        if _positive(whole) and _positive(part) and whole % part:
            field = "micro_batch_size" if "micro_batch_size" in draft.fields else "batch_size"
            yield Mistake((*path, field), f"batch_size ({whole}) must be a multiple of micro_batch_size ({part})")


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_models(fields: Mapping[str, Any], path: FieldPath) -> Iterator[Mistake]:
    models, baseline = fields.get("models"), fields.get("baseline")
    if not isinstance(models, list):
        return
    for index, model in enumerate(models):
        if isinstance(model, str) and model in models[:index]:
            yield Mistake((*path, "models", index), f"'{model}' is here twice")
    if isinstance(baseline, str) and models and baseline not in models:
        names = [model for model in models if isinstance(model, str)]
        yield Mistake((*path, "baseline"), f"'{baseline}' is not one of the models that are compared ({', '.join(names)})")


def _check_scorer(fields: Mapping[str, Any], path: FieldPath, drafts: Mapping[str, Draft]) -> Iterator[Mistake]:
    scorer, scored = fields.get("scorer"), fields.get("scored")
    source = drafts.get(scored) if isinstance(scored, str) else None
    scorers = source.fields.get("scorers") if source else None
    if isinstance(scorer, str) and isinstance(scorers, dict) and scorers and scorer not in scorers:
        yield Mistake((*path, "scorer"), f"'{scorer}': {unknown(scorer, list(scorers), what='scorer')} (of the stage '{scored}')")
