"""Log-probabilities under the reference, which runs once, before training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from align.data.encoding import EncodedPreference
from align.data.stored_tokens import LazyRows
from align.errors import StageError
from align.models.load import load_causal_lm
from align.models.sizes import FORWARD_TOKENS
from align.models.trainable import TrainableModel
from align.models.virtual_tokens import without_virtual_tokens
from align.runtime.context import RunContext
from align.runtime.device import free_memory, frozen_dtype
from align.runtime.group import all_of
from align.runtime.profile import phase
from align.scoring.batching import length_sorted_batches, run_batches
from align.stage import StageContext
from align.store.artifact import Artifact
from align.training.pairwise.collator import PairCollator, TrainingPair, shared_length
from align.training.pairwise.mask_probe import choose_collator
from align.training.pairwise.reference_store import ReferenceLogps, cached_reference_logps, reference_result
from align.training.pairwise.trainer import layout_of, prepare_model
from align.training.pairwise.training_pairs import TrainingPairs
from align.training.weights_of_first import weights_of_first


def reference_of_another_model(
    context: StageContext[Any], reference: Artifact, rows: TrainingPairs, *, pad_token_id: int, precision: str
) -> TrainingPairs:
    """The rows with the log-probabilities of a model that is not the policy. Its memory is freed before the policy is loaded."""

    def load() -> tuple[Any, PairCollator]:
        with weights_of_first(context.spread):
            loaded = load_causal_lm(reference.model_path, dtype=frozen_dtype(precision))
        model = prepare_model(loaded, tail_weight=context.config.tail_weight, spread=context.spread)
        return model, choose_collator(model, rows, context, pad_token_id=pad_token_id)

    found = _add_reference(context, reference, rows, load, precision=precision, weights=frozen_dtype(precision))
    free_memory()
    return found


def reference_of_the_policy(
    context: StageContext[Any],
    reference: Artifact,
    rows: TrainingPairs,
    model: Any,
    collator: PairCollator,
    policy: TrainableModel,
    *,
    precision: str,
) -> TrainingPairs:
    """The rows with the log-probabilities of the policy before its first step, so that no second copy is ever in memory.

    A new LoRA changes nothing yet. New virtual tokens do, so the model is run without them.
    """
    with without_virtual_tokens(model) if policy.changes_initial_policy else contextlib.nullcontext():
        load = lambda: (model, collator)  # noqa: E731
        weights = "nf4" if policy.is_quantized else str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        return _add_reference(context, reference, rows, load, precision=precision, weights=weights)


def _add_reference(
    context: StageContext[Any],
    reference: Artifact,
    rows: TrainingPairs,
    load: Callable[[], tuple[Any, PairCollator]],
    *,
    precision: str,
    weights: str,
) -> TrainingPairs:
    """From the store, or computed with the model and the collator that `load` gives."""
    pairs = rows.tokens

    def compute() -> list[ReferenceLogps]:
        model, collator = load()
        return compute_reference_logps(model, pairs, collator, context, precision=precision)

    arithmetic = {"precision": precision, "weights": weights, "tail_weight": context.config.tail_weight}
    result = reference_result(context.store_root, reference, pairs, context.known_hashes, **arithmetic)
    found = cached_reference_logps(result, pairs, context, compute)
    sides = np.array([(found[pair.id].chosen_logps, found[pair.id].rejected_logps) for pair in pairs])
    return rows.with_columns(reference_chosen_logps=sides[:, 0], reference_rejected_logps=sides[:, 1])


@phase("train")
def compute_reference_logps(
    model: Any, pairs: Sequence[EncodedPreference], collator: PairCollator, context: RunContext, *, precision: str
) -> list[ReferenceLogps]:
    """Log-probabilities of both sides under `model`, in the order of the pairs.

    Args:
        model: in eval mode, after `prepare_model`.
        precision: float32 or bfloat16, of the arithmetic.
    Raises:
        StageError: if one of them is not finite. Interrupted: if a stop was requested.
    """
    device = next(model.parameters()).device
    count = context.counter("reference", "pairs")
    known = pairs.measures["total"].tolist() if isinstance(pairs, LazyRows) else None
    lengths: list[int] = known or [shared_length(pair) for pair in pairs]
    found: dict[int, ReferenceLogps] = {}

    def compute(batch: list[int]) -> list[list[float]]:
        layout = layout_of(collator([TrainingPair(pairs[index]) for index in batch]), device)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            return model(layout=layout).view(2, -1).tolist()  # type: ignore[no-any-return]

    for batch, sides in _batches_of_ranks(lengths, compute, context):
        for index, chosen, rejected in zip(batch, *sides, strict=True):
            if not math.isfinite(chosen + rejected):
                raise StageError(
                    f"{pairs[index].id}: the reference gives its completions the log-probabilities {chosen} and {rejected}",
                    hint="Set precision: float32, or look at this row and at the reference's weights.",
                )
            found[index] = ReferenceLogps(id=pairs[index].id, chosen_logps=chosen, rejected_logps=rejected)
        count(min(len(found) * context.spread.processes, len(pairs)), len(pairs))
    everywhere = {index: logps for part in all_of(found) for index, logps in part.items()}
    return [everywhere[index] for index in range(len(pairs))]


def _batches_of_ranks(
    lengths: Sequence[int], compute: Callable[[list[int]], list[list[float]]], context: RunContext
) -> Iterator[tuple[list[int], list[list[float]]]]:
    """The batches of this process, and what `compute` returns for them: the same batches whatever the number of processes."""
    ranks = context.spread.processes
    if ranks == 1:
        yield from run_batches(lengths, FORWARD_TOKENS, compute, note=context.note)
        return
    batches = list(length_sorted_batches(lengths, FORWARD_TOKENS))
    for start in range(0, len(batches), ranks):
        turn = start + context.rank
        # Under FSDP2 a pass is one of all processes: whoever has no batch left computes the last one again.
        batch = batches[min(turn, len(batches) - 1)]
        sides = compute(batch)
        if turn < len(batches):
            yield batch, sides
