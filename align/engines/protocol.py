"""The interface of text generation engines: vLLM, and transformers for machines without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from align.engines.checksum import WeightChecksums
from align.errors import StageError
from align.models.finite import BROKEN_NUMBERS
from align.models.folder import ModelFolder
from align.records import FinishReason

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, as token ids, with the seed of its candidates (candidate i is sampled with seed + i)."""

    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` None means all."""

    temperature: float
    top_p: float
    top_k: int | None
    max_completion_tokens: int
    num_candidates: int
    stop_token_ids: tuple[int, ...]
    with_logps: bool = False
    """Also return the log-probability of every sampled token."""


@dataclass(frozen=True)
class SampledCompletion:
    """Sampled tokens, with the stop token where there is one."""

    token_ids: list[int]
    finish_reason: FinishReason
    logps: list[float] | None = None
    """Nats per token, under the distribution drawn from (after temperature, top-k and top-p); None without `with_logps`."""
    weights_version: int = 0
    """The number that came with the weights that drew every token, see `TextEngine.update_weights`; 0: those of a folder."""


class BrokenLogits(StageError):
    """A model's logits are NaN or infinite, though its weights are finite; from them, one token would be drawn for ever.

    `request` is the number of the request among those of the call.
    """

    request = 0

    @classmethod
    def of(cls, where: str, request: int, tokens: int) -> BrokenLogits:
        """The error of a model in `where`, whose completion of a request had so many tokens before."""
        error = cls(
            f"{where}: the model's logits are NaN or infinite after {tokens:,} tokens of a completion of prompt {request + 1:,}",
            hint=BROKEN_NUMBERS,
        )
        error.request = request
        return error


class TextEngine(Protocol):
    """A loaded model that continues prompts."""

    name: str
    version: str

    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        """`settings.num_candidates` completions for every request, in the order of the requests.

        On a CPU the same requests in the same order give the same tokens, whatever was generated before.

        Raises:
            BrokenLogits: if the model gives logits from which no token can be drawn.
        """
        ...

    def load_weights(self, model_folder: ModelFolder) -> None:
        """Replace the weights by those of another model of the same architecture and vocabulary."""
        ...

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replace all weights, given by their names in the model's folder; tied weights are given once.

        They are taken one at a time, so an iterator may make each when it is asked for the next.

        Args:
            version: a number for these weights, which every completion that they draw carries.
        """
        ...

    def weight_checksums(self) -> WeightChecksums:
        """Of the weights that completions are computed with, read from where they are computed with."""
        ...

    def sleep(self) -> None:
        """Lend most of the memory to what shares the device. The weights are gone: `wake_up` and `update_weights` come next.

        An engine that cannot do so, as on a CPU, does nothing.
        """
        ...

    def wake_up(self) -> None:
        """Take the memory back; nothing is generated before new weights are there."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...
