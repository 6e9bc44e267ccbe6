"""`precision: bfloat16` against float32: what the forward pass of every stage computes from the same weights and rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.losses.logps import IGNORED_LABEL
from align.models.head import target_logps
from align.models.load import load_causal_lm, load_reward_model, load_seq2seq_lm
from align.models.logits import in_float32, keep_in_float32
from align.models.seq2seq import Seq2SeqCollator, label_logps
from align.models.sizes import DENSE_MASK_TOKENS
from align.stages import dpo, orpo, reward_model
from align.testing import pairwise_config, random_pairs, tiny_causal_lm, tiny_seq2seq_lm
from align.training.online.layout import Episode, pack_episodes
from align.training.online.models import ForwardSettings, policy_logps, policy_logps_and_entropy, token_values
from align.training.packing import PackedCollator, TrainingSample, build_row
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.objective import BatchCounts
from align.training.pairwise.trainer import layout_of, prepare_model
from align.training.pass_size import PassSize
from align.training.trl_trainers import add_label_logps

CPU = torch.device("cpu")
WIDTH = 64
PAIRS = random_pairs(64, seed=2, prompt_tokens=20, completion_tokens=30)


@pytest.fixture(autouse=True)
def masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention with masks, as the limits below were measured: they are about the heads, and other kernels round otherwise."""
    monkeypatch.setitem(DENSE_MASK_TOKENS, "cpu", 256)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logits have a standard deviation of 4 and a maximum near 14, as those of trained models; a tiny random model's are below 1,
    where bfloat16 has finer steps."""
    folder = tiny_causal_lm(tmp_path_factory.mktemp("bfloat16") / "base", hidden_size=WIDTH, tie_word_embeddings=False)
    model = load_causal_lm(folder)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=4 / WIDTH**0.5)
    model.save_pretrained(folder)
    return folder


def scorer(base: Path) -> Any:
    """A reward model whose scores have a standard deviation of 4."""
    torch.manual_seed(0)
    model: Any = load_reward_model(base, new_head=True)
    torch.nn.init.normal_(model.score.weight, std=4 / WIDTH**0.5)
    return model


def of_sft(base: Path) -> Callable[[], Tensor]:
    """[tokens] log-probabilities of the completions of packed rows."""
    model = load_causal_lm(base)
    add_label_logps(model)
    samples = [TrainingSample(pair.prompt_token_ids, pair.chosen_token_ids) for pair in PAIRS]
    batch = PackedCollator(0)([build_row(samples[start : start + 4]) for start in range(0, len(samples), 4)])
    labels = batch.pop("labels")
    return lambda: model(**batch, logps_of=labels)[labels[:, 1:] != IGNORED_LABEL]


def of_pairs(model: Any, kind: Any, **settings: Any) -> Callable[[], Tensor]:
    """[pairs] losses."""
    config = pairwise_config(kind, **settings)
    reference = {"reference_chosen_logps": -60.0, "reference_rejected_logps": -60.0}
    collator = PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=128, with_prompts=config.counts_prompts)
    batch = collator([TrainingPair(pair, reference) for pair in PAIRS])
    counts = BatchCounts(torch.tensor(len(PAIRS)), torch.tensor(int(batch["token_counts"][: len(PAIRS)].sum())))
    prepare_model(model)
    return lambda: config.pair_losses(model(layout=layout_of(batch)), batch, counts).losses


def of_episodes(model: Any, compute: Callable[..., Tensor]) -> Callable[[], Tensor]:
    """[completion tokens] of PPO's rows. What is float32 of the settings is overridden by the autocast around the call."""
    episodes = [Episode(pair.prompt_token_ids, pair.chosen_token_ids) for pair in PAIRS]
    (batch,) = pack_episodes(episodes, range(len(episodes)), micro_batch_tokens=8192, row_tokens=128, pad_token_id=0)
    precision = lambda: "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"  # noqa: E731
    return lambda: compute(model, batch, ForwardSettings(CPU, precision(), 1.0, PassSize(8192, "tokens"), 0))


