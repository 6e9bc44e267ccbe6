"""Advantages of groups, the clipped surrogate with two ends and two levels, and k3, against values worked by hand and numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align.losses import clipped_policy_loss, group_advantages, k3_kl, ppo_policy_loss

LN2 = math.log(2)


def _t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestGroupAdvantages:
    """Two prompts of three completions: 1, 2, 6 (mean 3, sample variance 7) and 5, 5, 5."""

    SCORES = _t(1.0, 2.0, 6.0, 5.0, 5.0, 5.0)

    def test_grpo(self) -> None:
        found = group_advantages(self.SCORES, group_size=3)
        scale = math.sqrt(7) + 1e-4
        torch.testing.assert_close(found, _t(-2 / scale, -1 / scale, 3 / scale, 0.0, 0.0, 0.0))

    def test_without_scale(self) -> None:
        torch.testing.assert_close(group_advantages(self.SCORES, group_size=3, scale="none"), _t(-2.0, -1.0, 3.0, 0.0, 0.0, 0.0))

    def test_rloo(self) -> None:
        """Against the mean of the others: 1 - 4, 2 - 3.5, 6 - 1.5."""
        found = group_advantages(self.SCORES, group_size=3, scale="none", baseline="leave_one_out")
        torch.testing.assert_close(found, _t(-3.0, -1.5, 4.5, 0.0, 0.0, 0.0))

    def test_groups_do_not_see_each_other(self) -> None:
        moved = group_advantages(torch.cat([self.SCORES[:3], self.SCORES[3:] + 100]), group_size=3)
        torch.testing.assert_close(moved, group_advantages(self.SCORES, group_size=3))

    def test_parity_with_numpy(self) -> None:
        scores = np.random.default_rng(0).normal(size=(16, 8))
        expected = (scores - scores.mean(1, keepdims=True)) / (scores.std(1, ddof=1, keepdims=True) + 1e-4)
        found = group_advantages(torch.from_numpy(scores.ravel()), group_size=8)
        np.testing.assert_allclose(found.numpy(), expected.ravel(), rtol=1e-9)

    def test_no_gradient_and_wide_numbers(self) -> None:
        found = group_advantages(torch.ones(4, dtype=torch.bfloat16, requires_grad=True), group_size=2)
        assert (found.requires_grad, found.dtype) == (False, torch.float32)

    @pytest.mark.parametrize(
        ("count", "settings"),
        [
            (6, {"group_size": 4}),
            (6, {"group_size": 1}),
            (6, {"group_size": 2, "scale": "mad"}),
            (6, {"group_size": 2, "baseline": ""}),
        ],
    )
    def test_what_makes_no_groups_is_refused(self, count: int, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be"):
            group_advantages(torch.zeros(count), **settings)


class TestClippedPolicyLoss:
    def test_two_ends(self) -> None:
        """Ratio 2 and advantage 1: held at 1.28. Ratio 1/2: advantage -1 is held at 0.8, advantage 1 is not."""
        logps, old = _t([LN2, -LN2, -LN2]), _t([0.0, 0.0, 0.0])
        found = clipped_policy_loss(logps, old, _t([1.0, -1.0, 1.0]), torch.ones(1, 3), clip_low=0.2, clip_high=0.28)
        torch.testing.assert_close(found.losses, _t([-1.28, 0.8, -0.5]))
        assert found.clipped.tolist() == [[1.0, 1.0, 0.0]]
        torch.testing.assert_close(found.approx_kl, _t([1 - LN2, LN2 - 0.5, LN2 - 0.5]))

    def test_one_advantage_for_a_completion_is_that_of_all_its_tokens(self) -> None:
        logps, old, mask = torch.randn(2, 5), torch.randn(2, 5), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
        ends: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}
        one = clipped_policy_loss(logps, old, torch.tensor([1.5, -2.0]), mask, **ends)
        each = clipped_policy_loss(logps, old, torch.tensor([[1.5] * 5, [-2.0] * 5]), mask, **ends)
        assert all(torch.equal(a, b) for a, b in zip(one, each, strict=True))

    def test_with_equal_ends_it_is_that_of_ppo(self) -> None:
        generator = torch.Generator().manual_seed(2)
        logps, old, advantages = (torch.randn(3, 7, generator=generator) for _ in range(3))
        mask = torch.rand(3, 7, generator=generator) > 0.3
        ppo = ppo_policy_loss(logps, old, advantages, mask, cliprange=0.2, dual_clip=2.0)
        ours = clipped_policy_loss(logps, old, advantages, mask, clip_low=0.2, clip_high=0.2, dual_clip=2.0)
        assert all(torch.equal(a, b) for a, b in zip(ppo, ours, strict=True))

    def test_at_sequence_level_all_tokens_have_the_mean_ratio(self) -> None:
        """Log ratios 0, 2 ln 2 and, masked, infinity: their mean is ln 2, the ratio 2 for both tokens."""
        logps, old, mask = _t([0.0, 2 * LN2, math.inf]), _t([0.0, 0.0, 0.0]), _t([1, 1, 0])
        found = clipped_policy_loss(logps, old, _t(1.0), mask, clip_low=0.2, clip_high=5.0, level="sequence")
        torch.testing.assert_close(found.ratio, _t([2.0, 2.0, 0.0]))
        torch.testing.assert_close(found.losses, _t([-2.0, -2.0, 0.0]))

    def test_at_sequence_level_the_gradient_is_that_of_the_sequence(self) -> None:
        """Mean of the token losses = the sequence's loss; d/d logp = -A · ratio / length on every token."""
        logps = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
        mask, old = torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.float64)
        found = clipped_policy_loss(logps, old, _t(2.0), mask, clip_low=0.1, clip_high=0.1, level="sequence")
        found.losses.mean().backward()
        torch.testing.assert_close(logps.grad, torch.full((1, 4), -0.5, dtype=torch.float64))

    @pytest.mark.parametrize("level", ["token", "sequence"])
    def test_finite_differences(self, level: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        logps, old = (0.1 * torch.randn(2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])

        def losses(values: Tensor) -> Tensor:
            return clipped_policy_loss(values, old, _t(1.0, -1.0), mask, clip_low=0.5, clip_high=0.5, level=level).losses

        assert torch.autograd.gradcheck(losses, [logps.requires_grad_()])

    @pytest.mark.parametrize("level", ["token", "sequence"])
    def test_parity_with_numpy(self, level: Any) -> None:
        rng = np.random.default_rng(4)
        logps, old, mask = rng.normal(-2, 0.3, (5, 6)), rng.normal(-2, 0.3, (5, 6)), rng.random((5, 6)) > 0.3
        mask[:, 0] = True
        advantages = rng.normal(size=5)
        log_ratio = np.where(mask, logps - old, 0)
        if level == "sequence":
            log_ratio = np.broadcast_to(log_ratio.sum(1, keepdims=True) / mask.sum(1, keepdims=True), mask.shape)
        ratio, weight = np.exp(log_ratio), advantages[:, None]
        expected = np.where(mask, -np.minimum(weight * ratio, weight * np.clip(ratio, 0.8, 1.28)), 0)
        found = clipped_policy_loss(
            *map(torch.from_numpy, (logps, old, advantages, mask)), clip_low=0.2, clip_high=0.28, level=level
        )
        np.testing.assert_allclose(found.losses.numpy(), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        "settings", [{"clip_low": 0.0}, {"clip_high": -1.0}, {"level": "word"}, {"dual_clip": 1.0}], ids=lambda value: str(value)
    )
    def test_settings_out_of_range(self, settings: dict[str, Any]) -> None:
        logps = torch.zeros(1, 2)
        with pytest.raises(ValueError, match="must be"):
            clipped_policy_loss(logps, logps, torch.zeros(1), torch.ones(1, 2), **{"clip_low": 0.2, "clip_high": 0.2, **settings})

    def test_shapes_that_would_broadcast_are_refused(self) -> None:
        logps = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="one shape"):
            clipped_policy_loss(logps, logps, torch.zeros(3), torch.ones(2, 3), clip_low=0.2, clip_high=0.2)


