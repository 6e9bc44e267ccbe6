"""Groups of fields that several stages share. A default lives here once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from align.config.base import ExecutionOnly, Problem, StrictModel, execution_paths
from align.config.judge import Judge
from align.config.names import MISSPELT, nearest
from align.config.reference import RewardModelReference, RowsReference
from align.config.rules import RuleSet
from align.records import ScoredCandidate

OnInvalid = Literal["error", "drop"]
EngineName = Literal["auto", "vllm", "transformers"]
Dtype = Literal["auto", "float32", "bfloat16"]
SaveDtype = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"]
DpoVariant = Literal["sigmoid", "hinge", "ipo", "sigmoid_norm", "robust", "apo_zero", "apo_down", "sppo_hard"]


class RulesScorer(StrictModel):
    """A scorer made of declarative rules."""

    rules: RuleSet
    """A list of rules, or the path of a YAML file (relative to the recipe) that holds one under `rules:`."""

    @model_validator(mode="before")
    @classmethod
    def _another_scorer(cls, value: Any) -> Any:
        known = ("rules", "ensemble", "judge")
        if isinstance(value, dict) and not any(nearest(str(key), known, likeness=MISSPELT) for key in value):
            raise ValueError(
                "a scorer is the name of a reward model (of a reward_model stage, or of an input of kind reward_model), "
                "{rules: …} or {ensemble: […]}; in a score stage also {judge: …}"
            )
        return value

    @field_validator("rules", mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        # A recipe gives the list itself; a file has it under `rules:`.
        return {"rules": value} if isinstance(value, list) else value


class EnsembleScorer(StrictModel):
    """A scorer made of several reward models."""

    ensemble: list[RewardModelReference] = Field(min_length=2)
    """The reward models, such as the copies of one stage with several seeds. All of them are in memory at the same time."""
    combine: Literal["mean", "min", "mean_minus_std"] = "mean"
    """Their mean, the least of their scores, or the mean minus `std_weight` standard deviations."""
    std_weight: float | None = Field(default=None, gt=0)
    """With mean_minus_std. Default: 1."""

    @property
    def deviation_weight(self) -> float:
        """How many standard deviations are subtracted from the mean."""
        return (1.0 if self.std_weight is None else self.std_weight) if self.combine == "mean_minus_std" else 0.0

    @model_validator(mode="after")
    def _options_fit(self) -> EnsembleScorer:
        if len(set(self.ensemble)) < len(self.ensemble):
            raise ValueError(f"ensemble must name different reward models, not {', '.join(self.ensemble)}")
        if self.std_weight is not None and self.combine != "mean_minus_std":
            raise ValueError(f"std_weight goes with combine mean_minus_std only, not with {self.combine}")
        return self


class JudgeScorer(StrictModel):
    """A scorer that is a judge at an OpenAI-compatible endpoint."""

    judge: Judge
    """The judge, or the path of a YAML file (relative to the recipe) with its fields."""


def _is_judge(value: Any) -> bool:
    return isinstance(value, JudgeScorer) or (isinstance(value, dict) and "judge" in value)


def _scorer_tag(value: Any) -> str:
    """The scorer that a value is meant for. Tags are in braces, because errors name them in paths and no key has braces."""
    if _is_judge(value):
        return "{judge}"
    if isinstance(value, EnsembleScorer) or (isinstance(value, dict) and "ensemble" in value):
        return "{ensemble}"
    return "{rules}" if isinstance(value, RulesScorer | dict) else "{name}"


def _refuse_judge(value: Any) -> Any:
    if _is_judge(value):
        raise ValueError(
            "a judge compares the candidates of one prompt and scores none alone, so it serves the score stage only; "
            "name a reward model or rules here"
        )
    return value


Scorer = Annotated[
    Annotated[RewardModelReference, Tag("{name}")]
    | Annotated[RulesScorer, Tag("{rules}")]
    | Annotated[EnsembleScorer, Tag("{ensemble}")]
    | Annotated[JudgeScorer, Tag("{judge}")],
    Discriminator(_scorer_tag),
]
"""What gives candidates their scores."""
PointwiseScorer = Annotated[
    Annotated[RewardModelReference, Tag("{name}")]
    | Annotated[RulesScorer, Tag("{rules}")]
    | Annotated[EnsembleScorer, Tag("{ensemble}")],
    Discriminator(_scorer_tag),
    BeforeValidator(_refuse_judge),
]
"""A scorer that scores a completion whatever the other candidates are."""


def says_right_or_wrong(scorer: Any) -> bool:
    """Whether a scorer is made of rules, which a completion passes or fails. It may be as a recipe writes it."""
    return isinstance(scorer, RulesScorer) or (isinstance(scorer, dict) and "rules" in scorer)


def reward_models_of(scorer: Any) -> list[RewardModelReference]:
    """The reward models that a scorer needs."""
    if isinstance(scorer, EnsembleScorer):
        return scorer.ensemble
    return [scorer] if isinstance(scorer, str) else []  # type: ignore[list-item]


class ScoredInput(StrictModel):
    """Candidates to select from, and how many processes do it."""

    scored: RowsReference[ScoredCandidate]
    """Scored candidates."""
    # Not `num_workers`: `align pairs` has both options, and those workers sample, each with an engine of its own.
    num_processes: ExecutionOnly[int | None] = Field(default=None, ge=1)
    """Most processes that select at the same time. Default: one per core."""


class SavedWeights(StrictModel):
    """How the trained model is stored."""

    save_dtype: SaveDtype = "auto"
    """Dtype of the saved weights; an adapter is always float32. auto: bfloat16 if the model to start from is stored in bfloat16,
    else float32. Training itself uses float32."""


class TrainingMemory(StrictModel):
    """What a training keeps in memory besides weights and gradients."""

    optimizer: OptimizerName = "adamw"
    """adamw keeps 8 bytes a weight; adamw_8bit 2; paged_adamw_8bit 2, which move to the computer's memory when the GPU's is full;
    adafactor next to nothing, and has no momentum. The 8-bit ones need bitsandbytes."""
    gradient_checkpointing: ExecutionOnly[Literal["auto"] | bool] = "auto"
    """Compute each layer a second time in the backward pass instead of keeping what it needs: a third slower, the same result.
    auto: where the training would not fit into memory without it."""


class Optimization(SavedWeights, TrainingMemory):
    """How weights are updated."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after warm-up; cosine and linear end at zero."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, decoupled from the gradient as in AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the data."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences (or pairs) per optimizer step, over all accumulation steps."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Sequences (or pairs) per forward pass; batch_size must be a multiple. auto: batch_size, or the largest part of it that fits
    into memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and backward; weights and optimizer stay in float32. auto: bfloat16 if a GPU has it, else float32."""
    checkpoint_minutes: ExecutionOnly[float] = Field(default=10.0, gt=0)
    """Minutes between checkpoints to resume from. A stop writes one at once."""
    checkpoint_steps: ExecutionOnly[int | None] = Field(default=None, ge=1)
    """Also write a checkpoint after this many optimizer steps. Default: by time only."""

    @property
    def rows_per_pass(self) -> int:
        """Sequences (or pairs) per forward pass; batch_size where that is left to the machine."""
        return self.batch_size if self.micro_batch_size == "auto" else self.micro_batch_size

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        whole, part = (fields.get(name, cls.model_fields[name].default) for name in ("batch_size", "micro_batch_size"))
        # `type`, because true is an int too.
        if type(whole) is type(part) is int and whole > 0 and part > 0 and whole % part:
            field = "micro_batch_size" if "micro_batch_size" in fields else "batch_size"
            yield Problem((field,), f"batch_size ({whole}) must be a multiple of micro_batch_size ({part})")


class FineTuning(Optimization):
    """How weights are updated from instructions, and which models of a training are kept."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of every layer that has one, while training; the saved model keeps its own. With LoRA, of its input too."""
    keep_epochs: Literal["all", "none"] = "all"
    """The model after each epoch, from which select_checkpoint chooses; none keeps the trained model only."""


