"""Finds out before training, on the real pairs, which form of batch a model can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align.models.attention import IMPLEMENTATION, takes_segments
from align.models.sizes import DENSE_MASK_TOKENS, PAIR_ROW_TOKENS
from align.models.virtual_tokens import virtual_tokens_of
from align.runtime.context import RunContext
from align.runtime.device import out_of_memory
from align.training.pairwise.collator import PairCollator, TrainingPair
from align.training.pairwise.trainer import layout_of
from align.training.pairwise.training_pairs import TrainingPairs, pair_lengths

# Attention that takes a mask of which token sees which; others take only a mask of the padding.
TAKES_ANY_MASK = (IMPLEMENTATION, "sdpa", "eager")
PROBED_PAIRS = 4
# Largest difference between the two forms, as a share of the outputs' root mean square, by the type of the weights. Rounding
# stays under a tenth of it in float32, a third in bfloat16; a window that cuts off a prompt, or a state that runs on from chosen
# to rejected, is far above.
TOLERANCE = {torch.float32: 3e-4, torch.bfloat16: 3e-2}


def choose_collator(
    model: Any, pairs: Sequence[TrainingPair], context: RunContext, *, pad_token_id: int, with_prompts: bool = False
) -> PairCollator:
    """The shared-prompt form if the model gives the same numbers in it, on the longest and a few other pairs; else the padded.

    Args:
        model: on the device that it is trained on, in eval mode, without autocast, after `prepare_model`.
        with_prompts: see `PairCollator`.
    """
    device = next(model.parameters()).device
    layout: dict[str, Any] = {
        "pad_token_id": pad_token_id,
        "row_tokens": PAIR_ROW_TOKENS.get(device.type, PAIR_ROW_TOKENS["cuda"]),
        "with_prompts": with_prompts,
        "multiple_of": 1 if device.type == "cpu" else 8,
    }
    shared, padded = PairCollator(form="shared_prompt", **layout), PairCollator(form="padded", **layout)
    if virtual_tokens_of(model) is not None:
        return padded  # they stand in front of every row, and belong in front of every prompt
    problem = _difference(model, shared, padded, _sample(pairs))
    if problem is None:
        return shared
    context.note(f"batches repeat the prompt for each completion (slower, same result): {problem}")
    return padded


def _sample(pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """The pair with the longest side, where a window would cut most, and others of every length."""
    if isinstance(pairs, TrainingPairs):
        longest = pairs[int(pairs.tokens.measures["longest"].argmax())]
    else:
        longest = max(pairs, key=_longer_side)
    lengths = pair_lengths(pairs)
    others = sorted(range(len(pairs)), key=lambda place: lengths[place])
    step = max(1, len(others) // (PROBED_PAIRS - 1))
    return [longest, *(pairs[place] for place in others[step // 2 :: step][: PROBED_PAIRS - 1])]


def _longer_side(pair: TrainingPair) -> int:
    return len(pair.tokens.prompt_token_ids) + max(len(pair.tokens.chosen_token_ids), len(pair.tokens.rejected_token_ids))


@torch.no_grad()
def _difference(model: Any, shared: PairCollator, padded: PairCollator, pairs: Sequence[TrainingPair]) -> str | None:
    """Why the shared form cannot be used, or None."""
    attention = model.config._attn_implementation
    if attention not in TAKES_ANY_MASK:
        return f"attention '{attention}' takes no mask of single tokens"
    longest = max(map(len, pairs))
    if not takes_segments(model) and longest > DENSE_MASK_TOKENS["cuda"]:
        return f"a pair has {longest:,} tokens, and attention '{attention}' needs a mask that grows with their square"
    device = next(model.parameters()).device

    def outputs(collator: PairCollator) -> torch.Tensor:
        return model(layout=layout_of(collator(pairs), device))  # type: ignore[no-any-return]

    expected = outputs(padded)
    try:
        found = outputs(shared)
    except Exception as error:  # models raise anything when given a mask that they do not support
        if out_of_memory(error) is not None:
            raise
        return f"the model cannot take the mask ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    scale = expected.square().mean().sqrt()
    difference = float((found - expected).abs().max() / scale)
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    return None if difference <= tolerance else f"with a shared prompt its outputs differ by {difference:.1e} of their size"
