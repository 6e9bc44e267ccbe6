"""The model that a command gets: a finished stage's folder, or any model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.config.architecture import CONFIG_NAME
from align.config.inputs import MANIFEST_NAME
from align.config.names import unknown
from align.config.peft import VirtualTokens
from align.errors import EnvironmentProblem, RecipeError
from align.models.adapter import find_base, read_record
from align.models.folder import ModelFolder
from align.store.artifact import MODEL_FOLDER, Artifact, Entry

STAGES_NAME = "stages"
Purpose = Literal["language", "reward"]
KINDS: dict[str, Purpose] = {
    "model": "language",
    "adapter": "language",
    "reward_model": "reward",
    "reward_adapter": "reward",
}
"""What a model is for, by the kind of its artifact."""
_GIVE = "Give the folder of a finished stage, runs/<recipe>/stages/<stage>, or a model's own folder with config.json."


@dataclass(frozen=True)
class ModelSource:
    """A model for export, serve, chat or doctor."""

    name: str
    """What its recipe calls it, else the folder's name."""
    folder: ModelFolder
    """Configuration, weights (or an adapter's) and tokenizer."""
    artifact: Artifact | None
    """The stage's result, if align made it."""
    run: Path | None
    """The run it is part of, where that is known."""

    @property
    def purpose(self) -> Purpose:
        if self.artifact is not None:
            return KINDS[self.artifact.kind]
        return "reward" if self.folder.is_reward_model else "language"

    def require(self, purpose: Purpose, why: str) -> None:
        """Refuse a model that has another purpose; `why` says what the command would do with it, for the message."""
        if self.purpose != purpose:
            raise RecipeError(
                f"{self.folder.path}: a {self.purpose} model; to {why}, a {purpose} model is needed",
                hint="A reward model gives a score and no text. Give the model that was trained with its help.",
            )

    def require_mergeable(self, why: str) -> None:
        """Refuse adapters that cannot be merged into weights, and those without their base; `why` is as for `require`."""
        self.folder.base.check()
        if isinstance(peft := self.folder.peft, VirtualTokens):
            raise RecipeError(
                f"{self.folder.path}: {peft.method} puts trained vectors in front of the prompt; they cannot be merged into "
                f"the weights, which is needed to {why}",
                hint="`align chat` and the stages use such an adapter as it is.",
            )


def open_source(given: Path) -> ModelSource:
    """The decoder-only model that `given` is; see `find_source`.

    Raises:
        RecipeError: as `find_source`, or if it is an encoder-decoder model.
        EnvironmentProblem: as `find_source`.
    """
    source = find_source(given, read=True)
    if architecture := source.folder.encoder_decoder:
        raise RecipeError(
            f"{source.folder.path}: an encoder–decoder model ({architecture}); export, serve and chat are for decoder-only ones",
            hint="The folder is a whole Hugging Face model already: AutoModelForSeq2SeqLM loads it.",
        )
    return source


def find_source(given: Path, *, read: bool = False) -> ModelSource:
    """Find out what `given` is, from its files alone; nothing is loaded.

    Args:
        given: a stage's folder (or the link to it in a run), the `model` folder in it, or a model folder from elsewhere.
        read: its model will be loaded: the files are read and compared with their hashes now, whatever is remembered of them.
    Raises:
        RecipeError: if there is no such folder, or it holds no model.
        EnvironmentProblem: if the stage's result is damaged.
    """
    if not given.is_dir():
        raise RecipeError(f"{given}: {_not_a_folder(given)}", hint=_GIVE)
    entry_path = given.parent if given.name == MODEL_FOLDER and (given.parent / MANIFEST_NAME).exists() else given
    if (entry_path / MANIFEST_NAME).exists():
        return _from_artifact(entry_path, read=read)
    if (given / CONFIG_NAME).exists():
        if read:
            _verify_around(given.resolve())
        return ModelSource(given.resolve().name, ModelFolder(given), None, None)
    raise RecipeError(f"{given}: {_not_a_model(given)}", hint=_GIVE)


def runs_of(entry_path: Path) -> list[tuple[Path, str]]:
    """The runs that link to an entry of a store, and what each calls it."""
    # The folder that holds .store: itself the run of `align stage`, or the parent of all runs of recipes.
    root = entry_path.resolve().parent.parent
    links = sorted([*root.glob(f"{STAGES_NAME}/*"), *root.glob(f"*/{STAGES_NAME}/*")])
    return [(link.parent.parent, link.name) for link in links if link.is_symlink() and link.resolve() == entry_path.resolve()]


def _from_artifact(entry_path: Path, *, read: bool) -> ModelSource:
    entry = Entry.given(entry_path)
    manifest = entry.read_manifest()
    if read:
        _verify(entry, MODEL_FOLDER, entry_path)
    elif (found := entry.check(entry.known_hashes))[0] != "done":
        raise _damaged(entry_path, found[1])
    if manifest is None:
        raise _damaged(entry_path, "")
    if manifest.kind not in KINDS:
        raise RecipeError(f"{entry_path}: holds {manifest.kind}, not a model", hint=_GIVE)
    known_as = runs_of(entry.path)
    here = entry_path.absolute()
    # Runs share results under different names, so the name by which the user called it goes first.
    linked = [(here.parent.parent, here.name)] if here.parent.name == STAGES_NAME else known_as[:1]
    run, name = linked[0] if linked else (None, manifest.stage)
    artifact = Artifact(name, entry.path, manifest)
    folder = ModelFolder.of(artifact)
    if read and folder.is_adapter:
        find_base(folder.path, read_record(folder.path), read=True)
    return ModelSource(name, folder, artifact, run)


def _verify(entry: Entry, folder: str, shown: Path) -> None:
    """Read what an entry has in one of its folders, and refuse a damaged entry."""
    state, problem = entry.verify(lambda name: name.startswith(f"{folder}/"))
    if state != "done":
        raise _damaged(shown, problem)


def _verify_around(model: Path) -> None:
    """The same for a model's folder somewhere inside an entry, as that of an epoch."""
    for outer in list(model.parents)[:2]:
        if (outer / MANIFEST_NAME).exists():
            _verify(Entry.given(outer), model.relative_to(outer).as_posix(), model)


def _damaged(shown: Path, problem: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{shown}: {problem or 'is not finished'}", hint="Run the recipe that makes it again; it repairs what is damaged."
    )


def _not_a_folder(given: Path) -> str:
    if given.exists():
        return "is a file, not a folder"
    if given.parent.name == STAGES_NAME and given.parent.is_dir():
        return unknown(given.name, sorted(path.name for path in given.parent.iterdir()), what="stage")
    return "there is no such folder"


def _not_a_model(given: Path) -> str:
    stages = given / STAGES_NAME
    if not stages.is_dir():
        return "holds no model"
    entries = [Entry(path) for path in sorted(stages.iterdir())]
    models = [e.path.name for e in entries if (manifest := e.read_manifest()) is not None and manifest.kind in KINDS]
    return f"is a run; its models are in {STAGES_NAME}/: {', '.join(models) or 'none yet'}"
