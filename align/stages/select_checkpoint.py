"""Keep the epoch whose completions score highest.

Every epoch's checkpoint answers the same validation prompts with the same seeds, a scorer scores the completions, and the epoch
with the highest mean score is kept. InstructGPT chose so (Ouyang et al. 2022, §3.5): the loss on held-out data rose after the
first epoch, while the reward model's score on validation prompts went on rising.
In: a model made by sft, prompts, a scorer, perhaps held-out instructions. Out: a model.
Metrics: the selected epoch, score and loss of every epoch, the epoch of the lowest loss, the difference between the two choices.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.base import Problem
from align.config.checks import manifest_of
from align.config.graph import RecipeGraph
from align.config.inputs import ArtifactInput, ModelInput
from align.config.names import listing
from align.config.reference import ModelReference, RowsReference
from align.data.encoding import encode_instructions
from align.engines.scored import ANSWERS_NAME, SCORE_NAME, ChoiceConfig, answer_and_score, scores_by_prompt
from align.errors import RecipeError, StageError
from align.models.chat_format import load_format
from align.models.folder import ModelFolder, refuse_encoder_decoder
from align.records import Drop, Instruction, Prompt
from align.runtime.profile import phase
from align.runtime.seed import derive_seed
from align.selection.checkpoint import highest_score_epoch, lowest_loss_epoch, scored_everywhere
from align.stage import StageContext, StageOutcome
from align.store.artifact import DROPS_NAME, EPOCHS_NAME, METRICS_NAME, MODEL_FOLDER, SFT_STAGE, Artifact, write_rows
from align.store.atomic import write_bytes
from align.store.seal import read_work, write_work

if TYPE_CHECKING:
    from align.report.statistics import FloatArray

VERSION = 5


class Config(ChoiceConfig):
    """Keep the epoch whose completions score highest."""

    model: ModelReference
    """Model made by an sft stage, which keeps a checkpoint per epoch."""
    data: RowsReference[Instruction] | None = None
    """Held-out instructions on which the loss of every epoch is shown beside its score."""

    @classmethod
    def check_graph(cls, fields: Mapping[str, Any], graph: RecipeGraph) -> Iterator[Problem]:
        model, maker = fields.get("model"), None
        if not isinstance(model, str):
            return
        settings: Mapping[str, Any] = {}
        if model in graph.drafts and graph.drafts[model].stage_type.produces == "model":
            maker, settings = graph.drafts[model].stage_type.name, graph.drafts[model].fields
        elif isinstance(spec := graph.inputs.get(model), ArtifactInput):
            manifest = manifest_of(graph.folder / Path(spec.artifact).expanduser())
            maker, settings = str(manifest.get("stage", SFT_STAGE)), manifest.get("config") or {}
        elif isinstance(spec, ModelInput):
            maker = "no stage"
        if maker not in (None, SFT_STAGE):
            text = f"wants a model made by an sft stage, which keeps a checkpoint per epoch, but '{model}' was made by {maker}"
            made = [name for name, draft in graph.drafts.items() if draft.stage_type.name == SFT_STAGE]
            yield Problem(("model",), text + (f"; name {listing(made)}" if made else ""))
        elif settings.get("keep_epochs") == "none":
            yield Problem(("model",), f"'{model}' keeps no checkpoint per epoch (keep_epochs: none); set keep_epochs: all there")


LOSS_NAME = "eval_loss"


def run(context: StageContext[Config]) -> StageOutcome:
    """Every epoch answers, is scored and gets its loss; the best by score is kept."""
    config = context.config
    source = context.artifact(config.model)
    refuse_encoder_decoder("select_checkpoint", source, ModelFolder.of(source))
    folders = epoch_folders(source)
    if len(folders) == 1:
        context.note("there is one epoch only, and it is kept")
    prompts = context.artifact(config.prompts).rows(Prompt)
    answers = answer_and_score(context, {f"epoch {epoch}": folder for epoch, folder in folders.items()}, prompts, context.work)
    scored = dict(zip(folders, answers.rows.values(), strict=True))
    # Epochs must be compared on the same prompts, so a prompt that one epoch has no score for is left out everywhere.
    scores = scored_everywhere({epoch: scores_by_prompt(rows) for epoch, rows in scored.items()})
    losses, loss_drops = _losses(context, folders)
    if not next(iter(scores.scores.values())):
        raise StageError(
            f"{context.name}: there is no prompt for which every epoch has a finite score",
            hint="Score a few completions with the score stage to see what is wrong with the scorer.",
        )
    choice = _choose(context, scores.scores, losses)
    rows = _curve(choice)
    for row in rows:
        context.metrics(row)
    write_bytes(context.output / METRICS_NAME, "".join(json.dumps(row) + "\n" for row in rows).encode())
    for epoch, of_epoch in scored.items():
        write_rows(context.output / ANSWERS_NAME / f"epoch-{epoch}.jsonl", of_epoch)
    drops = [*answers.drops.values(), *scores.drops, *loss_drops]
    write_rows(context.output / DROPS_NAME, drops)
    context.known_hashes.link_tree(folders[choice["selected_epoch"]].path, context.output / MODEL_FOLDER)
    return StageOutcome(
        metrics={
            **choice,
            "prompt_tokens": answers.prompt_tokens,
            "new_tokens": answers.new_tokens,
            "engine_seconds": round(answers.engine_seconds, 3),
            "scored_completions": sum(map(len, scored.values())),
        },
        rows_in=len(prompts),
        rows_out=len(prompts) - len(answers.drops) - len(scores.drops),
        dropped=dict(Counter(drop.drop_reason for drop in drops)),
        versions={answers.engine: answers.engine_version},
    )


def epoch_folders(artifact: Artifact) -> dict[int, ModelFolder]:
    """Model folder by epoch, from the first, of a result of sft.

    Raises:
        RecipeError: if the artifact is something else, or keeps no epochs.
    """
    found = (re.fullmatch(r"epoch-(\d+)", path.name) for path in (artifact.path / EPOCHS_NAME).glob("epoch-*"))
    numbers = sorted(int(match[1]) for match in found if match)
    if artifact.manifest.stage != SFT_STAGE or not numbers:
        raise RecipeError(
            f"{artifact.name} ({artifact.path}) was made by {artifact.manifest.stage} and keeps no checkpoint per epoch",
            hint="Name an sft stage, or the whole folder of one's result.",
        )
    return {number: ModelFolder(artifact.path / EPOCHS_NAME / f"epoch-{number}") for number in numbers}


@phase("score")
def _losses(context: StageContext[Config], folders: Mapping[int, ModelFolder]) -> tuple[dict[int, float], list[Drop]]:
    """Held-out loss by epoch, in nats per completion token, and the rows that do not fit; nothing where there is no data.

    The mean over all tokens of all completions, as in training.
    """
    from align.scoring.likelihood import LikelihoodModel

    config = context.config
    if config.data is None:
        return {}, []
    # All epochs share a tokenizer and a context, so the rows are encoded once.
    data, first = context.artifact(config.data), next(iter(folders.values()))
    chat_format = load_format(first)
    encoded = encode_instructions(
        data.rows(Instruction), chat_format, max_tokens=first.context_tokens, on_invalid=config.on_invalid, where=data.where
    )
    rows = [(row.prompt_token_ids, row.completion_token_ids) for row in encoded.rows]
    tokens = sum(len(completion) for _, completion in rows)
    losses: dict[int, float] = {}
    for epoch, folder in folders.items():
        path = context.work / f"loss-{epoch}.json"
        if (kept := read_work(path, on_damage=context.note)) is None:
            with closing(LikelihoodModel(folder, batch_tokens=config.batch_tokens)) as model:
                logps = model.completion_logps(rows, report=context.counter(f"loss of epoch {epoch}", "texts"))
            write_work(path, kept := {"loss": -sum(logps) / tokens})
        losses[epoch] = kept["loss"]
    return losses, list(encoded.drops)


def _choose(context: StageContext[Config], scores: Mapping[int, Mapping[str, float]], losses: Mapping[int, float]) -> Any:
    """The choice and the numbers behind it, as they go into the manifest."""
    import numpy as np

    from align.report.statistics import paired_bootstrap

    seed, resamples = derive_seed(context.seed, "bootstrap"), context.config.bootstrap_resamples
    vectors = {epoch: np.array(list(of_epoch.values())) for epoch, of_epoch in scores.items()}

    def interval(values: FloatArray) -> dict[str, Any]:
        return paired_bootstrap(values, seed=seed, resamples=resamples).to_json()

    by_score = highest_score_epoch({epoch: float(vector.mean()) for epoch, vector in vectors.items()})
    of_epochs = {}
    for epoch, vector in vectors.items():
        loss = {LOSS_NAME: losses[epoch]} if losses else {}
        of_epochs[str(epoch)] = {SCORE_NAME: interval(vector), "over_selected": interval(vector - vectors[by_score]), **loss}
    choice: dict[str, Any] = {"selected_epoch": by_score, "prompts": len(vectors[by_score]), "epochs": of_epochs}
    if losses:
        choice["epoch_of_lowest_loss"] = by_loss = lowest_loss_epoch(losses)
        choice["score_over_lowest_loss"] = interval(vectors[by_score] - vectors[by_loss])
    return choice


def _curve(choice: Mapping[str, Any]) -> list[dict[str, float]]:
    """Score and loss by epoch, in the form of a training log."""
    rows = []
    for epoch, numbers in choice["epochs"].items():
        row = {"step": int(epoch), "epoch": int(epoch), SCORE_NAME: numbers[SCORE_NAME]["mean"]}
        if LOSS_NAME in numbers:
            row[LOSS_NAME] = numbers[LOSS_NAME]
        rows.append(row)
    return rows
