"""Settings of methods that learn from their own new completions. A default stands here once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from align.config.base import ExecutionOnly, Problem, StrictModel
from align.config.sections import SavedWeights, TrainingMemory

RatioLevel = Literal["token", "sequence"]
LossAggregation = Literal["tokens", "sequences", "constant"]


class Rollouts(StrictModel):
    """How many completions are sampled, and in batches of what size."""

    num_episodes: int | None = Field(default=None, ge=1)
    """Completions to learn from in all; rounded up to whole rollout batches. Default: one per prompt."""
    rollout_batch_size: int = Field(default=256, ge=1)
    """Completions sampled with one state of the policy."""
    rollouts_ahead: int = Field(default=0, ge=0, le=1)
    """Rollout batches that are sampled ahead. 1: while the models learn from a batch, the next one is sampled with the weights
    from before; importance weights correct for their age. 0: sampling and learning take turns."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of sampling; the trainer's logits are divided by it as well."""
    max_completion_tokens: int = Field(default=256, ge=1)
    """A completion is cut here."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """A longer prompt is an error, or a counted drop."""


class Rewards(StrictModel):
    """From scores to the reward of every token."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty per token; if it adapts, the first value. 0: nothing keeps the policy near the reference."""
    kl_target: float | None = Field(default=None, gt=0)
    """Adapt kl_coef so that the KL per completion (nats) comes near this (Ziegler et al. 2019: 6). Default: kl_coef is fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Episodes over which an adapting kl_coef may change by at most a factor of 1.2 or so."""
    kl_limit: float | None = Field(default=None, gt=0)
    """Stop when the KL per completion (nats) exceeds this, and keep the policy from before."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Subtracted from the score of a completion that was cut at the token limit."""
    missing_eos_score: float | None = None
    """Score of a completion that was cut, in place of its own and of the penalty."""


class OnlineOptimization(SavedWeights, TrainingMemory):
    """How the policy is updated between two rollouts."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the policy."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the decay over all updates; linear and cosine end at zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, decoupled from the gradient as in AdamW."""
    adam_epsilon: float = Field(default=1e-5, gt=0)
    """AdamW epsilon; PPO needs a larger one than usual. adafactor has none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of each model are scaled down to this global norm."""
    ppo_epochs: int = Field(default=4, ge=1)
    """Passes over each rollout batch."""
    mini_batch_size: int = Field(default=64, ge=1)
    """Completions per optimizer step."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward pass; gradients are summed, so the result depends on it by rounding only."""


class PolicyMoves(StrictModel):
    """How far the policy may move from the one that sampled, while it learns from one rollout batch."""

    cliprange: float = Field(default=0.2, gt=0)
    """How far a token's probability ratio may move before its gradient stops."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound on the loss of tokens with a negative advantage and a large ratio (Ye et al. 2020 use 3). Default: no bound."""
    importance_limit: float = Field(default=2.0, ge=1)
    """Weights for the gap between the sampler's and the trainer's log-probabilities are truncated here."""
    update_kl_limit: float | None = Field(default=None, gt=0)
    """End the passes over a rollout batch when the policy has moved this far (approximate KL per token, nats) in it."""


class OnlineExecution(StrictModel):
    """How updates are computed, and when they are kept."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and backward; weights and optimizer stay in float32. auto: bfloat16 if a GPU has it, else float32."""
    checkpoint_minutes: ExecutionOnly[float] = Field(default=10.0, gt=0)
    """Minutes between checkpoints to resume from. A stop writes one at once."""
    checkpoint_steps: ExecutionOnly[int | None] = Field(default=None, ge=1)
    """Also write a checkpoint after this many rollout batches. Default: by time only."""
    check_weights: ExecutionOnly[bool] = False
    """Compare checksums of the engine's weights with the policy's before every rollout batch; a difference ends the stage."""


@dataclass(frozen=True)
class Surrogate:
    """How the clipped losses of tokens are computed, and how they add up to that of a mini-batch."""

    clip_low: float
    clip_high: float
    level: RatioLevel = "token"
    aggregation: LossAggregation = "tokens"
    """tokens: mean over all completion tokens. sequences: mean over completions of the mean over their tokens. constant: sum over
    all completion tokens, divided by completions times max_completion_tokens."""
    kl_in_loss: bool = False
    """Whether the KL penalty is a term of the loss and not of the reward."""


class OnlineTraining(Rollouts, OnlineExecution, OnlineOptimization):
    """What decides the numbers of every method that learns from its own completions, beyond models and prompts."""

    @property
    def reward_settings(self) -> RewardTraining | None:
        """How rewards become updates; None for methods that need none."""
        return self if isinstance(self, RewardTraining) else None

    @property
    def value_settings(self) -> ValueOptimization | None:
        """How the value model learns; None for methods that have none."""
        return self if isinstance(self, ValueOptimization) else None

    @property
    def group_settings(self) -> GroupTraining | None:
        """What is special in training on groups; None for methods that have a value model."""
        return self if isinstance(self, GroupTraining) else None


