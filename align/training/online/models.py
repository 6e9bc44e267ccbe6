"""The models that the trainer runs itself: policy, reference, and the value model where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from align.models.attention import longest_shared_row
from align.models.folder import ModelFolder
from align.models.head import LogpsAndEntropy, last_hidden_states, target_logps, target_logps_and_entropy
from align.models.load import load_causal_lm
from align.models.logits import check_logits, in_float32
from align.models.lora import merged_weights
from align.models.sizes import EPISODE_ROW_TOKENS
from align.models.trainable import TrainableModel, load_trainable
from align.runtime.device import frozen_dtype
from align.runtime.group import all_of
from align.runtime.seed import derive_seed
from align.runtime.spread import ALONE, Spread
from align.training.online.layout import Episode, PackedEpisodes, pack_episodes
from align.training.online.shares import Passes
from align.training.pass_size import PassSize
from align.training.sharding import local_part, own_share, place, release, whole, whole_tensor, within
from align.training.weights_of_first import weights_of_first

T = TypeVar("T")


@dataclass(frozen=True)
class ForwardSettings:
    """How forward passes are computed."""

    device: torch.device
    precision: str
    """float32 or bfloat16 (autocast)."""
    temperature: float
    pass_size: PassSize
    """In tokens."""
    pad_token_id: int
    longest_shared_row: int | None = None
    """Of the models, see `align.models.attention`."""
    rank: int = 0
    """Of this process among those that train together."""
    spread: Spread = ALONE
    """The processes that train together."""

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def passes(self, episodes: Sequence[Episode], chosen: Sequence[int]) -> Passes:
        """This process's share of the chosen episodes; all processes call it together."""
        processes, is_sharded = self.spread.processes, self.spread.strategy == "fsdp2"
        own = self._packed(episodes, [chosen[place] for place in own_share(len(chosen), self.rank, processes)])
        fillers: list[PackedEpisodes] = []
        if is_sharded and (missing := max(all_of(len(own))) - len(own)):
            fillers = self._packed(episodes, [min(chosen, key=lambda index: len(episodes[index]))]) * missing
        tokens = sum(len(episodes[index].completion_token_ids) for index in chosen)
        return Passes(own, fillers, tokens, len(chosen), scale=processes if is_sharded else 1)

    def _packed(self, episodes: Sequence[Episode], chosen: Sequence[int]) -> list[PackedEpisodes]:
        if not chosen:
            return []
        packed = pack_episodes(
            episodes,
            chosen,
            micro_batch_tokens=self.pass_size.size,
            row_tokens=EPISODE_ROW_TOKENS[self.device.type],
            pad_token_id=self.pad_token_id,
            longest_shared_row=self.longest_shared_row,
        )
        return [batch.to(self.device) for batch in packed]

    def run_passes(self, episodes: Sequence[Episode], chosen: Sequence[int], compute: Callable[[Passes], T]) -> T:
        """What `compute` returns for the passes of the chosen episodes; after an out-of-memory error it gets smaller ones.

        Not where several processes train: the others would wait for passes that this one has given up.
        """
        if self.spread.processes > 1:
            return compute(self.passes(episodes, chosen))
        return self.pass_size.retry(
            lambda: compute(self.passes(episodes, chosen)),
            used=lambda: max(batch.input_ids.numel() for batch in self.passes(episodes, chosen).own),
            smallest=lambda: max(len(episodes[index]) for index in chosen),
        )


@dataclass(frozen=True)
class Models:
    """All in evaluation mode throughout: with dropout the ratio of new to old probabilities would not start at 1."""

    policy: Any
    reference: Any
    """A frozen model that the policy is held against: its copy, or a teacher. None where an adapter is trained without a teacher,
    as the reference is then the policy with the adapter that it started with; and where the method needs none."""
    value: Any
    """A reward model architecture: a backbone and a head of one number. None for methods that need no values."""
    settings: ForwardSettings
    differ_from_folder: bool
    """Whether the policy's weights are not exactly those of its folder before the first update: rounded to fewer bits."""
    initial_adapter: Mapping[str, Tensor] = field(default_factory=dict)
    """The adapter's parameters before the first step, by name; of a sharded one the part of this process."""

    def policy_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What an engine needs of the policy, by the names in its folder. An adapter is merged tensor by tensor.

        All processes go through it together: a policy that they divide comes whole, one parameter after the other.
        """
        release(self.policy)
        if not self.initial_adapter:
            yield from ((name, whole_tensor(parameter.detach())) for name, parameter in self.policy.named_parameters())
            return
        has_engine = self.settings.rank < self.settings.spread.samplers
        with whole(self.policy, keep=has_engine):
            if has_engine:
                yield from merged_weights(self.policy)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The reference, for forward passes. The policy is restored at the end of the block."""
        if self.reference is not None:
            yield self.reference
            return
        trained = {
            name: local_part(value.detach()) for name, value in self.policy.named_parameters() if name in self.initial_adapter
        }
        now = {name: value.clone() for name, value in trained.items()}
        try:
            for name, value in trained.items():
                value.copy_(self.initial_adapter[name])
            yield self.policy
        finally:
            for name, value in trained.items():
                value.copy_(now[name])


