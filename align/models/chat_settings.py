"""What a recipe or an option says of a chat format, with names resolved: the template's text, and the tokens to add."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from align.config.chat import ChatSettings
from align.config.names import nearest
from align.config.paths import advice_on_missing
from align.data.chat_templates import CONTROL_TOKENS, shipped_templates
from align.errors import RecipeError
from align.models.added_tokens import missing_tokens
from align.models.folder import ModelFolder
from align.runtime.plain_file import read_small_file
from align.system_errors import system_problem


def resolve_chat(settings: ChatSettings, folder: ModelFolder, *, locate: Callable[[str], Path], where: str) -> ChatSettings:
    """The settings with the template's text in place of its name, and of its tokens those that the vocabulary lacks.

    Args:
        locate: from a path as it was written to the file.
        where: what to name in a refusal.
    Raises:
        RecipeError: if the template cannot be read, or the model's folder is refused.
    """
    tokens = settings.add_tokens
    if tokens is None:
        tokens = list(CONTROL_TOKENS.get(settings.template or "", ()))
    # A plan can be made with a configuration alone.
    missing = missing_tokens(folder if folder.is_configuration_alone else folder.check(), tokens) or None
    text = None if settings.template is None else _text_of(settings.template, locate, where)
    return settings.model_copy(update={"template": text, "add_tokens": missing})


def _text_of(template: str, locate: Callable[[str], Path], where: str) -> str:
    shipped = shipped_templates()
    file = shipped.get(template) or locate(template)
    names = ", ".join(sorted(shipped))
    if not file.exists():
        near = nearest(template, shipped)
        meant = f"; did you mean '{near}'?" if near else advice_on_missing(template, locate("."))
        raise RecipeError(f"{where}: there is no template or file {template!r}{meant}", hint=f"Name a file, or one of {names}.")
    try:
        return read_small_file(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"Name a file, or one of {names}."
        raise system_problem(error, file) or RecipeError(
            f"{where}: {template}: cannot be read as text ({error})", hint=hint
        ) from error
