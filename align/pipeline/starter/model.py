"""Looks at the model that a user names: a folder, or a model of the hub of which the cache may have a copy."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.config.architecture import CONFIG_NAME
from align.config.inputs import MANIFEST_NAME
from align.errors import EnvironmentProblem, RecipeError
from align.models.files import TOKENIZER_CONFIG_NAME, read_json_object
from align.models.folder import ModelFolder
from align.models.hub import fetch_model
from align.models.shape import ModelShape, read_shape
from align.pipeline.estimate.table import count_text
from align.store.artifact import MODEL_FOLDER

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = "main"
TEMPLATE = "chatml"
"""Of a base model that has none: its tokens are in most vocabularies, and are added where they are not."""
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class FoundModel:
    """A model and what its files say. Of a model of the hub that is not here they say nothing."""

    written: str
    """Folder or hub id, as the user wrote it."""
    folder: Path | None
    """Its files; None for a model of the hub that is not in the cache."""
    hub_id: str | None
    shape: ModelShape | None
    """None where it cannot be told from the files."""
    needs_template: bool
    """Whether it is a base model without a chat template."""
    encoder_decoder: str | None
    """The architecture of an encoder–decoder model."""
    is_reward_model: bool
    context_tokens: int | None
    """None where it is not known."""
    is_result: bool = False
    """Whether its folder is what a stage made, whose model is in a folder of its own."""

    @property
    def summary(self) -> str:
        """`Qwen/Qwen3-0.6B: 596 M parameters, with a chat template`."""
        if self.folder is None:
            return f"{self.written}: on the hub; not here yet, so its size and template are unknown"
        size = "of a size that its files do not tell" if self.shape is None else f"{count_text(self.shape.parameters)} parameters"
        if self.encoder_decoder or self.is_reward_model:
            return f"{self.written}: {size}"
        return (
            f"{self.written}: {size}, {'a base model without a chat template' if self.needs_template else 'with a chat template'}"
        )


def look_at_model(written: str, *, fetch: bool = False) -> FoundModel:
    """Say what is known of a model without reading a weight.

    Args:
        written: a folder, or a hub id (owner/name).
        fetch: whether the configuration of a model that is not here may be fetched from the hub; never its weights.
    Raises:
        RecipeError: if there is no such folder, or it holds no model that can be used.
        EnvironmentProblem: if a file of it is damaged, or it cannot be fetched.
    """
    path = Path(written).expanduser()
    if path.is_dir():
        is_result = (path / MANIFEST_NAME).is_file()
        found = _in_folder(written, path / MODEL_FOLDER if is_result else path, None)
        return replace(found, is_result=is_result)
    if path.exists() or not HUB_ID.fullmatch(written) or Path(written).parent.is_dir():
        raise RecipeError(
            f"model {written}: there is no such folder" + ("" if not path.exists() else "; it is a file"),
            hint="Give a folder with a config.json, or a hub id, which is owner/name, such as Qwen/Qwen3-0.6B.",
        )
    if fetch:
        return _in_folder(written, fetch_model(written, REVISION, weights=False)[0], written)
    cached = _cached(written)
    return (
        FoundModel(written, None, written, None, False, None, False, None)
        if cached is None
        else _in_folder(written, cached, written)
    )


def look_at_reward_model(option: str, written: str) -> FoundModel:
    """What `look_at_model` says of a model that is to score answers.

    Args:
        option: what named it.
    Raises:
        RecipeError: also if its files say that it is a language model.
    """
    found = look_at_model(written)
    if found.folder is not None and not found.is_reward_model and not ModelFolder(found.folder).can_score:
        raise RecipeError(
            f"{option} {written}: a language model, which gives no scores; expected a reward model",
            hint="With preference pairs, leave the option out: a reward model is trained on them.",
        )
    return found


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, CONFIG_NAME, revision=REVISION)
    return Path(found).parent if isinstance(found, str) else None


def _in_folder(written: str, path: Path, hub_id: str | None) -> FoundModel:
    folder = ModelFolder(path)
    if not folder.is_configuration_alone and hub_id is None:
        folder.check()
    return FoundModel(
        written,
        path,
        hub_id,
        read_shape(folder),
        needs_template=not (folder.encoder_decoder or folder.is_reward_model or _has_template(path)),
        encoder_decoder=folder.encoder_decoder,
        is_reward_model=folder.is_reward_model,
        context_tokens=folder.context_tokens,
    )


def _has_template(path: Path) -> bool:
    if any((path / name).is_file() for name in TEMPLATE_FILES):
        return True
    try:
        settings: dict[str, Any] = read_json_object(path, TOKENIZER_CONFIG_NAME)
    except (EnvironmentProblem, OSError):
        return False
    return bool(settings.get("chat_template"))
