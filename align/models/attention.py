"""Attention of rows that hold several sequences: which tokens see each other, and the cheapest exact way to compute it.

A row may hold packed samples, or a prompt with two completions behind it. A mask of every pair of tokens, [rows, 1, seq, seq],
says so to any model, but its memory and time grow with the square of a row. Models that compute attention through transformers'
AttentionInterface get the function of this module in place of `sdpa` (`use_segments`), and a list of segments in place of the
mask:

    tokens      p0 p1 p2 c0 c1  r0 r1 r2    q0 q1 …
    segments    first           second      third …      the second continues the first three tokens of the first

- On a GPU with FlashAttention (16-bit numbers, compute capability 8): one call for all segments, `torch.nn.attention.varlen`.
- Elsewhere: causal attention segment by segment, which needs no mask.
- Short rows, where one call is faster than many, get the mask; see `DENSE_MASK_TOKENS`. It is made once for all layers, as
  numbers to add: torch would make those of a mask of booleans in every layer, and keep them all for the backward pass.
- Sliding windows count within a segment. A soft cap on the scores (Gemma 2), which torch's kernels do not have, is computed
  block by block of queries.

Models of other kinds keep their own attention and masks; see `longest_shared_row`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from align.models.segment import PADDING, Segment, mask_of
from align.models.sizes import DENSE_MASK_TOKENS
from align.runtime.device import has_bfloat16

IMPLEMENTATION = "align"
LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that tell an attention function by arguments what they compute; others (chunked) say it by a mask alone."""
BLOCK_QUERIES = 512
"""Queries whose scores exist at once where no kernel computes them."""
PROBED_TOKENS = 4
"""Of each of two sequences in a row, to see whether a model keeps them apart."""
LEAK = 0.03
"""Difference, as a share of the root mean square, above what rounding to bfloat16 makes."""
MAX_HEAD_SIZE = 256
"""Of FlashAttention."""


