"""One step of TRL's GRPO and RLOO trainers and of ours, on the same completions and advantages: the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from align.models.folder import ModelFolder
from align.models.trainable import TrainableModel
from align.stages import grpo, rloo
from align.training.online.experience import Experience
from align.training.online.layout import Episode, completion_offsets, to_rows
from align.training.online.learner import Optimizers, PolicyLearner
from align.training.online.models import ForwardSettings, load_models
from align.training.pass_size import PassSize

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:TRL currently supports vLLM:UserWarning")]

EPISODES = [
    *(Episode([5, 6, 7], completion) for completion in ([8, 9, 2], [10, 11, 12, 13, 2])),
    *(Episode([14, 15], completion) for completion in ([9, 2], [16, 17, 18, 2])),
]
OFFSETS = completion_offsets(EPISODES)
ADVANTAGES = torch.tensor([0.7, -0.7, 1.2, -1.2])
MAX_TOKENS = 6


def ours(config: Any, base: Path, *, ratios: float) -> tuple[dict[str, torch.Tensor], Experience]:
    """Gradients of one step on all episodes, and what it learned from.

    Args:
        ratios: how far the old log-probabilities are from those of the policy, in nats.
    """
    start = TrainableModel(ModelFolder(base), None, base.parent, config.method)
    settings = ForwardSettings(torch.device("cpu"), "float32", 1.0, PassSize(20, "tokens"), 0)
    models = load_models(start, None, settings, seed=0)
    learner = PolicyLearner(Optimizers.of(models, config, num_rollouts=1), models.settings, config, 0)
    with torch.no_grad():
        logps = torch.cat(
            [
                models.policy(input_ids=torch.tensor([episode.prompt_token_ids + episode.completion_token_ids]))
                .logits[0, len(episode.prompt_token_ids) - 1 : -1]
                .log_softmax(-1)
                .gather(-1, torch.tensor(episode.completion_token_ids)[:, None])[:, 0]
                for episode in EPISODES
            ]
        )
    noise = torch.randn(len(logps), generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([len(episode.completion_token_ids) for episode in EPISODES])
    experience = Experience(
        logps=logps + ratios * noise,
        advantages=ADVANTAGES.repeat_interleave(counts),
        importance=torch.ones(len(logps)),
        values=None,
        returns=None,
        reference_logps=logps + 0.3 * noise if config.surrogate.kl_in_loss and config.kl_coef > 0 else None,
    )
    passes = models.settings.passes(EPISODES, range(len(EPISODES)))
    assert len(passes.own) > 1
    learner._accumulate(experience, 0.0, True, passes, kl_coef=config.kl_coef)
    return {name: parameter.grad for name, parameter in models.policy.named_parameters()}, experience


def theirs(trainer_type: Any, config: Any, base: Path, experience: Experience) -> dict[str, torch.Tensor]:
    class Silent(trainer_type):  # type: ignore[misc]
        """Without its report to its makers."""

        def _send_telemetry(self) -> None:
            pass

    trainer = Silent(
        model=str(base),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=ModelFolder(base).tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    longest = max(len(episode.prompt_token_ids) for episode in EPISODES)
    prompts = [[0] * (longest - len(episode.prompt_token_ids)) + episode.prompt_token_ids for episode in EPISODES]
    completions, mask = to_rows(torch.tensor([token for e in EPISODES for token in e.completion_token_ids]), OFFSETS)
    old = to_rows(experience.logps, OFFSETS)[0]
    inputs = {
        "prompt_ids": torch.tensor(prompts),
        "prompt_mask": (torch.tensor(prompts) != 0).long(),
        "completion_ids": completions,
        "completion_mask": mask.long(),
        "advantages": ADVANTAGES,
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(-1),
        "num_items_in_batch": mask.sum(),
    }
    if experience.reference_logps is not None:
        inputs["ref_per_token_logps"] = to_rows(experience.reference_logps, OFFSETS)[0]
    model = trainer.model.train()
    trainer._compute_loss(model, inputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, times: float = 1.0) -> None:
    assert mine.keys() == other.keys()
    assert max(float(grad.abs().max()) for grad in mine.values()) > 1e-3
    for name, grad in mine.items():
        # Rounding is multiplied too: 2.6e-6 with 6 times, measured on a CPU with AVX2 alone.
        assert torch.allclose(grad * times, other[name], rtol=1e-4, atol=1e-6 * times), name


def arguments(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    common = {"output_dir": str(tmp_path), "per_device_train_batch_size": 4, "num_generations": 2, "use_cpu": True, "bf16": False}
    return {**common, "max_completion_length": MAX_TOKENS, "gradient_checkpointing": False, "report_to": "none", **changes}


def config_of(module: Any, **changes: Any) -> Any:
    stage = {"model": "m", "prompts": "p", "scorers": {"s": "rm"}, "max_completion_tokens": MAX_TOKENS, "group_size": 2}
    return module.Config.model_validate({**stage, **changes})


@pytest.mark.parametrize(
    ("changes", "trl"),
    [
        ({}, {"loss_type": "dapo"}),
        ({"kl_coef": 0.2, "ratio_level": "sequence", "loss_aggregation": "sequences"}, {
            "loss_type": "grpo", "beta": 0.2, "importance_sampling_level": "sequence",
        }),
        ({"kl_coef": 0.2, "loss_aggregation": "constant", "dual_clip": 1.4}, {"loss_type": "dr_grpo", "beta": 0.2, "delta": 1.4}),
    ],
    ids=["defaults", "gspo", "dr_grpo"],
)  # fmt: skip
def test_grpo(project_template: Path, tmp_path: Path, changes: dict[str, Any], trl: dict[str, Any]) -> None:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    base = project_template / "base"
    config = config_of(grpo, **changes)
    mine, experience = ours(config, base, ratios=0.4)
    # TRL's own default weighs the KL of a token with its ratio, which the papers do not.
    trl = {**trl, "use_bias_correction_kl": False}
    args = GRPOConfig(**arguments(tmp_path, epsilon=config.cliprange, epsilon_high=config.cliprange_high, **trl))
    assert_same_gradients(mine, theirs(GRPOTrainer, args, base, experience))


def test_rloo(project_template: Path, tmp_path: Path) -> None:
    """TRL sums over the tokens of a completion; with `constant` that is max_completion_tokens times ours."""
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    base = project_template / "base"
    mine, experience = ours(config_of(rloo), base, ratios=0.0)
    other = theirs(RLOOTrainer, RLOOConfig(**arguments(tmp_path)), base, experience)
    assert_same_gradients(mine, other, times=MAX_TOKENS)
