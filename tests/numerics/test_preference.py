"""DPO and ORPO losses against values worked by hand, an independent implementation, and finite differences."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from align.losses import DpoVariant, dpo_loss, kto_loss, orpo_loss, reward_model_loss, simpo_loss
from align.losses.dpo import tail_weights

LN2, LN3 = math.log(2), math.log(3)


def _t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestDpoByHand:
    """Policy: chosen -10, rejected -14. Reference: chosen -11, rejected -13. h = (-10 + 14) - (-11 + 13) = 2."""

    INPUTS = (_t(-10.0), _t(-14.0), _t(-11.0), _t(-13.0))

    def test_sigmoid(self) -> None:
        """beta = ln 3 / 2: beta h = ln 3, sigmoid = 3/4, loss = ln(4/3). Rewards: beta (-10 + 11) and beta (-14 + 13)."""
        losses, chosen, rejected = dpo_loss(*self.INPUTS, beta=LN3 / 2)
        torch.testing.assert_close(losses, _t(math.log(4 / 3)))
        torch.testing.assert_close(chosen, _t(LN3 / 2))
        torch.testing.assert_close(rejected, _t(-LN3 / 2))

    def test_label_smoothing(self) -> None:
        """eps = 0.1: 0.9 ln(4/3) + 0.1 ln 4."""
        losses = dpo_loss(*self.INPUTS, beta=LN3 / 2, label_smoothing=0.1).losses
        torch.testing.assert_close(losses, _t(0.9 * math.log(4 / 3) + 0.1 * math.log(4)))

    @pytest.mark.parametrize(("beta", "expected"), [(0.2, 0.6), (0.5, 0.0), (1.0, 0.0)])
    def test_hinge(self, beta: float, expected: float) -> None:
        """max(0, 1 - 2 beta)."""
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=beta, variant="hinge").losses, _t(expected))

    @pytest.mark.parametrize(("beta", "expected"), [(0.25, 0.0), (0.5, 1.0), (0.1, 9.0)])
    def test_ipo(self, beta: float, expected: float) -> None:
        """(2 - 1 / (2 beta))²: the targets are 2, 1 and 5."""
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=beta, variant="ipo").losses, _t(expected))

    def test_sigmoid_norm(self) -> None:
        """The sigmoid itself; that the inputs are averages is the caller's part."""
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=LN3 / 2, variant="sigmoid_norm").losses, _t(math.log(4 / 3)))

    def test_robust(self) -> None:
        """eps = 0.1: (0.9 ln(4/3) - 0.1 ln 4) / 0.8. Without smoothing DPO itself."""
        robust = dpo_loss(*self.INPUTS, beta=LN3 / 2, label_smoothing=0.1, variant="robust").losses
        torch.testing.assert_close(robust, _t((0.9 * math.log(4 / 3) - 0.1 * math.log(4)) / 0.8))
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=LN3 / 2, variant="robust").losses, _t(math.log(4 / 3)))

    def test_apo_zero(self) -> None:
        """c = 1, r = -1, beta = ln 3: 1 - 3/4 + 1/4."""
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=LN3, variant="apo_zero").losses, _t(0.5))

    def test_apo_down(self) -> None:
        """beta = ln 3: sigmoid(ln 3) + 1 - sigmoid(2 ln 3) = 3/4 + 1 - 9/10."""
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=LN3, variant="apo_down").losses, _t(0.85))

    def test_sppo_hard(self) -> None:
        """beta = 0.25: targets 2 and -2, (1 - 2)² + (-1 + 2)²."""
        torch.testing.assert_close(dpo_loss(*self.INPUTS, beta=0.25, variant="sppo_hard").losses, _t(2.0))

    def test_exchanging_any_two_inputs_shows(self) -> None:
        """A flipped sign or a confused role must not go unnoticed: all other orders that change h change the loss."""
        chosen, rejected, reference_chosen, reference_rejected = self.INPUTS
        base = dpo_loss(*self.INPUTS, beta=0.5).losses
        for order in (
            (rejected, chosen, reference_chosen, reference_rejected),  # h = -6
            (chosen, rejected, reference_rejected, reference_chosen),  # h = 6
            (reference_chosen, reference_rejected, chosen, rejected),  # h = -2
        ):
            assert not torch.allclose(dpo_loss(*order, beta=0.5).losses, base)