def use_segments(model: Any) -> None:
    """Let a model that has `sdpa` compute attention by this module, if its layers tell a function all that it must know.

    Of the others, those that cap their scores get eager attention: `sdpa` would leave the cap out.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation != "sdpa":
        return
    layers = set(getattr(config, "layer_types", None) or LAYERS)
    tells_all = model._supports_attention_backend and model._supports_flash_attn and layers <= LAYERS
    looks_ahead = not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False)
    if tells_all and not looks_ahead and not model.config.is_encoder_decoder:
        model.set_attn_implementation(IMPLEMENTATION)
    elif getattr(config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")


def takes_segments(model: Any) -> bool:
    """Whether the model computes attention by this module."""
    return bool(model.config._attn_implementation == IMPLEMENTATION)


def longest_shared_row(model: Any) -> int | None:
    """Tokens of the longest row that may hold several sequences; None where any row may.

    Models with attention of their own need a mask, which grows with the square of a row. Some have none that keeps sequences
    apart (state-space layers, gpt-oss): 1.

    Args:
        model: in eval mode.
    """
    if takes_segments(model):
        return None
    return DENSE_MASK_TOKENS["cuda"] if _keeps_apart(model) else 1


@torch.no_grad()
def _keeps_apart(model: Any) -> bool:
    """Whether a sequence has the same states behind another one in its row as alone."""
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(1, 2 * PROBED_TOKENS + 1, device=device)[None]
    positions = torch.arange(PROBED_TOKENS, device=device)[None]
    alone = model.base_model(input_ids=ids[:, PROBED_TOKENS:], use_cache=False)[0]
    behind = model.base_model(input_ids=ids, position_ids=positions.repeat(1, 2), use_cache=False)[0][:, PROBED_TOKENS:]
    return bool((behind - alone).abs().max() <= LEAK * alone.square().mean().sqrt())


class RowInputs(NamedTuple):
    """What tells a model which tokens of a row see each other."""

    attention_mask: Tensor | None
    position_ids: Tensor | None


def packed_inputs(model: Any, position_ids: Tensor) -> RowInputs:
    """Of rows in which positions restart with every sequence.

    Args:
        position_ids: [rows, seq]; 0 at every padding token, all of which are at the end of a row.
    """
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1
    if not begins.any():
        return RowInputs(None, position_ids)
    if not takes_segments(model):  # transformers makes a mask where positions restart; a single sequence needs none
        counted = torch.arange(position_ids.shape[1], device=position_ids.device)
        is_single = ((position_ids == counted) | (position_ids == 0)).all()
        return RowInputs(None, None if is_single else position_ids)
    if prefers_mask(model, position_ids):
        return RowInputs(None, position_ids)
    return RowInputs(mask_of(segment for row in begins.tolist() for segment in _segments_of(row)), position_ids)


def _segments_of(begins: Sequence[bool]) -> list[Segment]:
    places = [0, *(place for place, is_first in enumerate(begins) if is_first), len(begins)]
    lengths = [end - start for start, end in itertools.pairwise(places)]
    padding = next((count for count, length in enumerate(reversed(lengths)) if length != 1), len(lengths))
    if padding <= 1:  # a single such token may be a sequence
        return [Segment(length) for length in lengths]
    return [*(Segment(length) for length in lengths[:-padding]), Segment(padding, PADDING)]


def padded_mask(model: Any, attention_mask: Tensor) -> Tensor:
    """A mask of padding on the right, [rows, seq], as it is, or as segments where that saves a mask of pairs of tokens."""
    if not takes_segments(model) or prefers_mask(model, attention_mask):
        return attention_mask
    seq, lengths = attention_mask.shape[1], attention_mask.sum(-1).tolist()
    return mask_of(Segment(part, prefix) for length in lengths for part, prefix in ((length, 0), (seq - length, PADDING)) if part)


def prefers_mask(model: Any, tokens: Tensor, *, one_for_all: bool = False) -> bool:
    """Whether rows like these, [rows, seq], should get a mask of pairs of tokens rather than segments.

    Args:
        one_for_all: all layers would get the same mask, which cannot be right for those with a sliding window.
    """
    config, seq = model.config.get_text_config(), tokens.shape[1]
    if not takes_segments(model):
        return True
    window = getattr(config, "sliding_window", None)
    if one_for_all and window is not None and window < seq:
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = _computed_in(model.get_input_embeddings().weight.dtype, tokens.device)
    has_softcap = getattr(config, "attn_logit_softcapping", None) is not None
    if tokens.is_cuda and not has_softcap and _has_flash(dtype, size):
        return False
    return seq <= DENSE_MASK_TOKENS[tokens.device.type]


def as_additive(model: Any, visible: Tensor) -> Tensor:
    """A mask of booleans as numbers that are added to scores, as the model's attention takes it."""
    weights: torch.dtype = model.get_input_embeddings().weight.dtype
    if model.config._attn_implementation == "eager":  # it turns a row of -inf into NaN
        return torch.zeros_like(visible, dtype=weights).masked_fill(~visible, torch.finfo(weights).min)
    return _additive(visible, weights)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What `sdpa` makes of a mask of booleans; made once, it is the same tensor in all layers."""
    return torch.zeros_like(visible, dtype=_computed_in(dtype, visible.device)).masked_fill(~visible, -torch.inf)


def additive_mask(*args: Any, dtype: torch.dtype, **kwargs: Any) -> Tensor | None:
    """The mask that transformers makes for `sdpa`, as numbers."""
    visible = sdpa_mask(*args, **kwargs)
    return None if visible is None else _additive(visible, dtype)


def _computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of attention's arithmetic on states of `dtype`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def _has_flash(dtype: torch.dtype, head_size: int) -> bool:
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and has_bfloat16() and head_size <= MAX_HEAD_SIZE and head_size % 8 == 0


class Scoring(NamedTuple):
    """How a layer makes weights of scores."""

    window: int | None
    """Tokens that a token sees, itself included."""
    softcap: float | None
    """Scores become softcap · tanh(score / softcap)."""
    scale: float | None
    """Factor of a score; None: 1 / √size."""
    dropout: float


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it, [batch, seq, heads, size]; see `Scoring`.

    Args:
        query, key, value: [batch, heads, seq, size].
        attention_mask: of booleans, or numbers to add, as for `sdpa`, with the window in it; or segments, from `mask_of`.
    Raises:
        NotImplementedError: if a layer wants something else of segments.
    """
    scoring = Scoring(sliding_window, softcap, scaling, dropout)
    if attention_mask is None or attention_mask.dtype != torch.int64:
        if softcap is None:
            options = {"dropout": dropout, "scaling": scaling, **more}
            result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
            return result
        return _in_blocks(query, key, value, attention_mask, scoring).transpose(1, 2).contiguous(), None
    if unknown := [name for name in ("s_aux", "position_bias") if more.get(name) is not None]:
        raise NotImplementedError(f"attention of {type(module).__name__} has {unknown[0]}, which segments do not know")
    segments = tuple(Segment(*numbers) for numbers in attention_mask[0, 0].tolist())
    rows, _, seq, size = query.shape
    dtype = _computed_in(query.dtype, query.device)
    is_plain = softcap is None and dropout == 0.0 and size == value.shape[-1]
    if query.is_cuda and is_plain and _has_flash(dtype, size):
        query, key, value = (states.transpose(1, 2).flatten(0, 1).to(dtype) for states in (query, key, value))
        return by_varlen(query, key, value, segments, scoring).unflatten(0, (rows, seq)), None
    query, key, value = (states.transpose(0, 1).flatten(1, 2)[None] for states in (query, key, value))
    return one_by_one(query, key, value, segments, scoring).unflatten(0, (rows, seq)), None


