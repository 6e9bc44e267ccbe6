"""The inputs of a recipe: models and data, on disk or on a hub."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from align.config.base import StrictModel
from align.config.sections import OnInvalid

ModelKind = Literal["model", "reward_model"]
DataKind = Literal["instructions", "preferences", "prompts", "text"]
ArtifactKind = Literal[
    "model", "reward_model", "instructions", "preferences", "prompts", "text", "candidates", "scored_candidates", "comparison"
]

ADAPTER_KINDS = {"model": "adapter", "reward_model": "reward_adapter"}
"""What an adapter's manifest says, by the kind that a recipe takes it for: it is used as a whole model is."""


class ModelInput(StrictModel):
    """A model: a local folder, or a hub id with a revision."""

    kind: ModelKind
    """What the folder holds."""
    path: str | None = None
    """Local folder, relative to the recipe."""
    hub_id: str | None = None
    """Repository on the hub; fetched once and pinned by commit hash."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelInput:
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("give either path or hub_id")
        if (self.hub_id is None) != (self.revision is None):
            raise ValueError("hub_id and revision go together (revision: main, a tag or a commit)")
        return self


class DataInput(StrictModel):
    """Rows: a local file, or a hub dataset with a split."""

    kind: DataKind
    """What a row holds."""
    path: str | None = None
    """Local file, relative to the recipe: .jsonl, .json, .csv, .tsv or .txt, optionally .gz."""
    dataset: str | None = None
    """Dataset id on the hub."""
    split: str | None = None
    """Split of the hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of the hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field of ours → column of the file, where the names differ: {prompt: Q, completion: A}."""
    on_invalid: OnInvalid = "error"
    """What to do with a row that cannot be used: stop and name it, or drop and count it."""
    max_characters: int = Field(default=100_000, ge=1)
    """A longer text in a row is invalid."""

    @model_validator(mode="after")
    def _one_source(self) -> DataInput:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        if (self.dataset is None) != (self.split is None):
            raise ValueError("dataset and split go together")
        return self


class ArtifactInput(StrictModel):
    """What a stage of another run made."""

    kind: ArtifactKind
    """What the folder holds."""
    artifact: str = Field(min_length=1)
    """Folder with a manifest.json that align wrote, relative to the recipe: runs/<recipe>/stages/<stage>."""


InputSpec = Annotated[ModelInput | DataInput | ArtifactInput, Field(union_mode="smart")]