@pytest.mark.parametrize("variant", get_args(DpoVariant))
def test_at_step_zero_the_policy_is_the_reference(variant: DpoVariant) -> None:
    """h = 0: ln 2, 1, and 1 / (4 beta²) = 25 for beta = 0.1 (twice that for sppo_hard); all rewards are 0."""
    chosen, rejected = torch.tensor([-300.5, -1.0]), torch.tensor([-2.0, -77.25])
    losses, chosen_rewards, rejected_rewards = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1, variant=variant)
    known = {"hinge": 1.0, "ipo": 25.0, "apo_zero": 1.0, "apo_down": 1.0, "sppo_hard": 50.0}
    expected = known.get(variant, LN2)
    torch.testing.assert_close(losses, torch.full((2,), expected), rtol=1e-6, atol=1e-6)
    assert not chosen_rewards.any()
    assert not rejected_rewards.any()


def test_tokens_beyond_the_shorter_completion_count_less() -> None:
    """Chosen 2 and 3 tokens, rejected 4 and 1: the third and fourth of the first rejected one, the second and third of the second
    chosen one."""
    weights = tail_weights(torch.tensor([2, 3, 4, 1]), 0.25)
    assert weights.tolist() == [1, 1, 1, 0.25, 0.25, 1, 1, 0.25, 0.25, 1]


def _numpy_dpo(pc: Any, pr: Any, rc: Any, rr: Any, *, beta: float, label_smoothing: float, variant: str) -> Any:
    """The formulas of TRL's DPOTrainer, written for numpy without a stable logarithm: an independent second opinion."""
    logits = (pc - pr) - (rc - rr)
    if variant in ("sigmoid", "sigmoid_norm"):
        sigmoid = 1 / (1 + np.exp(-beta * logits))
        return -np.log(sigmoid) * (1 - label_smoothing) - np.log(1 - sigmoid) * label_smoothing
    if variant == "hinge":
        return np.maximum(1 - beta * logits, 0)
    if variant == "robust":
        sigmoid = 1 / (1 + np.exp(-beta * logits))
        clean, flipped = -(1 - label_smoothing) * np.log(sigmoid), -label_smoothing * np.log(1 - sigmoid)
        return (clean - flipped) / (1 - 2 * label_smoothing)
    chosen, rejected = (1 / (1 + np.exp(-beta * ratio)) for ratio in (pc - rc, pr - rr))
    if variant == "apo_zero":
        return (1 - chosen) + rejected
    if variant == "apo_down":
        return chosen + 1 - 1 / (1 + np.exp(-beta * logits))
    if variant == "sppo_hard":
        return (pc - rc - 0.5 / beta) ** 2 + (pr - rr + 0.5 / beta) ** 2
    return (logits - 1 / (2 * beta)) ** 2


@pytest.mark.parametrize(
    ("variant", "label_smoothing"), [*((variant, 0.0) for variant in get_args(DpoVariant)), ("sigmoid", 0.2), ("robust", 0.2)]
)
@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_parity_with_an_independent_implementation(variant: DpoVariant, beta: float, label_smoothing: float) -> None:
    inputs = np.random.default_rng(0).normal(-20, 5, size=(4, 64))
    ours = dpo_loss(*torch.from_numpy(inputs), beta=beta, label_smoothing=label_smoothing, variant=variant)
    expected = _numpy_dpo(*inputs, beta=beta, label_smoothing=label_smoothing, variant=variant)
    np.testing.assert_allclose(ours.losses.numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(ours.chosen_rewards.numpy(), beta * (inputs[0] - inputs[2]), rtol=1e-12)
    np.testing.assert_allclose(ours.rejected_rewards.numpy(), beta * (inputs[1] - inputs[3]), rtol=1e-12)


@pytest.mark.parametrize("variant", get_args(DpoVariant))
def test_dpo_gradient(variant: DpoVariant) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(4)]
    policy = [tensor.requires_grad_() for tensor in inputs[:2]]
    assert torch.autograd.gradcheck(lambda c, r: dpo_loss(c, r, *inputs[2:], beta=0.3, variant=variant).losses, policy)