class TestK3:
    def test_by_hand(self) -> None:
        """The reference twice as likely: 2 - ln 2 - 1; half as likely: 1/2 + ln 2 - 1; equal: 0."""
        found = k3_kl(_t(-1.0, -1.0, -1.0), _t(-1.0 + LN2, -1.0 - LN2, -1.0))
        torch.testing.assert_close(found, _t(1 - LN2, LN2 - 0.5, 0.0))

    def test_its_mean_is_the_divergence(self) -> None:
        """Over all outcomes of a distribution, weighted by it: exact, as k3 adds a term of mean 0."""
        policy, reference = torch.softmax(_t(0.1, 1.0, -2.0), 0), torch.softmax(_t(0.5, 0.2, -1.0), 0)
        exact = (policy * (policy / reference).log()).sum()
        torch.testing.assert_close((policy * k3_kl(policy.log(), reference.log())).sum(), exact)

    def test_gradient_flows_through_the_policy_alone_and_stays_finite(self) -> None:
        logps, reference = _t(-1.0, -500.0).requires_grad_(), _t(-1.5, -1.0).requires_grad_()
        found = k3_kl(logps, reference)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert reference.grad is None
        # d/d logp of exp(d) - d - 1 with d = reference - logp
        torch.testing.assert_close(logps.grad, _t(1 - math.exp(-0.5), 0.0))

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="one shape"):
            k3_kl(torch.zeros(2, 3), torch.zeros(3))
