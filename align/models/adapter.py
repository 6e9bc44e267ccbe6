"""Adapter folders: which base model they belong to, and whether it is still there. Loads no torch.

adapter_config.json         PEFT's, so that others can read it too
adapter_model.safetensors
base.json                   the base model's fingerprint and its place; the settings of the recipe
config.json, tokenizer …    the base model's
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from align.config.peft import Lora, Peft, VirtualTokens
from align.errors import EnvironmentProblem, RecipeError
from align.models.folder import ADAPTER_AGAIN, BASE_NAME, CONFIG_NAME, WEIGHTS_NAME, check_model_folder
from align.store.atomic import write_json
from align.store.fingerprint import HASHES_NAME, FileHashes, fingerprint

_PEFT: TypeAdapter[Lora | VirtualTokens] = TypeAdapter(Peft)


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk whose base model was found and is the one it was trained on."""

    folder: Path
    base: Path
    """Folder of the base model."""
    peft: Lora | VirtualTokens
    """The settings it was trained with."""

    @property
    def can_merge(self) -> bool:
        """Whether it can become part of the base model's weights."""
        return isinstance(self.peft, Lora)


def read_adapter(folder: Path) -> AdapterFolder:
    """The adapter in `folder`.

    Raises:
        RecipeError, EnvironmentProblem: see `check_model_folder`.
        EnvironmentProblem: if the base model is gone or is not the one it was.
    """
    check_model_folder(folder)
    record_path = folder / BASE_NAME
    try:
        record = json.loads(record_path.read_bytes())
        place, expected, peft = Path(record["place"]), str(record["fingerprint"]), _PEFT.validate_python(record["peft"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise EnvironmentProblem(
            f"{record_path}: does not say which base model the adapter is of ({type(error).__name__})", hint=ADAPTER_AGAIN
        ) from error
    base = _find(place, folder)
    if base is None:
        raise EnvironmentProblem(
            f"{folder}: the base model of this adapter is gone: there is no {place} beside its store",
            hint="Bring it back, or run the recipe again. `align export` makes a model that needs no base.",
        )
    found = base_fingerprint(base, FileHashes(_hashes_near(folder)))
    if found != expected:
        raise EnvironmentProblem(
            f"{base}: is not the base model that the adapter in {folder} was trained on (fingerprint {found}, not {expected})",
            hint="Its files were changed since. Bring the old ones back, or train the adapter again.",
        )
    return AdapterFolder(folder, base, peft)


def base_fingerprint(folder: Path, hashes: FileHashes) -> str:
    """Fingerprint of a base model: names and content of its configuration and weights."""
    # Tokenizer and template do not count: an adapter's folder has its own.
    files = {path.name: hashes.of(path) for path in sorted([folder / CONFIG_NAME, *folder.glob("*.safetensors")])}
    return fingerprint(files)


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


def _find(place: Path, folder: Path) -> Path | None:
    """The base model's folder, or None. `place` is relative to the store, which is a folder somewhere above the adapter."""
    candidates = (parent / place for parent in folder.resolve().parents)
    return next((found.resolve() for found in candidates if (found / CONFIG_NAME).is_file() and _has_weights(found)), None)


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS_NAME).exists() or next(folder.glob("*.safetensors.index.json"), None) is not None


def check_continued(wanted: Lora | VirtualTokens, adapter: AdapterFolder, where: str) -> None:
    """Refuse to go on training an adapter with other settings than its own.

    Args:
        where: what to name in a refusal.
    Raises:
        RecipeError: naming what differs.
    """
    theirs, ours = _shape(adapter.peft), _shape(wanted)
    names = [name for name in theirs if ours.get(name) != theirs[name]]
    if not names:
        return
    if wanted.method != adapter.peft.method:
        names = ["method"]  # the other settings of two methods cannot be compared
    differing = "; ".join(f"{name} is {ours[name]}, the adapter's {theirs[name]}" for name in names)
    instead = (
        "leave peft out: the adapter is then merged and the whole model trained"
        if adapter.can_merge
        else f"start from its base model ({adapter.base})"
    )
    raise RecipeError(
        f"{where}: peft: the model is an adapter already ({adapter.peft.method}), which is trained further, but {differing}",
        hint=f"Give the same peft settings, or {instead}.",
    )


def _shape(peft: Lora | VirtualTokens) -> dict[str, Any]:
    """The settings that decide the adapter's tensors and what they mean."""
    # alpha acts only through alpha / rank, and may be left out of a recipe.
    settings = peft.model_dump(mode="json", exclude={"alpha"})
    return settings | ({"scaling": peft.scaling} if isinstance(peft, Lora) else {})
