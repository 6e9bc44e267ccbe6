"""Learning rates that are usual, by method and by what is trained: what `plan`, a run and `doctor` measure a recipe's against.

The bounds are the outermost of what is published for models of that size, a little widened; the sources are beside them. They are
no proof that a rate is wrong, only that nobody who published a recipe used it.
"""

from __future__ import annotations

from dataclasses import dataclass

TOY_PARAMETERS = 100_000_000
"""Smaller models want rates of their own, of which nothing is published: they are not measured."""
SMALL_PARAMETERS = 500_000_000
HIGHEST_RATE = 1.0
"""Of weights and adapters. At its first steps, Adam moves every weight by about the rate: above this, nothing is learnt."""
DOUBTFUL_RATE = 0.1
"""Above this, training diverges as a rule, whatever the size of the model."""


@dataclass(frozen=True)
class UsualRates:
    """The usual learning rates of one method."""

    low: float
    high: float
    start: float
    """One to start with."""

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


_FULL = {
    # Tülu 3 8B and NeMo-RL's Llama-3.2-1B 5e-6; SmolLM3-3B, Zephyr-7B and prime-rl's Qwen3-0.6B 2e-5; OLMo-2-1B 3e-5;
    # OLMo-3-7B 8e-5. Outside: SmolLM2-1.7B, 3e-4.
    "sft": UsualRates(2e-6, 8e-5, 2e-5),
    # Tülu 3 8B 3e-6; InstructGPT 6B 9e-6.
    "reward_model": UsualRates(1e-6, 3e-5, 1e-5),
    # OLMo-3-7B-Think 8e-8; Tülu 3 70B 2e-7, 8B 5e-7; SmolLM2, SmolLM3, OLMo-3-7B 1e-6; OLMo-2-1B 2.5e-6; NeMo-RL's Llama-3.2-1B
    # 5e-6; Llama 3 1e-5.
    "dpo": UsualRates(5e-8, 1e-5, 1e-6),
    # Zephyr-ORPO-141B 5e-6; Hong et al. 2024 8e-6; align's default 2e-5.
    "orpo": UsualRates(1e-6, 2e-5, 8e-6),
    # Meng et al. 2024 3e-7 to 1e-6 for 7 to 9 billion parameters.
    "simpo": UsualRates(5e-8, 5e-6, 6e-7),
    # Ethayarajh et al. 2024 5e-7 to 5e-6 for 1 to 30 billion parameters; TRL's default 1e-6.
    "kto": UsualRates(5e-8, 1e-5, 1e-6),
    # Tülu 3 8B 3e-7; OLMo-2-1B 5e-7; DAPO 1e-6; NeMo-RL's 1B models 5e-6; align's default 1e-5.
    "ppo": UsualRates(1e-7, 1e-5, 1e-6),
    # OLMo-2-1B 5e-7; OLMo-3-7B, Qwen3-4B and DAPO 1e-6; prime-rl's Qwen3-0.6B 3e-6; NeMo-RL's 1B models 5e-6.
    "grpo": UsualRates(1e-7, 1e-5, 1e-6),
    # Ahmadian et al. 2024 and TRL's default 1e-6.
    "rloo": UsualRates(1e-7, 1e-5, 1e-6),
    # TRL's default 1e-6; the bounds are those of the other online methods.
    "distill": UsualRates(1e-7, 1e-5, 1e-6),
}
# SmolLM2-135M and 360M 1e-3.
_SMALL_SFT = UsualRates(1e-5, 1e-3, 1e-4)
# Ten times those of all weights, as adapters want; Zephyr-7B's QLoRA has 2e-4 (sft) and 5e-6 (dpo), QLoRA's authors 1e-4 to 2e-4.
_LORA = {
    "sft": UsualRates(2e-5, 8e-4, 2e-4),
    "reward_model": UsualRates(1e-5, 3e-4, 1e-4),
    "dpo": UsualRates(5e-7, 1e-4, 5e-6),
    "orpo": UsualRates(1e-5, 2e-4, 5e-5),
    "simpo": UsualRates(5e-7, 5e-5, 6e-6),
    "kto": UsualRates(5e-7, 1e-4, 5e-6),
    "ppo": UsualRates(1e-6, 1e-4, 1e-5),
    "grpo": UsualRates(1e-6, 1e-4, 1e-5),
    "rloo": UsualRates(1e-6, 1e-4, 1e-5),
    "distill": UsualRates(1e-6, 1e-4, 1e-5),
}
METHODS = tuple(_FULL)


def usual_rates(method: str, parameters: int, *, adapter: bool) -> UsualRates | None:
    """The usual learning rates; None for toys, and for a method of which none are known.

    Args:
        method: type of the stage.
        parameters: of the whole model, whatever part of them is trained.
        adapter: whether LoRA or QLoRA is trained in place of all weights.
    """
    if parameters < TOY_PARAMETERS:
        return None
    if method == "sft" and not adapter and parameters < SMALL_PARAMETERS:
        return _SMALL_SFT
    return (_LORA if adapter else _FULL).get(method)