def by_varlen(query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], scoring: Scoring) -> Tensor:
    """[tokens, heads, size] of query, key and value of that shape, by one call of FlashAttention."""
    from torch.nn.attention.varlen import varlen_attn

    plan = _varlen_plan(segments, query.device)
    if plan.key_index is not None:  # a segment's prefix is copied in front of it
        key, value = key.index_select(0, plan.key_index), value.index_select(0, plan.key_index)
    # Queries and keys of a segment end together: the last query sees all keys.
    found = varlen_attn(
        query,
        key,
        value,
        plan.query_ends,
        plan.key_ends,
        plan.longest_query,
        plan.longest_key,
        scale=scoring.scale,
        window_size=(-1 if scoring.window is None else scoring.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found


class _VarlenPlan(NamedTuple):
    query_ends: Tensor
    """[segments + 1], int32: where each segment begins, and the last one ends."""
    key_ends: Tensor
    longest_query: int
    longest_key: int
    key_index: Tensor | None
    """Places of the keys, where they are not those of the queries."""


@functools.lru_cache(maxsize=2)  # all layers ask for the same
def _varlen_plan(segments: tuple[Segment, ...], device: torch.device) -> _VarlenPlan:
    lengths = torch.tensor([segment.length for segment in segments])
    prefixes = torch.tensor([segment.prefix_length for segment in segments])
    starts = [0, *lengths.cumsum(0).tolist()]
    key_index = None
    if prefixes.any():
        pieces: list[Tensor] = []
        for segment, start in zip(segments, starts, strict=False):
            first = starts[segment.prefix]
            pieces += [torch.arange(first, first + segment.prefix_length), torch.arange(start, start + segment.length)]
        key_index = torch.cat(pieces).to(device)

    def ends(of: Tensor) -> Tensor:
        return torch.nn.functional.pad(of.cumsum(0), (1, 0)).to(device, torch.int32)

    keys = lengths + prefixes
    return _VarlenPlan(ends(lengths), ends(keys), int(lengths.max()), int(keys.max()), key_index)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scoring: Scoring) -> Tensor:
    """[tokens, heads, size] of query, key and value of [1, heads, tokens, size], segment by segment."""
    lengths = [segment.length for segment in segments]
    # Not slices: the gradient of a slice is as large as all tokens.
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    results = []
    for number, segment in enumerate(segments):
        before = segment.prefix_length

        def whole(parts: Sequence[Tensor], segment: Segment = segment, own: int = number) -> Tensor:
            prefix = parts[segment.prefix][:, :, : segment.prefix_length]
            return torch.cat([prefix, parts[own]], dim=2) if segment.prefix_length else parts[own]

        if scoring.softcap is not None or (scoring.window is not None and scoring.window < before + segment.length):
            found = _in_blocks(queries[number], whole(keys), whole(values), None, scoring)
        else:  # a prefix is computed again, which costs less than a mask
            found = _causal(whole(queries), whole(keys), whole(values), scoring)[:, :, before:]
        results.append(found[0].transpose(0, 1))
    return torch.cat(results)


def _causal(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    # On a GPU only FlashAttention takes grouped heads; torch would compute them by a matrix of all scores.
    grouped = not query.is_cuda or _computed_in(query.dtype, query.device) != torch.float32
    if not grouped:
        key, value = (repeat_kv(states, query.shape[1] // states.shape[1]) for states in (key, value))
    options: dict[str, Any] = {"dropout_p": scoring.dropout, "scale": scoring.scale, "enable_gqa": grouped}
    return scaled_dot_product_attention(query, key, value, is_causal=True, **options)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scoring: Scoring) -> Tensor:
    """Attention for which torch has no kernel, [batch, heads, queries, size]; the backward pass computes each block again.

    Args:
        query: [batch, heads, queries, size]; the last query stands at the last key.
        mask: of booleans or numbers to add, [batch, 1, queries, keys]; None is causal, within the window.
    """
    key, value = (repeat_kv(states, query.shape[1] // states.shape[1]) for states in (key, value))
    count, offset = query.shape[2], key.shape[2] - query.shape[2]
    again = torch.is_grad_enabled() and count > BLOCK_QUERIES
    pieces = []
    for start in range(0, count, BLOCK_QUERIES):
        end = min(start + BLOCK_QUERIES, count)
        first, last, part = 0, key.shape[2], None
        if mask is not None:
            part = mask[:, :, start:end]
        else:  # what no query of the block sees is left out
            first = 0 if scoring.window is None else max(0, start + offset - scoring.window + 1)
            last = end + offset
        block = (query[:, :, start:end], key[:, :, first:last], value[:, :, first:last], part, start + offset - first, scoring)
        pieces.append(checkpoint(_block, *block, use_reentrant=False) if again else _block(*block))
    return torch.cat(pieces, dim=2)


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, place: int, scoring: Scoring) -> Tensor:
    """As `_in_blocks`, with all scores at once.

    Args:
        place: number of the key at which the first query stands, where there is no mask.
    """
    if mask is None:
        queries = torch.arange(place, place + query.shape[2], device=query.device)[:, None]
        keys = torch.arange(key.shape[2], device=query.device)
        mask = keys <= queries
        if scoring.window is not None:
            mask &= keys > queries - scoring.window
    if scoring.softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=scoring.dropout, scale=scoring.scale)
    scores = query @ key.transpose(-2, -1) * (scoring.scale or query.shape[-1] ** -0.5)
    scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    # Not -inf: a row of padding alone must not become NaN.
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask.clamp(min=lowest)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return drop(weights, scoring.dropout) @ value


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, additive_mask)