def trainable(model: Any) -> list[Tensor]:
    """The parameters that learn: all, or an adapter's."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class ValueStart:
    """The model that the value model starts from, and its head."""

    start: TrainableModel
    is_reward_model: bool
    """False for a language model: its head is replaced by a new one."""
    zero_head: bool
    """Whether the head becomes zeros, so that all values start at 0."""


def load_models(
    policy: TrainableModel,
    value: ValueStart | None,
    settings: ForwardSettings,
    *,
    seed: int,
    with_reference: bool = True,
    teacher: ModelFolder | None = None,
) -> Models:
    """Policy and reference from `policy`, and a value model where `value` says what it starts from.

    With an adapter, policy and reference share one copy of the base model, and the value model has another.

    Args:
        teacher: in place of the reference.
    Raises:
        RecipeError: if a folder cannot be used, or the value model does not give one number per token.
    """
    # New heads and adapters are drawn from the global generator, so the order of loading is part of the result.
    torch.manual_seed(derive_seed(seed, "parameters"))
    value_model, frozen = None, frozen_dtype(settings.precision)
    if value is not None:
        new_head, pad_token_id = not value.is_reward_model, settings.pad_token_id
        with weights_of_first(settings.spread):
            value_model = load_trainable(
                value.start, task="SEQ_CLS", new_head=new_head, pad_token_id=pad_token_id, frozen_dtype=frozen
            )
        if value.zero_head:
            torch.nn.init.zeros_(value_model.score.weight)
        value_model = place(value_model.eval(), settings.spread)
    with weights_of_first(settings.spread, all_read=policy.changes_initial_policy):
        trained = load_trainable(policy, frozen_dtype=frozen).eval()
    trained = place(trained, settings.spread)
    reference: Any = None
    if teacher is not None or (with_reference and policy.peft is None):
        with weights_of_first(settings.spread):
            reference = load_causal_lm(teacher or policy.folder, dtype=frozen).eval().requires_grad_(False)
        if settings.spread.strategy != "fsdp2":
            reference.to(settings.device)
        if teacher is not None:
            check_logits(reference, str(teacher.path))
        reference = place(reference, settings.spread)
    limits = [longest_shared_row(model) for model in (trained, value_model, reference) if model is not None]
    settings = replace(settings, longest_shared_row=min((limit for limit in limits if limit is not None), default=None))
    initial, differs = {}, False
    if policy.peft is not None:
        learning = ((name, parameter) for name, parameter in trained.named_parameters() if parameter.requires_grad)
        initial = {name: local_part(parameter.detach()).clone() for name, parameter in learning}
        differs = policy.is_quantized or frozen != "float32"
    return Models(trained, reference, value_model, settings, differ_from_folder=differs, initial_adapter=initial)


def policy_logps(model: Any, batch: PackedEpisodes, settings: ForwardSettings) -> Tensor:
    """[completion tokens] log-probability of every sampled token, nats; carries the gradient."""

    def compute(model: Any) -> Tensor:
        return target_logps(model, target_states(model, batch), batch.targets, temperature=settings.temperature)

    with settings.autocast():
        return within(model, compute)


@torch.no_grad()
def policy_logps_and_entropy(model: Any, batch: PackedEpisodes, settings: ForwardSettings) -> LogpsAndEntropy:
    """[completion tokens] log-probability of every sampled token, and the entropy it was drawn with, nats."""

    def compute(model: Any) -> LogpsAndEntropy:
        return target_logps_and_entropy(model, target_states(model, batch), batch.targets, temperature=settings.temperature)

    with settings.autocast():
        return within(model, compute)


def token_values(model: Any, batch: PackedEpisodes, settings: ForwardSettings) -> Tensor:
    """[completion tokens] value of the state before each token was drawn, float32; carries the gradient."""

    def compute(model: Any) -> Tensor:
        return in_float32(model.score, target_states(model, batch))[:, 0].clone()

    with settings.autocast():
        return within(model, compute)


def target_states(model: Any, batch: PackedEpisodes) -> Tensor:
    """[completion tokens, width] hidden states from which the tokens were drawn."""
    hidden = last_hidden_states(model, input_ids=batch.input_ids, position_ids=batch.position_ids)
    return hidden.flatten(0, 1)[batch.sources]
