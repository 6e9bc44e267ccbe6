"""The pieces of PPO that need no training: layout, schedules, controller, shaping of scores."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.config.online import RewardTraining
from align.config.rules import RuleSet
from align.config.sections import RulesScorer
from align.data.encoding import EncodedPrompt
from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings
from align.errors import RecipeError, StageError
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm
from align.models.trainable import TrainableModel
from align.records import Candidate, Message, Prompt, ScoredCandidate
from align.scoring.scorers import ScorerSet
from align.testing import tiny_causal_lm, tiny_reward_model
from align.training.online.experience import explained_variance, shaped_scores
from align.training.online.layout import Episode, completion_offsets, pack_episodes, to_rows
from align.training.online.learner import mini_batches, num_mini_batches
from align.training.online.models import ForwardSettings, ValueStart, load_models, policy_logps, token_values
from align.training.online.rollout import RolloutSampler, SampledEpisode
from align.training.online.trainer import adapted_kl_coef
from align.training.pass_size import PassSize

EPISODES = [Episode([5, 6, 7], [8, 9]), Episode([5], [10]), Episode([11, 12], [13, 14, 15, 2]), Episode([9, 9, 9, 9], [2])]
CPU = torch.device("cpu")
NOT_SCORED = Candidate(
    prompt_id="p",
    candidate_index=0,
    prompt=[],
    reference=None,
    completion="",
    completion_token_ids=[2],
    completion_tokens=1,
    finish_reason="stop",
    seed=0,
)


def start(folder: Path) -> TrainableModel:
    """Every weight of the model in `folder` is trained."""
    return TrainableModel(ModelFolder(folder), None, folder.parent, "ppo")


def reward_model_start(folder: Path) -> ValueStart:
    return ValueStart(start(folder), is_reward_model=True, zero_head=False)


def forward_settings(micro_batch_tokens: int, temperature: float = 1.0) -> ForwardSettings:
    return ForwardSettings(CPU, "float32", temperature, PassSize(micro_batch_tokens, "tokens"), 0)


@pytest.mark.parametrize("micro_batch_tokens", [1, 6, 9, 1000])
def test_every_completion_token_is_in_exactly_one_pass_with_the_state_before_it(micro_batch_tokens: int) -> None:
    passes = list(pack_episodes(EPISODES, [2, 0, 3, 1], micro_batch_tokens=micro_batch_tokens, row_tokens=512, pad_token_id=0))
    tokens = torch.cat([batch.tokens for batch in passes]).tolist()
    assert sorted(tokens) == list(range(8))
    flat = [token for episode in EPISODES for token in episode.completion_token_ids]
    before = [t for e in EPISODES for t in [e.prompt_token_ids[-1], *e.completion_token_ids[:-1]]]
    for batch in passes:
        assert [flat[token] for token in batch.tokens] == batch.targets.tolist()
        assert batch.input_ids.flatten()[batch.sources].tolist() == [before[token] for token in batch.tokens]


def test_rows_are_not_wider_than_asked_unless_one_sequence_is() -> None:
    long = [Episode([1] * 700, [2] * 20), Episode([1] * 3, [2])]
    passes = list(pack_episodes(long, [0, 1], micro_batch_tokens=100, row_tokens=512, pad_token_id=0))
    assert [tuple(batch.input_ids.shape) for batch in passes] == [(1, 720), (1, 4)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_and_values_are_those_of_each_sequence_alone(tmp_path: Path, temperature: float) -> None:
    policy = load_causal_lm(tiny_causal_lm(tmp_path / "policy", seed=3)).eval()
    models = load_models(
        start(tmp_path / "policy"),
        reward_model_start(tiny_reward_model(tmp_path / "value", seed=4)),
        forward_settings(1000),
        seed=0,
    )
    (batch,) = pack_episodes(EPISODES, range(4), micro_batch_tokens=1000, row_tokens=512, pad_token_id=0)
    with torch.no_grad():
        logps = policy_logps(policy, batch, forward_settings(1000, temperature))
        values = token_values(models.value, batch, forward_settings(1000))
    offsets = completion_offsets(EPISODES)
    found, found_values = torch.zeros(8), torch.zeros(8)
    found[batch.tokens], found_values[batch.tokens] = logps, values
    for number, episode in enumerate(EPISODES):
        ids = torch.tensor([episode.prompt_token_ids + episode.completion_token_ids])
        with torch.no_grad():
            wanted = (policy(input_ids=ids).logits[0, :-1] / temperature).log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            hidden = models.value.base_model(input_ids=ids).last_hidden_state[0]
            wanted_values = models.value.score(hidden)[:-1, 0]
        count = len(episode.completion_token_ids)
        torch.testing.assert_close(found[offsets[number] : offsets[number + 1]], wanted[-count:], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            found_values[offsets[number] : offsets[number + 1]], wanted_values[-count:], rtol=1e-5, atol=1e-6
        )


def test_flat_numbers_go_to_rows_in_order() -> None:
    rows, mask = to_rows(torch.arange(1.0, 9.0), completion_offsets(EPISODES))
    assert rows.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [4, 5, 6, 7], [8, 0, 0, 0]]
    assert mask.tolist() == [[value > 0 for value in row] for row in rows.tolist()]


def test_adaptive_kl_by_hand() -> None:
    # 9 nats against 6 is an error of 0.5, held at 0.2: 0.1 * (1 + 0.2 * 256 / 10,000)
    assert adapted_kl_coef(0.1, 9.0, target=6, horizon=10_000, episodes=256) == pytest.approx(0.100512)
    # 5.4 is an error of -0.1
    assert adapted_kl_coef(0.1, 5.4, target=6, horizon=10_000, episodes=256) == pytest.approx(0.099744)
    assert adapted_kl_coef(0.1, 0.0, target=6, horizon=10_000, episodes=5_000) == pytest.approx(0.09)
    assert adapted_kl_coef(0.1, 9.0, target=None, horizon=10_000, episodes=256) == 0.1


def test_scores_are_centred_and_cut_completions_penalised() -> None:
    scores, ended = torch.tensor([3.0, 3.0]), torch.tensor([True, False])
    assert shaped_scores(scores, ended, RewardTraining(missing_eos_penalty=1.5), 0.5).tolist() == [2.5, 1.0]
    assert shaped_scores(scores, ended, RewardTraining(missing_eos_score=-1.0), 0.5).tolist() == [2.5, -1.0]
    assert shaped_scores(scores, ended, RewardTraining(missing_eos_penalty=0.0), 0.0).tolist() == [3.0, 3.0]


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns + 7, returns) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0.0)
    assert explained_variance(torch.tensor([3.0, 2.0, 1.0]), returns) == pytest.approx(-3.0)
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0.0


@given(st.integers(1, 70), st.integers(1, 30), st.integers(0, 3))
def test_mini_batches_hold_every_episode_once_and_none_is_tiny(count: int, size: int, epoch: int) -> None:
    batches = list(mini_batches(count, size, seed=3, rollout=1, epoch=epoch))
    assert sorted(itertools.chain(*batches)) == list(range(count))
    assert len(batches) == num_mini_batches(count, size)
    assert len(batches) == 1 or min(map(len, batches)) >= size / 2
    assert batches == list(mini_batches(count, size, seed=3, rollout=1, epoch=epoch))


def test_mini_batches_differ_from_pass_to_pass() -> None:
    orders = {
        tuple(itertools.chain(*mini_batches(40, 8, seed=seed, rollout=rollout, epoch=epoch)))
        for seed, rollout, epoch in itertools.product((0, 1), (0, 1), (0, 1))
    }
    assert len(orders) == 8


class EchoEngine:
    """Says its seed."""

    name, version = "echo", "1"

    def generate(self, requests: list[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        return [
            [
                SampledCompletion([5, (request.seed + n) % 100 + 10, 2], "stop", [-1.0, -2.0, -3.0])
                for n in range(settings.num_candidates)
            ]
            for request in requests
        ]


def sampler(rollout_batch_size: int, count: int = 5, *, num_episodes: int | None = None, **changes: Any) -> RolloutSampler:
    prompts = [Prompt(id=f"p{n}", prompt=[Message(role="user", content=f"say {n}")]) for n in range(count)]
    encoded = [EncodedPrompt(prompt.id, [3, n]) for n, prompt in enumerate(prompts)]
    rules = RuleSet.model_validate({"rules": [{"type": "length", "name": "short", "max_characters": 3}]})
    chat_format: Any = SimpleNamespace(stop_token_ids=(2,), sampled_text=lambda ids: "x" * len([i for i in ids if i != 2]))
    options: dict[str, Any] = {
        "scorers": ScorerSet({"short": RulesScorer(rules=rules)}, {}, batch_tokens=10),
        "score_weights": {"short": 2.0},
    }
    return RolloutSampler(
        prompts,
        encoded,
        RewardTraining(rollout_batch_size=rollout_batch_size, num_episodes=num_episodes),
        **{**options, **changes},
        chat_format=chat_format,
        seed=7,
    )


@pytest.mark.parametrize(("num_episodes", "rollouts"), [(None, 2), (3, 1), (4, 2)])
def test_the_number_of_rollouts_covers_every_episode(num_episodes: int | None, rollouts: int) -> None:
    # By default one episode for each of 5 prompts.
    assert sampler(3, num_episodes=num_episodes).num_rollouts == rollouts


def test_every_pass_over_the_prompts_is_a_shuffle_of_all() -> None:
    rows = sampler(3)
    drawn = [prompt.id for number in range(5) for _, prompt, _ in rows.drawn(number)]
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == sorted(drawn[10:]) == [f"p{n}" for n in range(5)]
    assert drawn[:5] != drawn[5:10]
    assert [episode for episode, _, _ in rows.drawn(4)] == [12, 13, 14]


def test_prompt_and_tokens_stay_together_and_no_seed_is_used_twice() -> None:
    rows = sampler(12)
    sampled = rows.sample(0, EchoEngine())  # type: ignore[arg-type]
    for episode in sampled:
        assert episode.prompt_token_ids == [3, int(episode.candidate.prompt_id[1:])]
    assert len({episode.candidate.seed for episode in sampled}) == 12
    assert len({episode.candidate.seed for episode in [*sampled, *rows.sample(1, EchoEngine())]}) == 24  # type: ignore[arg-type]


def test_a_group_is_the_completions_of_one_prompt() -> None:
    rows = sampler(6, group_size=3)
    batches = [rows.sample(number, EchoEngine()) for number in range(4)]  # type: ignore[arg-type]
    assert [episode.group for episode in batches[1]] == [2, 2, 2, 3, 3, 3]
    episodes = [episode for batch in batches for episode in batch]
    prompts_of = {group: {e.candidate.prompt_id for e in episodes if e.group == group} for group in range(8)}
    assert all(len(prompts) == 1 for prompts in prompts_of.values())
    assert set.union(*(prompts_of[group] for group in range(5))) == {f"p{n}" for n in range(5)}  # every pass draws each once
    assert len({episode.candidate.seed for episode in episodes}) == len(episodes) == 24
    assert len({(e.candidate.prompt_id, e.candidate.candidate_index) for e in episodes}) == 24
    assert rows.rollout(rows.score(batches[1])).groups.tolist() == [2, 2, 2, 3, 3, 3]


def test_a_rollout_batch_is_made_of_whole_groups() -> None:
    with pytest.raises(RecipeError, match="rollout_batch_size is 10, not a multiple of 4 completions per prompt") as caught:
        sampler(10, group_size=4)
    assert caught.value.hint == "Set it to 12."


def test_scores_are_weighted_sums_and_what_is_not_finite_is_left_out_and_counted() -> None:
    class Holes:
        names = ["rm"]

        def score(self, candidates: list[Any], report: Any) -> list[Any]:
            values = [None if c is NOT_SCORED or index == 1 else 1.0 + index for index, c in enumerate(candidates)]
            return [ScoredCandidate(**dict(c), scores={"rm": v}) for c, v in zip(candidates, values, strict=True)]

    rows = sampler(4, scorers=Holes(), score_weights={"rm": 0.5})
    sampled = rows.sample(0, EchoEngine())  # type: ignore[arg-type]
    rollout = rows.rollout(rows.score(sampled))
    assert rollout.scores.tolist() == [0.5, 1.5, 2.0]
    assert rollout.nonfinite == 1
    assert rollout.groups.tolist() == [0, 2, 3]
    assert [episode.prompt_token_ids for episode in rollout.episodes] == [sampled[index].prompt_token_ids for index in (0, 2, 3)]
    assert rollout.sampler_logps.tolist() == [-1.0, -2.0, -3.0] * 3
    assert (rollout.watched, rollout.parts) == ({}, {})  # the only scorer is the score
    rows = sampler(2, scorers=Holes(), score_weights={"rm": 0.5})
    with pytest.raises(StageError, match="None of 1 completions got a finite score from rm"):
        rows.rollout(rows.score([SampledEpisode(0, [3], SampledCompletion([2], "stop", [-1.0]), NOT_SCORED)]))


def test_a_value_model_with_another_head_is_refused(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "policy")
    tiny_reward_model(tmp_path / "two", num_labels=2)
    with pytest.raises(RecipeError, match=r"two: score.weight is \[2, 32\] in the weights, but \[1, 32\] is needed"):
        load_models(start(tmp_path / "policy"), reward_model_start(tmp_path / "two"), forward_settings(1000), seed=0)


def test_a_value_model_without_a_reward_model_starts_at_zero(tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "policy")
    policy = start(tmp_path / "policy")
    models = load_models(policy, ValueStart(policy, False, True), forward_settings(1000), seed=0)
    (batch,) = pack_episodes(EPISODES, range(4), micro_batch_tokens=1000, row_tokens=512, pad_token_id=0)
    assert token_values(models.value, batch, forward_settings(1000)).tolist() == [0.0] * 8