class Sampling(StrictModel):
    """How text is sampled."""

    temperature: float = Field(default=1.0, ge=0)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens whose probability reaches this."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep only this many most likely tokens."""
    max_completion_tokens: int = Field(default=256, ge=1)
    """A completion is cut here (finish_reason length)."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """A longer prompt is an error, or a counted drop."""


class EngineChoice(StrictModel):
    """Which engine samples."""

    engine: EngineName = "auto"
    """vllm, transformers, or auto: vLLM where it is installed. The manifest names the one really used."""
    dtype: Dtype = "auto"
    """Arithmetic of the engine. auto: bfloat16 if a GPU has it, else float32."""


class GenerationEngine(EngineChoice):
    """Which engine samples, and how its work is cut."""

    shard_prompts: int = Field(default=512, ge=1)
    """Prompts per shard; a shard is the unit that an interruption repeats."""
    num_workers: ExecutionOnly[int] = Field(default=1, ge=1)
    """Processes that share the shards, each with an engine of its own."""


class Generation(Sampling, GenerationEngine):
    """Everything that decides which completions prompts get."""

    num_candidates: int = Field(default=8, ge=1)
    """Completions per prompt."""
    on_invalid: OnInvalid = "error"
    """What to do with a prompt that is too long."""

    def text_settings(self) -> dict[str, Any]:
        """The fields of this class that decide a text, given which engine samples and the prompts that fit, as JSON."""
        given = {"engine", "dtype", "max_prompt_tokens", "on_invalid"}
        outside = {path[0] for path in execution_paths(self) if len(path) == 1} | given
        return {name: getattr(self, name) for name in Generation.model_fields if name not in outside}


class PairwiseOptimization(Optimization):
    """How weights are updated from pairs, and which pairs can be used."""

    max_tokens: int = Field(default=1024, ge=8)
    """Most tokens of prompt and completion together. A longer row, or one beyond the model's context, is an error or a drop."""
    on_invalid: OnInvalid = "error"
    """What to do with a pair that is too long."""