class RewardTraining(OnlineTraining, Rewards, OnlineExecution, PolicyMoves, OnlineOptimization):
    """What decides the numbers of every method that learns from scores, beyond models, prompts, scorers and advantages."""

    # The order of bases is that of the settings, which is a part of every fingerprint.

    @property
    def surrogate(self) -> Surrogate:
        return Surrogate(self.cliprange, self.cliprange)

    @property
    def needs_reference(self) -> bool:
        """Whether the KL to the reference is measured."""
        return True


class DistillTraining(OnlineTraining):
    """Settings of learning from a teacher's probabilities (Agarwal et al. 2024). The defaults are those of TRL's trainer."""

    beta: float = Field(default=1.0, ge=0, le=1)
    """Which divergence from the teacher is lowered. 1: reverse KL, where the student keeps to what the teacher finds likely. 0:
    forward KL, where it covers all that the teacher may say. Between them: generalised Jensen-Shannon."""
    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of the student."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW epsilon. adafactor has none."""


class ValueOptimization(StrictModel):
    """How a value model starts and learns, for methods that have one."""

    center_scores: bool = True
    """Subtract the mean score of the reference's completions, measured on the first rollout batch."""
    value_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the value model. Default: learning_rate."""
    cliprange_value: float = Field(default=0.2, gt=0)
    """How far a value may move from its old one before its gradient stops."""
    vf_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    critic_warmup_batches: int = Field(default=0, ge=0)
    """First rollout batches that train the value model only."""
    value_head: Literal["reward_model", "zero"] = "reward_model"
    """Head that the value model starts with: the reward model's, or zeros."""


class GroupTraining(RewardTraining):
    """Settings of methods that compare the completions of one prompt with each other, and so need no value model.

    Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO), Liu et al. 2025 (Dr. GRPO), Zheng et al. 2025 (GSPO), Ahmadian et al. 2024
    (RLOO).
    """

    group_size: int = Field(default=8, ge=2)
    """Completions per prompt; rollout_batch_size must be a multiple."""
    refill_limit: int = Field(default=0, ge=0)
    """How often new prompts may replace groups whose scores are all equal, which teach nothing (DAPO). 0: such groups stay."""
    truncated: Literal["mask", "score"] = "mask"
    """What is done with completions that were cut at max_completion_tokens. mask: they count in the mean of their group, but
    nothing is learned from them. score: they are like any other, with missing_eos_penalty."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of a completion that was cut at the token limit."""
    loss_aggregation: LossAggregation = "tokens"
    """What counts alike in an optimizer step. tokens: every token (DAPO). sequences: every completion, whatever its length (GRPO,
    GSPO). constant: every token, divided by a number that does not depend on lengths (Dr. GRPO)."""
    ratio_level: RatioLevel = "token"
    """Whether each token has a probability ratio of its own, or a completion has one (GSPO, with cliprange 3e-4 or so)."""
    cliprange_high: float = Field(default=0.28, gt=0)
    """How far the ratio may rise before its gradient stops; cliprange says how far it may fall."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL penalty is: a term of the loss of every token (estimator k3), or part of a completion's reward (k1)."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty; if it adapts, the first value. 0: no reference is loaded, unless there is a kl_limit."""
    importance: Literal["sequence_mask", "token_truncate"] = "sequence_mask"
    """Weights for the gap between the sampler's and the trainer's probabilities. sequence_mask: one for a completion, 0 above
    importance_limit. token_truncate: one for each token, at most importance_limit."""
    importance_limit: float = Field(default=3.0, ge=1)
    """Largest of those weights."""
    ppo_epochs: int = Field(default=1, ge=1)
    """Passes over each rollout batch."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of the policy."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay over all updates; linear and cosine end at zero."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW epsilon. adafactor has none."""

    @property
    def surrogate(self) -> Surrogate:
        in_loss = self.kl_in == "loss"
        return Surrogate(self.cliprange, self.cliprange_high, self.ratio_level, self.loss_aggregation, kl_in_loss=in_loss)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0 or self.kl_limit is not None

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().check_fields(fields)
        values = {name: fields.get(name, info.default) for name, info in cls.model_fields.items()}
        if values["rollouts_ahead"] and values["refill_limit"]:
            text = "it replaces prompts once a rollout batch is scored, which is sampled ahead then; leave one of the two out"
            yield Problem(("refill_limit",), f"not together with rollouts_ahead: {text}")
        batch, group = values["rollout_batch_size"], values["group_size"]
        if isinstance(batch, int) and isinstance(group, int) and batch > 0 and group > 0 and batch % group:
            key = "rollout_batch_size" if "rollout_batch_size" in fields else "group_size"
            text = f"rollout_batch_size must be a multiple of group_size ({group}), not {batch}"
            yield Problem((key,), f"{text}; the next one is {-(-batch // group) * group}")
        if values["kl_target"] is not None and values["kl_coef"] == 0:
            text = "it adapts kl_coef, which is 0 and would stay 0; set kl_coef to a first value, such as 0.01"
            yield Problem(("kl_target",), text)
