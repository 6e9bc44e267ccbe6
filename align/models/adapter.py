"""Adapter folders: which base model they belong to, and whether it is still there. Loads no torch.

adapter_config.json         PEFT's, so that others can read it too
adapter_model.safetensors
base.json                   the base model's fingerprint and its place; the settings of the recipe
config.json, tokenizer …    the base model's
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from align.config.architecture import CONFIG_NAME
from align.config.paths import exists
from align.config.peft import Lora, Peft, VirtualTokens
from align.errors import EnvironmentProblem, RecipeError
from align.models.files import ADAPTER_AGAIN, BASE_NAME, WEIGHTS_NAME
from align.runtime.plain_file import read_small_file
from align.store.atomic import write_json
from align.store.fingerprint import HASHES_NAME, FileHashes, fingerprint
from align.system_errors import system_problem

_PEFT: TypeAdapter[Lora | VirtualTokens] = TypeAdapter(Peft, config=ConfigDict(defer_build=True))


class BaseRecord(NamedTuple):
    """What base.json says."""

    place: Path
    """Of the base model, relative to the store."""
    fingerprint: str
    """Of the base model."""
    peft: Lora | VirtualTokens
    """The settings that the adapter was trained with."""


def read_record(folder: Path) -> BaseRecord:
    """The record of its base model in the folder of an adapter.

    Raises:
        EnvironmentProblem: if it is damaged.
    """
    path = folder / BASE_NAME
    try:
        record = json.loads(read_small_file(path))
        return BaseRecord(Path(record["place"]), str(record["fingerprint"]), _PEFT.validate_python(record["peft"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        text = f"{path}: does not say which base model the adapter is of ({type(error).__name__})"
        raise system_problem(error, path) or EnvironmentProblem(text, hint=ADAPTER_AGAIN) from error


def find_base(folder: Path, record: BaseRecord, *, read: bool = False) -> Path:
    """The folder of the base model of the adapter in `folder`.

    Args:
        read: its files are read now, whatever is remembered of them.
    Raises:
        EnvironmentProblem: if it is gone or is not the one that the adapter was trained on.
    """
    base, hashes = locate_base(folder, record), FileHashes(_hashes_near(folder))
    if read:
        hashes.read(_files_of(base), again=True)
        hashes.save()
    found = base_fingerprint(base, hashes)
    if found != record.fingerprint:
        raise EnvironmentProblem(
            f"{base}: is not the base model that the adapter in {folder} was trained on "
            f"(fingerprint {found}, not {record.fingerprint})",
            hint="Its files were changed since. Bring the old ones back, or train the adapter again.",
        )
    return base


def locate_base(folder: Path, record: BaseRecord) -> Path:
    """Where the base model of the adapter in `folder` is; whether it is the right one is not looked at.

    Raises:
        EnvironmentProblem: if it is gone.
    """
    # The place is relative to the store, which is a folder somewhere above the adapter.
    for parent in folder.resolve().parents:
        if exists((found := parent / record.place) / CONFIG_NAME) and _has_weights(found):
            return found.resolve()
    raise EnvironmentProblem(
        f"{folder}: the base model of this adapter is gone: there is no {record.place} beside its store",
        hint="Bring it back, or run the recipe again. `align export` makes a model that needs no base.",
    )


def base_fingerprint(folder: Path, hashes: FileHashes) -> str:
    """Fingerprint of a base model: names and content of its configuration and weights."""
    # Tokenizer and template do not count: an adapter's folder has its own.
    return fingerprint({path.name: hashes.of(path) for path in _files_of(folder)})


def _files_of(base: Path) -> list[Path]:
    return sorted([base / CONFIG_NAME, *base.glob("*.safetensors")])


def _hashes_near(folder: Path) -> Path:
    """The file of known hashes in the store that an adapter is in, so that a large base model is not read again."""
    # An adapter does not know how deep below its store it lies; the nearest file of hashes belongs to that store.
    near = [parent / HASHES_NAME for parent in folder.resolve().parents]
    return next((path for path in near if path.exists()), near[0])


def write_base_record(folder: Path, *, base: Path, store_root: Path, peft: Lora | VirtualTokens) -> None:
    """Record the base model in an adapter's folder; the place is relative to the store, so that both can move together."""
    place = os.path.relpath(base.resolve(), store_root.resolve())
    write_json(
        folder / BASE_NAME,
        {
            "fingerprint": base_fingerprint(base, FileHashes(store_root / HASHES_NAME)),
            "place": Path(place).as_posix(),
            "peft": peft.model_dump(mode="json"),
        },
    )


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS_NAME).exists() or next(folder.glob("*.safetensors.index.json"), None) is not None


def check_continued(wanted: Lora | VirtualTokens, own: Lora | VirtualTokens, base: Path, where: str) -> None:
    """Refuse to go on training an adapter with other settings than its own.

    Args:
        base: the folder of its base model, for the advice.
        where: what to name in a refusal.
    Raises:
        RecipeError: naming what differs.
    """
    theirs, ours = _shape(own), _shape(wanted)
    names = [name for name in theirs if ours.get(name) != theirs[name]]
    if not names:
        return
    if wanted.method != own.method:
        names = ["method"]  # the other settings of two methods cannot be compared
    differing = "; ".join(f"{name} is {ours[name]}, the adapter's {theirs[name]}" for name in names)
    instead = (
        "leave peft out: the adapter is then merged and the whole model trained"
        if isinstance(own, Lora)
        else f"start from its base model ({base})"
    )
    raise RecipeError(
        f"{where}: peft: the model is an adapter already ({own.method}), which is trained further, but {differing}",
        hint=f"Give the same peft settings, or {instead}.",
    )


def _shape(peft: Lora | VirtualTokens) -> dict[str, Any]:
    """The settings that decide the adapter's tensors and what they mean."""
    # alpha acts only through alpha / rank, and may be left out of a recipe.
    settings = peft.model_dump(mode="json", exclude={"alpha"})
    return settings | ({"scaling": peft.scaling} if isinstance(peft, Lora) else {})