def entropy(*arguments: Any) -> Tensor:
    return policy_logps_and_entropy(*arguments).entropy


# Root mean square and largest difference that are allowed, in nats (values and scores: their own unit), for numbers with standard
# deviations from 0.7 (entropy) to 9 (DPO losses). In the comments: measured, and measured while the heads were in bfloat16. The
# rest comes from the layers below; it is large here, because the layers of a random model amplify rounding.
STAGES: dict[str, tuple[Callable[[Path], Callable[[], Tensor]], float, float]] = {
    "sft": (of_sft, 0.042, 0.25),  # 0.0409, 0.17; before 0.0437, 0.18
    "dpo": (lambda base: of_pairs(load_causal_lm(base), dpo, beta=0.1), 0.0165, 0.1),  # 0.0158, 0.07; before 0.0167, 0.07
    "orpo": (lambda base: of_pairs(load_causal_lm(base), orpo), 0.013, 0.07),  # 0.0123, 0.05; before 0.0135, 0.05
    "reward_model": (lambda base: of_pairs(scorer(base), reward_model), 0.042, 0.3),  # 0.0390, 0.20; before 0.0467, 0.23
    "ppo": (lambda base: of_episodes(load_causal_lm(base), policy_logps), 0.042, 0.25),  # 0.0409, 0.17; before 0.0437, 0.18
    "ppo entropy": (lambda base: of_episodes(load_causal_lm(base), entropy), 0.0195, 0.1),  # 0.0179, 0.07; before 0.0208, 0.09
    "ppo values": (lambda base: of_episodes(scorer(base), token_values), 0.0375, 0.2),  # 0.0362, 0.14; before 0.0390, 0.15
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_forward_pass_in_bfloat16_is_near_float32(base: Path, stage: str) -> None:
    build, rms, largest = STAGES[stage]
    compute = build(base)
    with torch.no_grad():
        exact = compute()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = compute()
    assert rounded.dtype == torch.float32
    difference = rounded - exact
    assert 0 < difference.square().mean().sqrt() < rms
    assert difference.abs().max() < largest


def test_heads_do_not_round(base: Path) -> None:
    """Whatever autocast surrounds them, heads give the same bits from the same states, and pass on the same gradients.

    In bfloat16 these log-probabilities were off by 0.0175 (root mean square; at most 0.09), the scores by 0.0126 (0.07).
    """
    model, score = load_causal_lm(base), scorer(base).score
    states = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200)
    heads: list[Callable[[Tensor], Tensor]] = [
        lambda states: target_logps(model, states, targets),
        lambda states: in_float32(score, states)[:, 0],
    ]
    for head in heads:
        found = []
        for enabled in (False, True):
            leaf = states.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                outputs = head(leaf)
            (gradient,) = torch.autograd.grad(outputs.sum(), leaf)
            found.append((outputs.detach(), gradient))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def test_the_head_of_an_encoder_decoder_does_not_round(tmp_path: Path) -> None:
    """The model calls it itself: behind the states that T5 scales, before the bias that BART adds."""
    model: Any = load_seq2seq_lm(tiny_seq2seq_lm(tmp_path / "t5"))
    head = model.get_output_embeddings()
    exact, states = head.forward, torch.randn(50, head.weight.shape[1], generator=torch.Generator().manual_seed(0))
    keep_in_float32(head)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert exact(states).dtype == torch.bfloat16
        found = head(states)
    assert torch.equal(found, exact(states))
    rows = [(pair.prompt_token_ids, pair.chosen_token_ids) for pair in PAIRS]
    batch = Seq2SeqCollator(pad_token_id=0, start_token_id=int(model.config.decoder_start_token_id))(rows)
    with torch.no_grad():
        logps = label_logps(model, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = label_logps(model, batch)
    # Measured 0.0033; 0.0039 while the head was in bfloat16.
    assert 0 < (rounded - logps).square().mean().sqrt() < 0.0036
