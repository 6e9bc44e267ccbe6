"""The public names of align.losses and their signatures: people build on them."""

from __future__ import annotations

import inspect

import pytest

from align import losses

SIGNATURES = {
    "sequence_logps": "(logits, labels, *, average)",
    "dpo_loss": "(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, "
    "*, beta, label_smoothing, variant)",
    "orpo_loss": "(chosen_average_logps, rejected_average_logps, chosen_nll, *, odds_ratio_weight)",
    "reward_model_loss": "(chosen_scores, rejected_scores, *, margin, center_coef)",
    "kl_penalized_rewards": "(scores, logps, reference_logps, mask, *, kl_coef)",
    "generalized_advantages": "(rewards, values, mask, *, gamma, gae_lambda)",
    "generalized_jsd_loss": "(student_logits, teacher_logits, *, beta, temperature)",
    "masked_whiten": "(values, mask, *, shift_mean)",
    "simpo_loss": "(chosen_average_logps, rejected_average_logps, *, beta, gamma)",
    "kto_loss": "(policy_logps, reference_logps, desirable, kl, *, beta, desirable_weight, undesirable_weight)",
    "group_advantages": "(scores, *, group_size, scale, baseline, epsilon)",
    "clipped_policy_loss": "(logps, old_logps, advantages, mask, *, clip_low, clip_high, level, dual_clip)",
    "k3_kl": "(logps, reference_logps)",
    "ppo_policy_loss": "(logps, old_logps, advantages, mask, *, cliprange, dual_clip)",
    "ppo_value_loss": "(values, old_values, returns, mask, *, cliprange_value)",
}
FIELDS = {
    "PreferenceLoss": ("losses", "chosen_rewards", "rejected_rewards"),
    "KtoLoss": ("losses", "rewards"),
    "OrpoLoss": ("losses", "odds_ratio_losses", "log_odds"),
    "Advantages": ("advantages", "returns"),
    "PolicyLoss": ("losses", "ratio", "clipped", "approx_kl"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    keyword_only = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    positional = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert f"({', '.join([*positional, *(['*'] if keyword_only else []), *keyword_only])})" == SIGNATURES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    assert getattr(losses, name)._fields == FIELDS[name]


def test_everything_exported_exists_and_nothing_else_is_public() -> None:
    assert set(losses.__all__) == {*SIGNATURES, *FIELDS, "DpoVariant"}
    assert all(hasattr(losses, name) for name in losses.__all__)
