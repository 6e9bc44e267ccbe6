"""Log-probabilities of chosen tokens from a causal model's hidden states.

Logits are made only where a label asks for them and a few thousand tokens at a time, so no [batch, sequence, vocabulary] tensor
exists; with gradients, a chunk's logits are made again in the backward pass when there is more than one chunk.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK_TOKENS = 4096


def _chunk_logps(states: Tensor, targets: Tensor, head: Any, softcap: float | None) -> Tensor:
    logits = head(states).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def token_logps(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """[batch, seq] log-probability of every label in nats, float32; zero where the label is -100.

    Args:
        model: a causal language model, for its head and the soft cap of its logits (Gemma 2).
        hidden: [batch, seq, width], the states that predict `labels` (already shifted).
        labels: [batch, seq], token ids; -100 is ignored.
    """
    head = model.get_output_embeddings()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    counted = labels != IGNORED
    states, targets = hidden[counted], labels[counted]
    chunks = list(zip(states.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True))
    again = len(chunks) > 1 and torch.is_grad_enabled()
    pieces = [
        checkpoint(_chunk_logps, *chunk, head, softcap, use_reentrant=False) if again else _chunk_logps(*chunk, head, softcap)
        for chunk in chunks
    ]
    logps = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    return logps.masked_scatter(counted, torch.cat(pieces)) if pieces else logps


def add_label_logps(model: Any) -> None:
    """Let `model(…, logps_of=labels)` return `token_logps` of the shifted labels, [batch, seq - 1], in place of logits.

    It goes through `forward`, so that whatever wraps the model (autocast, DDP, FSDP) wraps this too.
    """
    original = model.forward

    def forward(self: Any, *args: Any, logps_of: Tensor | None = None, **kwargs: Any) -> Any:
        if logps_of is None:
            return original(*args, **kwargs)
        hidden = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        return token_logps(self, hidden[:, :-1], logps_of[:, 1:])

    model.forward = types.MethodType(forward, model)
