"""What is made of one prompt: rows of preferences or of instructions, drops, and numbers about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from align.errors import DataError
from align.records import Drop, Instruction, Message, Preference, Record
from align.selection.best_of_n import BestRule, best_of
from align.selection.columns.tally import Tally, Totals
from align.selection.pair import PairRule, pairs_of
from align.selection.ranking import PromptCandidates

FLIPPED = "flipped_by_length"
DISAGREED = "disagreed"


class Selector(Protocol):
    """Selects from one prompt's candidates. It is sent to other processes, so it holds plain values only."""

    @property
    def scorers(self) -> Sequence[str]:
        """The scores it needs, in the order in which the candidates must have them."""

    def select(self, candidates: PromptCandidates, prompt: Any, tally: Tally) -> tuple[Sequence[Record], Sequence[Drop]]:
        """Rows and drops of one prompt; the tally gets the numbers."""

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """The metrics of all rows together; there must be one."""


@dataclass(frozen=True)
class PairSelector:
    """Preference pairs by a rule."""

    rule: PairRule

    @property
    def scorers(self) -> Sequence[str]:
        return list(self.rule.ranking.scorers)

    def select(self, candidates: PromptCandidates, prompt: Any, tally: Tally) -> tuple[Sequence[Record], Sequence[Drop]]:
        pairs, drops = pairs_of(candidates, self.rule)
        if not pairs:
            return [], drops
        messages, texts, values = messages_of(prompt, candidates.prompt_id), candidates.texts, tally.values
        rows = []
        for pair in pairs:
            chosen, rejected = texts[pair.chosen], texts[pair.rejected]
            rows.append(
                Preference(
                    id=pair.id,
                    prompt=messages,
                    chosen=chosen,
                    rejected=rejected,
                    chosen_score=pair.chosen_score,
                    rejected_score=pair.rejected_score,
                )
            )
            values["margin"].append(pair.chosen_score - pair.rejected_score)
            values["chosen_characters"].append(len(chosen))
            values["rejected_characters"].append(len(rejected))
            values["longer"].append(1.0 if len(chosen) > len(rejected) else 0.5 if len(chosen) == len(rejected) else 0.0)
            if pair.flipped_by_length:
                tally.counts[FLIPPED] += 1
            if pair.disagreed:
                tally.counts[DISAGREED] += 1
        return rows, drops

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """Margins, lengths in characters, and how often the longer side was chosen: a share far from 0.5 teaches length."""
        metrics = {
            "margin_mean": totals.mean("margin"),
            "margin_min": totals.least("margin"),
            "chosen_characters_mean": totals.mean("chosen_characters"),
            "rejected_characters_mean": totals.mean("rejected_characters"),
            "longer_chosen_share": totals.mean("longer"),
        }
        if self.rule.length_penalty:
            metrics["flipped_by_length"] = totals.counts[FLIPPED]
        if self.rule.scorers is not None:
            metrics["disagreement_share"] = totals.counts[DISAGREED] / totals.number("margin")
        return metrics


@dataclass(frozen=True)
class BestSelector:
    """The best completions by a rule."""

    rule: BestRule

    @property
    def scorers(self) -> Sequence[str]:
        return [self.rule.scorer]

    def select(self, candidates: PromptCandidates, prompt: Any, tally: Tally) -> tuple[Sequence[Record], Sequence[Drop]]:
        best = best_of(candidates, self.rule)
        kept = [] if isinstance(best, Drop) else best
        kept_texts = {candidates.texts[one.position] for one in kept}
        for text, score in zip(candidates.texts, candidates.scores[0], strict=True):
            if score is not None and score - score == 0:  # a finite number
                tally.values["all"].append(score)
                if text in kept_texts:
                    tally.values["kept"].append(score)
        if isinstance(best, Drop):
            return [], [best]
        messages = messages_of(prompt, candidates.prompt_id)
        return [Instruction(id=one.id, prompt=messages, completion=candidates.texts[one.position]) for one in kept], []

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """Mean score of the kept completions, wherever their texts occur, and of all candidates with a score."""
        return {"score_mean_kept": totals.mean("kept"), "score_mean_all": totals.mean("all")}


def messages_of(prompt: Any, prompt_id: str) -> list[Message]:
    """A prompt as messages; text is one user message. Fields other than role and content are left out.

    Raises:
        DataError: if it is not that.
    """
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    try:
        messages = [Message(role=_part(message, "role"), content=_part(message, "content")) for message in prompt]
    except (TypeError, ValueError):
        messages = []
    if not messages:
        raise DataError(
            f"prompt {prompt_id!r}: expected messages with role (system, user, assistant) and content, got {str(prompt)[:60]}",
            hint="Mend the row, or give the prompt as text.",
        )
    return messages


def _part(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else None
