"""Parameter-efficient fine-tuning: the `peft:` field of the stages that train."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from align.config.base import StrictModel


class Lora(StrictModel):
    """A product of two small matrices added to every chosen linear layer (Hu et al. 2021).

    qlora keeps the base model in 4 bits, NF4 with double quantisation (Dettmers et al. 2023), and trains the same.
    """

    method: Literal["lora", "qlora"]
    """lora, or qlora: the same over a base model of 4 bits a weight."""
    rank: int = Field(default=16, ge=1)
    """Inner dimension of the product; at most that of the smallest layer it is added to."""
    alpha: float | None = Field(default=None, gt=0)
    """The product is scaled by alpha / rank. Default: twice the rank."""
    target_modules: Literal["all_linear"] | Annotated[list[str], Field(min_length=1)] = "all_linear"
    """Names of the layers, such as [q_proj, v_proj]; all_linear is every linear layer but the head."""

    @property
    def scaling(self) -> float:
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


class VirtualTokens(StrictModel):
    """Trained vectors in front of every prompt; the model itself is not touched."""

    method: Literal["prefix_tuning", "prompt_tuning"]
    """prefix_tuning: keys and values of every layer (Li & Liang 2021); prompt_tuning: embeddings (Lester et al. 2021)."""
    num_virtual_tokens: int = Field(default=20, ge=1)
    """Number of virtual tokens; they count towards the model's context."""


Peft = Annotated[Lora | VirtualTokens, Field(discriminator="method")]


class AnyPeft(StrictModel):
    """For stages that run one sequence a row."""

    peft: Peft | None = None
    """Train an adapter instead of every weight: {method: lora | qlora | prefix_tuning | prompt_tuning, …}."""


class LoraOnly(AnyPeft):
    """For stages that virtual tokens cannot serve."""

    peft: Lora | None = None  # type: ignore[assignment]  # narrower, which is safe in a frozen model
    """Train an adapter instead of every weight: {method: lora | qlora, …}."""

    @field_validator("peft", mode="before")
    @classmethod
    def _no_virtual_tokens(cls, value: Any) -> Any:
        # Before the types are checked: pydantic would only say that the method must be lora or qlora.
        method = value.get("method") if isinstance(value, dict) else None
        if method in ("prefix_tuning", "prompt_tuning"):
            raise ValueError(f"{method} cannot be used here: {cls._why_no_virtual_tokens()}; use lora or qlora")
        return value

    @classmethod
    def _why_no_virtual_tokens(cls) -> str:
        raise NotImplementedError
