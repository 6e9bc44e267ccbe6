"""PPO's pieces against values worked by hand; masks that must matter, and what they hide that must not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from align.losses import generalized_advantages, kl_penalized_rewards, masked_whiten, ppo_policy_loss, ppo_value_loss

LN2 = math.log(2)


def _t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class TestRewards:
    def test_by_hand(self) -> None:
        """kl_coef 0.5; policy minus reference: 1, -2, 4, 8. Mask 0 1 1 0: penalties 0, +1, -2, 0.

        The score 3 lands on the last masked token: -2 + 3 = 1.
        """
        rewards = kl_penalized_rewards(
            torch.tensor([3.0]).double(),
            _t([-1.0, -3.0, -1.0, -1.0]),
            _t([-2.0, -1.0, -5.0, -9.0]),
            _t([0, 1, 1, 0]),
            kl_coef=0.5,
        )
        torch.testing.assert_close(rewards, _t([0.0, 1.0, 1.0, 0.0]))

    def test_the_score_lands_on_the_last_token_of_each_row(self) -> None:
        mask = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
        zeros = torch.zeros(5, 3)
        rewards = kl_penalized_rewards(torch.arange(1.0, 6.0), zeros, zeros, mask, kl_coef=0.1)
        assert rewards.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 3], [0, 0, 4], [0, 0, 0]]

    def test_what_the_mask_hides_may_be_anything(self) -> None:
        logps = torch.tensor([[math.nan, -1.0, math.inf]])
        rewards = kl_penalized_rewards(torch.tensor([2.0]), logps, logps, torch.tensor([[0, 1, 0]]), kl_coef=1.0)
        assert rewards.tolist() == [[0.0, 2.0, 0.0]]

    def test_rewards_carry_no_gradient(self) -> None:
        logps = torch.zeros(1, 2, requires_grad=True)
        assert not kl_penalized_rewards(torch.ones(1), logps, logps, torch.ones(1, 2), kl_coef=1.0).requires_grad


class TestAdvantages:
    REWARDS, VALUES, ALL = _t([1.0, 0.0, 2.0]), _t([0.5, 1.0, 1.5]), _t([1, 1, 1])

    def test_by_hand(self) -> None:
        """gamma 0.5, lambda 0.5. Deltas: 2 - 1.5 = 0.5; 0 + 0.75 - 1 = -0.25; 1 + 0.5 - 0.5 = 1.

        A3 = 0.5, A2 = -0.25 + 0.25 · 0.5 = -0.125, A1 = 1 + 0.25 · (-0.125) = 0.96875. Returns add the values.
        """
        result = generalized_advantages(self.REWARDS, self.VALUES, self.ALL, gamma=0.5, gae_lambda=0.5)
        torch.testing.assert_close(result.advantages, _t([0.96875, -0.125, 0.5]))
        torch.testing.assert_close(result.returns, _t([1.46875, 0.875, 2.0]))

    def test_lambda_one_is_the_whole_return(self) -> None:
        """gamma 1, lambda 1: returns are the sums of what is still to come, 3, 2, 2, whatever the values."""
        result = generalized_advantages(self.REWARDS, self.VALUES, self.ALL, gamma=1.0, gae_lambda=1.0)
        torch.testing.assert_close(result.returns, _t([3.0, 2.0, 2.0]))

    def test_lambda_zero_is_one_step(self) -> None:
        """gamma 1: deltas 1 + 1 - 0.5, 0 + 1.5 - 1, 2 - 1.5."""
        result = generalized_advantages(self.REWARDS, self.VALUES, self.ALL, gamma=1.0, gae_lambda=0.0)
        torch.testing.assert_close(result.advantages, _t([1.5, 0.5, 0.5]))

    @pytest.mark.parametrize("junk", [0.0, 7.0, math.nan])
    def test_prompt_padding_and_gaps_are_passed_over(self, junk: float) -> None:
        rewards, values = _t([junk, 1.0, junk, 0.0, 2.0, junk]), _t([junk, 0.5, junk, 1.0, 1.5, junk])
        result = generalized_advantages(rewards, values, _t([0, 1, 0, 1, 1, 0]), gamma=0.5, gae_lambda=0.5)
        torch.testing.assert_close(result.advantages, _t([0.0, 0.96875, 0.0, -0.125, 0.5, 0.0]))
        torch.testing.assert_close(result.returns, _t([0.0, 1.46875, 0.0, 0.875, 2.0, 0.0]))

    def test_an_empty_row_and_an_empty_batch(self) -> None:
        result = generalized_advantages(_t([1.0, 1.0]), _t([1.0, 1.0]), _t([0, 0]), gamma=1.0, gae_lambda=1.0)
        assert not result.advantages.any()
        assert not result.returns.any()
        nothing = torch.zeros(2, 0)
        assert generalized_advantages(nothing, nothing, nothing, gamma=1.0, gae_lambda=1.0).returns.shape == (2, 0)

    @pytest.mark.parametrize("options", [{"gamma": 1.1, "gae_lambda": 1.0}, {"gamma": 1.0, "gae_lambda": -0.1}])
    def test_factors_outside_their_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must be in"):
            generalized_advantages(self.REWARDS, self.VALUES, self.ALL, **options)


class TestWhitening:
    def test_by_hand(self) -> None:
        """Of 1, 2, 3 (99 is masked): mean 2, sample variance (1 + 0 + 1) / 2 = 1: -1, 0, 1; with the mean kept 1, 2, 3."""
        values, mask = _t([1.0, 2.0, 99.0], [3.0, math.nan, -99.0]), _t([1, 1, 0], [1, 0, 0])
        expected = _t([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
        torch.testing.assert_close(masked_whiten(values, mask), expected)
        torch.testing.assert_close(masked_whiten(values, mask, shift_mean=False), _t([1.0, 2.0, 0.0], [3.0, 0.0, 0.0]))

    def test_mean_and_variance(self) -> None:
        values = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 + 3
        mask = torch.arange(36).reshape(4, 9) % 3 != 0
        kept = masked_whiten(values, mask)[mask]
        assert kept.mean().item() == pytest.approx(0, abs=1e-12)
        assert kept.var().item() == pytest.approx(1, rel=1e-6)

    @pytest.mark.parametrize("mask", [_t([0, 0, 0]), _t([0, 1, 0]), _t([1, 1, 1])])
    def test_nothing_one_and_equal_values_give_zero_not_nan(self, mask: Tensor) -> None:
        assert not masked_whiten(_t([4.0, 4.0, 4.0]), mask).any()


class TestPolicyLoss:
    def test_by_hand(self) -> None:
        """cliprange 0.2, ratios 2 and 1/2, each with A = 1 and A = -1.

        A = 1: max(-2, -1.2) = -1.2 clipped; max(-0.5, -0.8) = -0.5.
        A = -1: max(2, 1.2) = 2; max(0.5, 0.8) = 0.8 clipped. approx_kl: 2 - 1 - ln 2 and 1/2 - 1 + ln 2.
        """
        logps = _t([LN2, -LN2, LN2, -LN2])
        result = ppo_policy_loss(logps, torch.zeros_like(logps), _t([1, 1, -1, -1]), torch.ones_like(logps), cliprange=0.2)
        torch.testing.assert_close(result.losses, _t([-1.2, -0.5, 2.0, 0.8]))
        torch.testing.assert_close(result.ratio, _t([2.0, 0.5, 2.0, 0.5]))
        torch.testing.assert_close(result.clipped, _t([1, 0, 0, 1]))
        torch.testing.assert_close(result.approx_kl, _t([1 - LN2, LN2 - 0.5, 1 - LN2, LN2 - 0.5]))

    def test_no_gradient_where_it_is_clipped_nor_outside_the_mask(self) -> None:
        logps = _t([LN2, -LN2, LN2, -LN2, math.nan]).requires_grad_()
        mask = torch.tensor([[1, 1, 0, 1, 0]])
        result = ppo_policy_loss(logps, torch.zeros(1, 5).double(), _t([1, 1, -1, -1, 1]), mask, cliprange=0.2)
        result.losses.sum().backward()
        torch.testing.assert_close(logps.grad, _t([0.0, -0.5, 0.0, 0.0, 0.0]))
        assert all(not tensor[0, [2, 4]].any() for tensor in result)
        assert not any(tensor.requires_grad for tensor in result[1:])

    def test_on_policy_the_loss_is_minus_the_advantage(self) -> None:
        logps = _t([-1.0, -2.0])
        result = ppo_policy_loss(logps, logps, _t([3.0, -4.0]), torch.ones(1, 2), cliprange=0.2)
        torch.testing.assert_close(result.losses, _t([-3.0, 4.0]))
        assert not result.approx_kl.any()
        assert not result.clipped.any()

    def test_a_policy_far_away_stays_finite(self) -> None:
        logps = torch.tensor([[1e4, -1e4]], requires_grad=True)
        result = ppo_policy_loss(logps, torch.zeros(1, 2), -torch.ones(1, 2), torch.ones(1, 2), cliprange=0.2)
        result.losses.sum().backward()
        assert all(tensor.isfinite().all() for tensor in (*result, logps.grad) if tensor is not None)

    def test_gradient(self) -> None:
        logps = _t([0.1, -0.1, 0.5, -0.5], [0.05, 0.3, -0.3, 0.0]).requires_grad_()
        old, advantages = torch.zeros(2, 4).double(), _t([1.0, -1.0, 2.0, -2.0], [0.5, -0.5, 1.0, 1.0])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]])
        assert torch.autograd.gradcheck(lambda x: ppo_policy_loss(x, old, advantages, mask, cliprange=0.2).losses, (logps,))


class TestValueLoss:
    def test_by_hand(self) -> None:
        """cliprange_value 0.2 around old values 1.

        V 2, R 3: ½ max(1, (1.2 - 3)² = 3.24) = 1.62. V 2, R 0: ½ max(4, 1.44) = 2. V 1.1, R 1: ½ · 0.01. Masked: 0.
        """
        values, returns = _t([2.0, 2.0, 1.1, math.nan]), _t([3.0, 0.0, 1.0, 5.0])
        losses = ppo_value_loss(values, torch.ones(1, 4).double(), returns, _t([1, 1, 1, 0]), cliprange_value=0.2)
        torch.testing.assert_close(losses, _t([1.62, 2.0, 0.005, 0.0]))

    def test_gradient(self) -> None:
        values = _t([2.0, 2.0, 1.1, 0.3]).requires_grad_()
        old, returns, mask = torch.ones(1, 4).double(), _t([3.0, 0.0, 1.0, 5.0]), torch.tensor([[1, 1, 1, 0]])
        assert torch.autograd.gradcheck(lambda x: ppo_value_loss(x, old, returns, mask, cliprange_value=0.2), (values,))
        ppo_value_loss(values, old, returns, mask, cliprange_value=0.2).sum().backward()
        torch.testing.assert_close(values.grad, _t([0.0, 2.0, 0.1, 0.0]))


def test_dual_clip_by_hand() -> None:
    """Ratio 4, advantage -1: the plain loss is 4, clip(4) = 1.2 gives 1.2, their maximum is 4; dual clip 3 bounds it at 3.

    Ratio 2: 2 < 3, untouched. With a positive advantage nothing is bounded: ratio 4 gives max(-4, -1.2) = -1.2.
    """
    logps = torch.tensor([[math.log(4), math.log(2), math.log(4)]], dtype=torch.float64, requires_grad=True)
    advantages = _t([-1.0, -1.0, 1.0])
    loss = ppo_policy_loss(logps, torch.zeros_like(logps), advantages, _t([1, 1, 1]), cliprange=0.2, dual_clip=3.0)
    torch.testing.assert_close(loss.losses.detach(), _t([3.0, 2.0, -1.2]))
    assert loss.clipped.tolist() == [[1, 0, 1]]
    loss.losses.sum().backward()
    torch.testing.assert_close(logps.grad, _t([0.0, 2.0, 0.0]))  # -A * ratio where nothing is clipped
    with pytest.raises(ValueError, match="dual_clip must be greater than 1"):
        ppo_policy_loss(logps, logps, advantages, _t([1, 1, 1]), cliprange=0.2, dual_clip=1.0)


def test_shapes_and_ranges_are_checked() -> None:
    square, row = torch.zeros(2, 3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="one shape"):
        ppo_policy_loss(square, square, row, square, cliprange=0.2)
    with pytest.raises(ValueError, match="one shape"):
        masked_whiten(square, row)
    with pytest.raises(ValueError, match="scores must be"):
        kl_penalized_rewards(torch.zeros(3), square, square, square, kl_coef=0.1)
    with pytest.raises(ValueError, match="cliprange must be"):
        ppo_policy_loss(square, square, square, square, cliprange=0)
    with pytest.raises(ValueError, match="cliprange_value must be"):
        ppo_value_loss(square, square, square, square, cliprange_value=-1)