def test_dpo_pushes_chosen_up_and_rejected_down_and_rewards_carry_no_gradient() -> None:
    """At h = 0 the gradient is -beta / 2 on the chosen and +beta / 2 on the rejected log-probability."""
    chosen, rejected = torch.tensor([-5.0], requires_grad=True), torch.tensor([-6.0], requires_grad=True)
    result = dpo_loss(chosen, rejected, torch.tensor([-5.0]), torch.tensor([-6.0]), beta=0.1)
    result.losses.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.05]))
    torch.testing.assert_close(rejected.grad, torch.tensor([0.05]))
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad


def test_dpo_is_finite_for_extreme_margins_and_keeps_rows_apart() -> None:
    """beta h = -1e4 costs 1e4, +1e4 costs 0; a NaN stays in its row."""
    policy = torch.tensor([-1e5, 0.0, math.nan, 0.0], requires_grad=True)
    zero = torch.zeros(4)
    reference = torch.tensor([0.0, -1e5, 0.0, 0.0])
    losses = dpo_loss(policy, zero, reference, zero, beta=0.1).losses
    torch.testing.assert_close(losses[[0, 1, 3]], torch.tensor([1e4, 0.0, LN2]))
    assert losses[2].isnan()
    losses.sum().backward()
    assert policy.grad is not None
    assert policy.grad[[0, 1, 3]].isfinite().all()


def test_dpo_in_half_precision_is_computed_in_float32() -> None:
    half = torch.tensor([-300.0], dtype=torch.bfloat16)
    losses = dpo_loss(half, half, half, half, beta=0.1).losses
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.tensor([LN2]))


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": -0.1},
        {"beta": math.nan},
        {"beta": 0.1, "label_smoothing": 0.5},
        {"beta": 0.1, "label_smoothing": -0.1},
        {"beta": 0.1, "label_smoothing": 0.1, "variant": "ipo"},
        {"beta": 0.1, "variant": "sigmoïd"},
    ],
)
def test_dpo_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"beta|label_smoothing|variant"):
        dpo_loss(_t(0.0), _t(0.0), _t(0.0), _t(0.0), **options)


def test_batches_that_differ_are_not_broadcast() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match="one size"):
        dpo_loss(two, two, one, one, beta=0.1)
    with pytest.raises(ValueError, match="one size"):
        orpo_loss(two, two, one, odds_ratio_weight=0.1)
    with pytest.raises(ValueError, match="one size"):
        reward_model_loss(two, one)


def test_an_empty_batch_is_empty() -> None:
    empty = torch.zeros(0)
    assert dpo_loss(empty, empty, empty, empty, beta=0.1).losses.shape == (0,)
    assert orpo_loss(empty, empty, empty, odds_ratio_weight=0.1).losses.shape == (0,)
    assert reward_model_loss(empty, empty).shape == (0,)


