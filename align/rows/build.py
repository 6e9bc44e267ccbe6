"""Makes the fields of records from a row whose shape is known: one function per shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from align.rows.comparison import best_of, is_desirable, is_first_preferred
from align.rows.conversation import WEIGHT, PlainMessage, is_transcript, parse_transcript, split_completion
from align.rows.fields import (
    FINAL_ANSWER,
    LATER_TURNS,
    TRANSCRIPT,
    WEIGHT_ZERO,
    Columns,
    Fields,
    FieldTaker,
    Problems,
    Row,
    required,
)
from align.rows.problem import FieldProblem, noted, shown

Part = tuple[str, Fields | FieldProblem]
"""The suffix of the record's id, and the record's fields, or the problem that leaves no record."""


class Builder:
    """Builds records. Every public method is a `Build`; `Shape.build` names the one for rows of its shape.

    Args:
        take: reads single fields.
    """

    def __init__(self, take: FieldTaker) -> None:
        self.take = take

    def text(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        return (("", {"text": self.take.required_text("text", row, columns, "empty_text", problems)}),)

    def prompt(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        prompt = self.take.prompt(row, columns, problems)[0]
        return (("", {"prompt": prompt, "reference": self._reference(row, columns, problems)}),)

    def _reference(self, row: Row, columns: Columns, problems: Problems) -> Any:
        return self.take.reference(row.get(columns["reference"]), problems) if "reference" in columns else None

    def turns(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        """The first of several turns of a user. A list of references has one reference per turn."""
        turns = required("turns", row, columns)
        if not isinstance(turns, list) or not turns:
            raise FieldProblem("turns", "wrong_type", f"must be a list of texts, but is {shown(turns)}")
        self.take.remarks[LATER_TURNS] += len(turns) > 1
        # The prompt's reader takes columns of a row, so the first turn is put into a row of its own.
        others = {name: column for name, column in columns.items() if name in ("system", "tools")}
        first = {**{column: row[column] for column in others.values()}, "turn 1": turns[0]}
        prompt = self.take.prompt(first, {**others, "prompt": "turn 1"}, problems)[0]
        reference = row.get(columns["reference"]) if "reference" in columns else None
        if isinstance(reference, list):
            reference = reference[0] if reference else None
        return (("", {"prompt": prompt, "reference": self.take.reference(reference, problems)}),)

    def open_conversation(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        """A conversation as a prompt; an answer at its end is left out."""
        messages = self.take.messages("messages", required("messages", row, columns))
        if messages[-1]["role"] == "assistant":
            self.take.remarks[FINAL_ANSWER] += 1
            # A prompt must end with a user's message, so that a completion can follow it.
            messages.pop()
        prompt = self.take.checked("messages", messages, problems)
        self.take.put_tools(prompt, row, columns, problems)
        return (("", {"prompt": prompt, "reference": self._reference(row, columns, problems)}),)

    def instruction(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        prompt = self.take.prompt(row, columns, problems, weights=True)
        return (("", {"prompt": prompt[0], **self.take.answer(row, columns, prompt, problems)}),)

    def conversation(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        messages = self.take.messages("messages", required("messages", row, columns), weights=True)
        before, message = split_completion("messages", self._up_to_loss(messages))
        prompt = self.take.checked("messages", before, problems)
        self.take.put_tools(prompt, row, columns, problems)
        return (("", {"prompt": prompt, **self.take.answer_of("messages", message, problems)}),)

    def _up_to_loss(self, messages: list[PlainMessage]) -> list[PlainMessage]:
        """The messages up to the last one of the assistant that loss is taken on."""
        if messages[-1].get(WEIGHT) != 0:
            return messages
        trained = [place for place, message in enumerate(messages) if message["role"] == "assistant" and WEIGHT not in message]
        if not trained:
            raise FieldProblem("messages", "zero_weight", "every message of the assistant has weight 0: nothing is trained on")
        self.take.remarks[WEIGHT_ZERO] += 1
        return messages[: trained[-1] + 1]

    def pair(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        return self._with_scores(self._pair_of(row, columns, problems), row, columns, problems)

    def pair_of_conversations(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        return self._with_scores(self._pair_of_conversations(row, columns, problems), row, columns, problems)

    def labelled_pair(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        return self._labelled(self._pair_of, row, columns, problems)

    def labelled_conversations(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        return self._labelled(self._pair_of_conversations, row, columns, problems)

    def rated(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        prompt = self.take.prompt(row, columns, problems)
        completion = self.take.completion("completion", row, columns, prompt, problems)
        return self._with_verdict(prompt[0], completion, row, columns, problems)

    def rated_conversation(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        before, message = split_completion("messages", self.take.messages("messages", required("messages", row, columns)))
        prompt = self.take.checked("messages", before, problems)
        self.take.put_tools(prompt, row, columns, problems)
        return self._with_verdict(prompt, self.take.no_calls("messages", message, problems), row, columns, problems)

    def _with_verdict(self, prompt: Any, completion: Any, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        verdict = noted(problems, lambda: is_desirable(required("desirable", row, columns)))
        return (("", {"prompt": prompt, "completion": completion, "desirable": verdict}),)

    def both_sides(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        """A pair as two rows: a good completion and a bad one."""
        return _sides(self._pair_of(row, columns, problems))

    def both_conversations(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        return _sides(self._pair_of_conversations(row, columns, problems))

    def _with_scores(self, pair: Fields, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        pair["chosen_score"] = self.take.score("chosen_score", row, columns, problems)
        pair["rejected_score"] = self.take.score("rejected_score", row, columns, problems)
        return (("", pair),)

    def _labelled(self, pair_of: Callable[..., Fields], row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        """Two completions and a label that names the preferred one."""
        first, second = (columns.get(field, field) for field in ("completion_a", "completion_b"))
        # The preferred column becomes `chosen`, and the row is then read like any other pair.
        is_first = is_first_preferred(required("label", row, columns), first, second)
        chosen, rejected = (first, second) if is_first else (second, first)
        fields = pair_of(row, {**columns, "chosen": chosen, "rejected": rejected}, problems)
        return (("", {**fields, "chosen_score": None, "rejected_score": None}),)

    def ranked(self, row: Row, columns: Columns, problems: Problems) -> Sequence[Part]:
        """Several completions: the best against each of the others."""
        prompt = self.take.prompt(row, columns, problems)
        field = "ranking" if "ranking" in columns else "completions"
        scores, ranks = (row.get(columns[name]) if name in columns else None for name in ("scores", "ranks"))
        values = required(field, row, columns)
        _require_order(field, columns)
        order = best_of(field, values, scores, ranks)
        # Every completion is checked, also those of pairs that are left out: the row names all its problems at once.
        texts = [self.take.completion_of(f"{field} {n}", value, prompt, problems) for n, value in enumerate(values, start=1)]
        chosen = texts[order.best]
        parts: list[Part] = []
        for number, other in enumerate((index for index in range(len(texts)) if index != order.best), start=1):
            part: Fields | FieldProblem
            if other in order.ties:
                part = FieldProblem(field, "tie", f"number {other + 1} is as good as the best, number {order.best + 1}")
            elif texts[other] == chosen:
                part = FieldProblem(field, "identical", f"number {other + 1} equals the best, number {order.best + 1}")
            else:
                part = {"prompt": prompt[0], "chosen": chosen, "rejected": texts[other]}
                part |= {"chosen_score": order.score(order.best), "rejected_score": order.score(other)}
            parts.append((f"/{number}", part))
        return parts

    def _pair_of(self, row: Row, columns: Columns, problems: Problems) -> Fields:
        """Prompt, chosen and rejected."""
        prompt = self.take.prompt(row, columns, problems)
        chosen = self.take.completion("chosen", row, columns, prompt, problems)
        rejected = self.take.completion("rejected", row, columns, prompt, problems)
        _require_difference(chosen, rejected, problems)
        return {"prompt": prompt[0], "chosen": chosen, "rejected": rejected}

    def _pair_of_conversations(self, row: Row, columns: Columns, problems: Problems) -> Fields:
        """A pair of conversations; the messages that both begin with are the prompt."""
        sides = noted(problems, lambda: [self._whole(field, row, columns) for field in ("chosen", "rejected")])
        if sides is None:
            return {}
        (prompt, chosen_message), (other, rejected_message) = sides
        # One row is counted once, though both sides are transcripts.
        self.take.remarks[TRANSCRIPT] += is_transcript(row[columns["chosen"]])
        if prompt != other:
            problems.append(FieldProblem("rejected", "prompt_differs", "does not begin with the same messages as chosen"))
        self.take.checked("prompt", prompt, problems)
        self.take.put_tools(prompt, row, columns, problems)
        chosen = self.take.no_calls("chosen", chosen_message, problems)
        rejected = self.take.no_calls("rejected", rejected_message, problems)
        _require_difference(chosen, rejected, problems)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def _whole(self, field: str, row: Row, columns: Columns) -> tuple[list[PlainMessage], PlainMessage]:
        value = required(field, row, columns)
        if is_transcript(value):
            return split_completion(field, parse_transcript(value))
        if isinstance(value, str):
            required("prompt", row, {})  # the column holds a bare completion, so the row lacks its prompt
        return split_completion(field, self.take.messages(field, value))


Build = Callable[[Builder, Row, Columns, Problems], Sequence[Part]]
"""Makes the parts of a row. A field's problem goes to `problems`, and the other fields are still read; FieldProblem is raised
where no field can be read. With a problem, the parts mean nothing."""


def _sides(pair: Fields) -> Sequence[Part]:
    """The fields of a pair that has problems mean nothing, and may be missing."""
    sides = (("chosen", True), ("rejected", False))
    return [(f"/{side}", {"prompt": pair.get("prompt"), "completion": pair.get(side), "desirable": good}) for side, good in sides]


def _require_order(field: str, columns: Columns) -> None:
    """Refuse a list of completions that does not say which is better."""
    if field == "completions" and not columns.keys() & {"scores", "ranks"}:
        raise FieldProblem(
            "scores",
            "missing_field",
            "is missing, and ranks too: which completion is better? (If the list is best first, map it: ranking="
            + columns["completions"]
            + ")",
        )


def _require_difference(chosen: Any, rejected: Any, problems: Problems) -> None:
    if chosen is not None and chosen == rejected:
        problems.append(FieldProblem("chosen", "identical", "equals rejected; the completions of a pair must differ"))
