"""Contexts, inputs and rows for tests. A test sets only the fields that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from align.data.encoding import EncodedPreference
from align.records import Candidate, Message, ScoredCandidate
from align.runtime.context import RunContext
from align.stage import StageConfig, StageContext
from align.store.artifact import INPUT_STAGE, Artifact, Manifest
from align.training.pairwise.objective import PairwiseConfig

C = TypeVar("C", bound=StageConfig)


def run_context(work: Path = Path("work"), **fields: Any) -> RunContext:
    """What a trainer or sampler gets, with seed 3; `fields` replace any field. The folder `work` is not created."""
    values: dict[str, Any] = {"name": "test", "work": work, "seed": 3}
    return RunContext(**values | fields)


def stage_context(config: C, output: Path, artifacts: Mapping[str, Artifact], **fields: Any) -> StageContext[C]:
    """What a stage gets that runs in the test's process, with seed 1; `fields` replace any field.

    Args:
        output: the stage's store entry, in the folder of all entries. Created, with its work folder.
    """
    values: dict[str, Any] = {"name": "test", "work": output / "work", "seed": 1, "store_root": output.parent}
    context = StageContext(config=config, artifacts=artifacts, output=output, **values | fields)
    for folder in (output, context.work):
        folder.mkdir(parents=True, exist_ok=True)
    return context


def input_artifact(name: str, path: Path, kind: str, *, fingerprint: str | None = None) -> Artifact:
    """The artifact that a stage gets for the recipe's input `name`; its fingerprint is the name unless given."""
    manifest = Manifest(
        kind=kind,
        stage=INPUT_STAGE,
        stage_version=1,
        fingerprint=fingerprint or name,
        config={},
        inputs={},
        seed=None,
        source=f"{name}.x",
    )
    return Artifact(name, path, manifest)


def candidate(
    completion: str = "a", index: int = 0, *, prompt_id: str = "p", prompt: str | list[Message] = "x", **fields: Any
) -> Candidate:
    """A candidate of the user message `prompt`, with a token and an end; `fields` replace any field of the record."""
    values: dict[str, Any] = {
        "prompt_id": prompt_id,
        "candidate_index": index,
        "prompt": [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt,
        "reference": None,
        "completion": completion,
        "completion_token_ids": [1, 2],
        "completion_tokens": 2,
        "finish_reason": "stop",
        "seed": 0,
    }
    return Candidate(**values | fields)


def scored_candidate(scores: Mapping[str, float | None], completion: str = "a", index: int = 0, **fields: Any) -> ScoredCandidate:
    """`candidate` with a score by scorer."""
    return ScoredCandidate(**dict(candidate(completion, index, **fields)), scores=dict(scores))


def random_pairs(count: int, *, seed: int, prompt_tokens: int, completion_tokens: int) -> list[EncodedPreference]:
    """Pairs of random tokens below 200: prompts of 1 to `prompt_tokens`, completions up to `completion_tokens` and an end."""
    # Here, so that tests without tensors do not wait for torch.
    import torch

    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        # 0 to 2 are the tiny tokenizer's padding, beginning and end of a turn; below, 2 ends every completion.
        return [int(token) for token in torch.randint(3, 200, (length,), generator=generator)]

    return [
        EncodedPreference(str(i), ids(1, prompt_tokens), [*ids(0, completion_tokens), 2], [*ids(0, completion_tokens), 2])
        for i in range(count)
    ]


def pairwise_config(stage: ModuleType, **settings: Any) -> PairwiseConfig:
    """The Config of a pairwise stage with these settings; the names of its model and its pairs mean nothing."""
    rows = "data" if "data" in stage.Config.model_fields else "pairs"
    config: PairwiseConfig = stage.Config.model_validate({"model": "model", rows: "pairs", **settings})
    return config