class TestOrpo:
    def test_by_hand(self) -> None:
        """p(chosen) = 3/4: odds 3. p(rejected) = 1/2: odds 1. log odds = ln 3, -log sigmoid(ln 3) = ln(4/3).

        With nll 2 and weight 0.1: 2 + 0.1 ln(4/3).
        """
        result = orpo_loss(_t(math.log(0.75)), _t(math.log(0.5)), _t(2.0), odds_ratio_weight=0.1)
        torch.testing.assert_close(result.log_odds, _t(LN3))
        torch.testing.assert_close(result.odds_ratio_losses, _t(math.log(4 / 3)))
        torch.testing.assert_close(result.losses, _t(2 + 0.1 * math.log(4 / 3)))

    def test_exchanged_completions_show(self) -> None:
        """-log sigmoid(-ln 3) = ln 4."""
        result = orpo_loss(_t(math.log(0.5)), _t(math.log(0.75)), _t(0.0), odds_ratio_weight=1.0)
        torch.testing.assert_close(result.losses, _t(math.log(4)))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("logps", [0.0, -1e-9, -1e-4, -0.6931, -0.6932, -5.0, -80.0, -1e4])
    def test_finite_with_a_finite_gradient_at_both_ends(self, dtype: torch.dtype, logps: float) -> None:
        chosen = torch.tensor([logps], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([-1.0], dtype=dtype, requires_grad=True)
        result = orpo_loss(chosen, rejected, torch.tensor([1.0], dtype=dtype), odds_ratio_weight=0.1)
        result.losses.sum().backward()
        assert result.losses.dtype == torch.float32
        assert result.losses.isfinite().all()
        for gradient in (chosen.grad, rejected.grad):
            assert gradient is not None
            assert gradient.isfinite().all()

    def test_log_odds_are_exact_near_both_ends(self) -> None:
        """log p - log(1 - p) with 1 - p = -expm1(log p), in Python's own doubles."""
        for logps in (-1e-6, -1e-3, -0.5, -0.7, -3.0, -30.0):
            expected = logps - math.log(-math.expm1(logps))
            result = orpo_loss(_t(logps), _t(-LN2), _t(0.0), odds_ratio_weight=0.0)  # odds of 1/2 are 1, their log 0
            assert result.log_odds.item() == pytest.approx(expected, rel=1e-9)

    def test_log_odds_rise_with_the_probability(self) -> None:
        values = [
            orpo_loss(_t(x), _t(-1.0), _t(0.0), odds_ratio_weight=0.0).log_odds.item() for x in (-9, -2, -0.7, -0.69, -0.1, 0)
        ]
        assert all(low < high for low, high in pairwise(values))

    def test_gradient(self) -> None:
        chosen, rejected = _t(-0.2, -0.9, -3.0).requires_grad_(), _t(-1.5, -0.3, -0.7).requires_grad_()
        nll = _t(1.0, 2.0, 3.0).requires_grad_()
        assert torch.autograd.gradcheck(lambda *x: orpo_loss(*x, odds_ratio_weight=0.7).losses, (chosen, rejected, nll))

    def test_a_negative_weight(self) -> None:
        with pytest.raises(ValueError, match="odds_ratio_weight"):
            orpo_loss(_t(-1.0), _t(-1.0), _t(0.0), odds_ratio_weight=-1)


class TestRewardModel:
    def test_by_hand(self) -> None:
        """Scores ln 3 and 0: sigmoid = 3/4, ln(4/3). Equal scores: ln 2. Exchanged: ln 4."""
        losses = reward_model_loss(_t(LN3, 5.0, 0.0), _t(0.0, 5.0, LN3))
        torch.testing.assert_close(losses, _t(math.log(4 / 3), LN2, math.log(4)))

    def test_margin(self) -> None:
        """ln 3 above with a margin of ln 3 is only as good as equal: ln 2."""
        torch.testing.assert_close(reward_model_loss(_t(LN3), _t(0.0), margin=_t(LN3)), _t(LN2))

    def test_centring(self) -> None:
        """(1 + 2)² · 0.01 = 0.09 is added."""
        difference = reward_model_loss(_t(1.0), _t(2.0), center_coef=0.01) - reward_model_loss(_t(1.0), _t(2.0))
        torch.testing.assert_close(difference, _t(0.09))

    def test_gradient(self) -> None:
        chosen, rejected = _t(0.5, -1.0).requires_grad_(), _t(0.1, 2.0).requires_grad_()
        margin = _t(0.3, 0.0)
        assert torch.autograd.gradcheck(lambda c, r: reward_model_loss(c, r, margin=margin, center_coef=0.1), (chosen, rejected))

    def test_extremes_and_half_precision(self) -> None:
        losses = reward_model_loss(torch.tensor([-3e4], dtype=torch.float16), torch.tensor([3e4], dtype=torch.float16))
        torch.testing.assert_close(losses, torch.tensor([6e4]), rtol=1e-3, atol=0)

    def test_a_negative_coefficient(self) -> None:
        with pytest.raises(ValueError, match="center_coef"):
            reward_model_loss(_t(0.0), _t(0.0), center_coef=-1)


def test_robust_is_the_loss_of_right_labels_on_average() -> None:
    """Chowdhury et al. 2024: with a share eps of flipped labels, the mean of the robust loss is DPO's on labels without flips."""
    chosen, rejected, reference = _t(-3.0, -8.0), _t(-5.0, -6.5), _t(-4.0, -7.0)
    right = dpo_loss(chosen, rejected, reference, reference, beta=0.7).losses
    as_given, flipped = (
        dpo_loss(*pair, reference, reference, beta=0.7, label_smoothing=0.2, variant="robust").losses
        for pair in ((chosen, rejected), (rejected, chosen))
    )
    torch.testing.assert_close(0.8 * as_given + 0.2 * flipped, right)


class TestSimpo:
    def test_by_hand(self) -> None:
        """Averages -1 and -2, beta 2, gamma 2 - ln 3: the logit is ln 3, the loss ln(4/3). Rewards -2 and -4."""
        losses, chosen, rejected = simpo_loss(_t(-1.0), _t(-2.0), beta=2.0, gamma=2 - LN3)
        torch.testing.assert_close(losses, _t(math.log(4 / 3)))
        assert (chosen.item(), rejected.item()) == (-2.0, -4.0)

    def test_parity_with_numpy(self) -> None:
        chosen, rejected = np.random.default_rng(1).normal(-2, 1, size=(2, 64))
        ours = simpo_loss(torch.from_numpy(chosen), torch.from_numpy(rejected), beta=2.5, gamma=1.4)
        expected = -np.log(1 / (1 + np.exp(-(2.5 * (chosen - rejected) - 1.4))))
        np.testing.assert_allclose(ours.losses.numpy(), expected, rtol=1e-9)

    def test_gradient(self) -> None:
        inputs = [torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(2)]
        assert torch.autograd.gradcheck(lambda c, r: simpo_loss(c, r, beta=2.0, gamma=0.5).losses, inputs)

    @pytest.mark.parametrize("settings", [{"beta": 0.0, "gamma": 0.5}, {"beta": 2.0, "gamma": -0.1}])
    def test_settings_out_of_range(self, settings: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must be"):
            simpo_loss(_t(-1.0), _t(-2.0), **settings)


class TestKto:
    """Policy -10 and -14, reference -12 and -13: log ratios 2 and -1; KL 1."""

    INPUTS = (_t(-10.0, -14.0), _t(-12.0, -13.0), torch.tensor([True, False]))

    def test_by_hand(self) -> None:
        """beta = ln 3: 1 - sigmoid(ln 3 (2 - 1)) = 1/4; 1 - sigmoid(ln 3 (1 + 1)) = 1/10. Rewards 2 ln 3 and -ln 3."""
        losses, rewards = kto_loss(*self.INPUTS, 1.0, beta=LN3)
        torch.testing.assert_close(losses, _t(0.25, 0.1))
        torch.testing.assert_close(rewards, _t(2 * LN3, -LN3))

    def test_weights(self) -> None:
        losses = kto_loss(*self.INPUTS, 1.0, beta=LN3, desirable_weight=2.0, undesirable_weight=0.5).losses
        torch.testing.assert_close(losses, _t(0.5, 0.05))

    def test_the_labels_decide_the_direction(self) -> None:
        exchanged = kto_loss(self.INPUTS[0], self.INPUTS[1], ~self.INPUTS[2], 1.0, beta=LN3).losses
        torch.testing.assert_close(exchanged, _t(0.75, 0.9))

    def test_no_gradient_flows_through_kl(self) -> None:
        policy = self.INPUTS[0].clone().requires_grad_()
        kl = (policy.sum() * 0 + 1.0).clamp(min=0)
        kto_loss(policy, *self.INPUTS[1:], kl, beta=LN3).losses.sum().backward()
        # -beta · s · (1 - s) of the desirable one with s = 3/4, and +beta · s · (1 - s) of the other with s = 9/10
        torch.testing.assert_close(policy.grad, _t(-LN3 * 3 / 16, LN3 * 9 / 100))

    def test_gradient(self) -> None:
        policy = torch.randn(6, dtype=torch.float64).requires_grad_()
        reference, desirable = torch.randn(6, dtype=torch.float64), torch.tensor([True, False] * 3)
        assert torch.autograd.gradcheck(lambda p: kto_loss(p, reference, desirable, 0.3, beta=0.5).losses, [policy])

    def test_bfloat16_is_widened(self) -> None:
        policy, reference, desirable = self.INPUTS
        losses = kto_loss(policy.bfloat16(), reference.bfloat16(), desirable, 1.0, beta=0.1).losses
        assert losses.dtype == torch.float32

    @pytest.mark.parametrize(
        ("kl", "settings"), [(-0.1, {}), (math.nan, {}), (0.1, {"beta": 0.0}), (0.1, {"desirable_weight": 0.0})]
    )
    def test_settings_out_of_range(self, kl: float, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be"):
            kto_loss(*self.INPUTS, kl, **{"beta": 0.1, **settings})
