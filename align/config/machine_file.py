"""Where the settings of a machine come from: an option, an environment variable, or the file beside a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from align.config.explain import problems_of, show_value
from align.config.machine import MACHINE_NAME, MACHINE_VARIABLE, MachineSettings
from align.config.names import Place, listing, show_path
from align.config.shape import is_model, members
from align.config.source import Document, Position, read_document
from align.errors import RecipeError, several

OPTION = "--machine"


@dataclass(frozen=True)
class MachineFile:
    """Settings of a machine, and where they are written."""

    settings: MachineSettings = field(default_factory=MachineSettings)
    source: str = ""
    """The file, or what else they were read from; empty: the defaults."""
    document: Document | None = field(default=None, repr=False, compare=False)

    def where(self, *path: str) -> str:
        """`machine.yaml:2:12: training.processes`, for messages; without a place where the file does not have the key."""
        is_written = self.document is not None and path in self.document.values
        place = f"{self.document.value_position(path)}: " if self.document is not None and is_written else ""
        return f"{place}{show_path(path)}"


MachineChoice = MachineFile | Path | str | Mapping[str, Any] | None
"""What a caller may give: a file or its folder, settings as a mapping, or nothing."""


def read_machine_settings(option: MachineChoice, recipe_folder: Path, environment: Mapping[str, str]) -> MachineFile:
    """The settings that hold for a run: those given, or else of ALIGN_MACHINE, or of the recipe's folder, or the defaults.

    Args:
        option: of `--machine`, or given in Python; None: not given.
        recipe_folder: where a `machine.yaml` is looked for.
        environment: of the process.
    Raises:
        RecipeError: with every mistake in the file, and where it is; or if a file that is named does not exist.
    """
    if isinstance(option, MachineFile):
        return option
    if isinstance(option, Mapping):
        return _checked(Document(dict(option), values={(): Position(0, 0, 0, "machine")}), "machine")
    if option is not None:
        return _read(Path(option).expanduser(), f"{OPTION} {option}")
    if named := environment.get(MACHINE_VARIABLE):
        return _read(Path(named).expanduser(), f"{MACHINE_VARIABLE}={named}")
    beside = recipe_folder / MACHINE_NAME
    return _read(beside, str(beside)) if beside.exists() and not beside.is_dir() else MachineFile()


def _read(path: Path, named: str) -> MachineFile:
    file = path / MACHINE_NAME if path.is_dir() else path
    if not file.exists():
        missing = "there is no such file" if file == path else f"there is no {MACHINE_NAME} in this folder"
        raise RecipeError(f"{named}: {missing}", hint="`align docs scale` says what a machine file is.")
    return _checked(read_document(file), str(file))


def _checked(document: Document, source: str) -> MachineFile:
    value = {} if document.value is None else document.value  # an empty file leaves everything to the defaults
    if not isinstance(value, dict):
        raise RecipeError(
            f"{document.value_position(())}: expected a mapping, got {show_value(value)}",
            hint=f"A machine file has the keys {listing(MachineSettings.model_fields)}.",
        )
    try:
        return MachineFile(MachineSettings.model_validate(value), source, document)
    except ValidationError as error:
        lines = []
        for problem in problems_of(error, MachineSettings, value, Place(elsewhere=_sections)):
            find = document.key_position if problem.at_key else document.value_position
            lines.append((find(problem.path), f"{show_path(problem.path)}: {problem.text}"))
        raise RecipeError(several([f"{place}: {text}" for place, text in sorted(lines)], f"problems in {source}")) from error


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: part for name, info in MachineSettings.model_fields.items() for part in members(info.annotation) if is_model(part)
    }
