"""Learning from a teacher: gradients of the divergence between both models' next tokens, on completions of the student."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from align.config.online import DistillTraining
from align.losses.distill import generalized_jsd_loss
from align.models.logits import logits_of
from align.models.sizes import teacher_chunk_tokens
from align.training.online.learner import Accumulate, Learner, LearningPhase
from align.training.online.models import target_states
from align.training.online.shares import Passes, total_numbers
from align.training.sharding import release, within, without_exchange


@dataclass(frozen=True)
class Distiller(Learner):
    """Brings the policy's next-token distributions towards the teacher's. Both read the same ids."""

    config: DistillTraining
    teacher: Any

    def accumulator(self, phase: LearningPhase, *, learn_policy: bool, score_bias: float, kl_coef: float) -> Accumulate:
        return self._accumulate

    def _accumulate(self, passes: Passes) -> dict[str, float]:
        """Gradients of the mean over all completion tokens of the mini-batch; they add up over passes and processes."""
        self.clear_gradients()
        count = passes.tokens
        policy = self.optimizers.policy.model
        sums: dict[str, float] = {}
        for batch, weight in passes.weighted():
            with self.settings.autocast():
                with torch.no_grad():
                    known = within(self.teacher, partial(target_states, batch=batch), then_release=False)
                states = within(policy, partial(target_states, batch=batch))
            tokens = teacher_chunk_tokens(len(policy.get_output_embeddings().weight), states.device.type)
            gradients = []
            # The logits of a chunk are gone before those of the next, so no [tokens, vocabulary] exists; and the backward pass
            # through the head is made here, so that they need not be computed again.
            for chunk, other in zip(states.split(tokens), known.split(tokens), strict=True):
                leaf = chunk.detach().requires_grad_()
                losses, numbers = self._divergences(leaf, other)
                with without_exchange(policy):
                    (losses.sum() / count * weight).backward()
                gradients.append(leaf.grad)
                for name, values in {"loss/divergence_avg": losses.detach(), **numbers}.items() if weight else ():
                    sums[name] = sums.get(name, 0.0) + float(values.sum())
            release(self.teacher)
            states.backward(torch.cat(gradients))
        return {name: total / count for name, total in total_numbers(sums).items()}

    def _divergences(self, states: Tensor, known: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[tokens] losses, and what is logged of them.

        Args:
            states: [tokens, width], of the student; carry the gradient.
            known: [tokens, width], of the teacher.
        """
        beta, temperature = self.config.beta, self.settings.temperature
        logits = logits_of(self.optimizers.policy.model, states)
        with torch.no_grad():
            others = logits_of(self.teacher, known)
        # Models of one family pad the vocabulary to different sizes; no token has the ids behind the shorter one.
        shared = min(logits.shape[-1], others.shape[-1])
        logits, others = logits[:, :shared], others[:, :shared]
        losses = generalized_jsd_loss(logits, others, beta=beta, temperature=temperature)
        with torch.no_grad():
            logps = (logits / temperature).log_softmax(-1)
            kl = losses.detach() if beta == 1 else generalized_jsd_loss(logits, others, beta=1.0, temperature=temperature)
            numbers = {
                "teacher/kl": kl,
                "teacher/agreement": (logits.argmax(-1) == others.argmax(-1)).float(),
                "objective/entropy": -(logps.exp() * logps).sum(-1),
            }
        return losses, numbers
