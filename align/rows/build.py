"""From a row whose shape is known to the fields of its records: one function per shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from align.rows.comparison import best_of, is_first_preferred
from align.rows.conversation import FieldError, PlainMessage, is_transcript, parse_transcript, shown, split_completion
from align.rows.fields import Columns, Faults, FieldTaker, Row, required

Fields = dict[str, Any]
"""The fields of a record in its own order, without id, line and file."""
Part = tuple[str, Fields | FieldError]
"""What is added to the row's id; and the record's fields, or why there is no record."""


class Builder:
    """Builds records. Every public method is a `Build`: `Shape.build` says which of them reads rows of the shape.

    Args:
        take: takes single fields.
    """

    def __init__(self, take: FieldTaker) -> None:
        self.take = take
        self.later_turns = 0
        """Prompts behind which there are turns that cannot be asked without an answer."""
        self.answers_left_out = 0
        """Conversations read as prompts that end with an answer."""

    def text(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        return (("", {"text": self.take.required_text("text", row, columns, "empty_text", faults)}),)

    def prompt(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        prompt = self.take.prompt(row, columns, faults)[0]
        return (("", {"prompt": prompt, "reference": self._reference(row, columns, faults)}),)

    def _reference(self, row: Row, columns: Columns, faults: Faults) -> Any:
        return self.take.reference(row.get(columns["reference"]), faults) if "reference" in columns else None

    def turns(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        """The first of several turns of a user. A list of references belongs to the turns, one by one."""
        try:
            turns = required("turns", row, columns)
            if not isinstance(turns, list) or not turns:
                raise FieldError("turns", "wrong_type", f"must be a list of texts, but is {shown(turns)}")
        except FieldError as fault:
            faults.append(fault)
            return ()
        self.later_turns += len(turns) > 1
        system = {name: column for name, column in columns.items() if name == "system"}
        first = {**{column: row[column] for column in system.values()}, "turn 1": turns[0]}
        prompt = self.take.prompt(first, {**system, "prompt": "turn 1"}, faults)[0]
        reference = row.get(columns["reference"]) if "reference" in columns else None
        if isinstance(reference, list):
            reference = reference[0] if reference else None
        return (("", {"prompt": prompt, "reference": self.take.reference(reference, faults)}),)

    def open_conversation(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        """A conversation up to the completion that is wanted: without the answer at its end, if there is one."""
        try:
            messages = self.take.messages("messages", required("messages", row, columns))
        except FieldError as fault:
            faults.append(fault)
            return ()
        if messages[-1]["role"] == "assistant":
            self.answers_left_out += 1
            messages.pop()
        prompt = self.take.checked("messages", messages, faults)
        return (("", {"prompt": prompt, "reference": self._reference(row, columns, faults)}),)

    def instruction(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        prompt = self.take.prompt(row, columns, faults)
        return (("", {"prompt": prompt[0], "completion": self.take.completion("completion", row, columns, prompt, faults)}),)

    def conversation(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        try:
            before, text = split_completion("messages", self.take.messages("messages", required("messages", row, columns)))
        except FieldError as fault:
            faults.append(fault)
            return ()
        prompt = self.take.checked("messages", before, faults)
        return (("", {"prompt": prompt, "completion": self.take.text("messages", text, "empty_completion", faults)}),)

    def pair(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        return self._with_scores(self._pair_of(row, columns, faults), row, columns, faults)

    def pair_of_conversations(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        return self._with_scores(self._pair_of_conversations(row, columns, faults), row, columns, faults)

    def labelled_pair(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        return self._labelled(self._pair_of, row, columns, faults)

    def labelled_conversations(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        return self._labelled(self._pair_of_conversations, row, columns, faults)

    def _with_scores(self, pair: Fields, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        pair["chosen_score"] = self.take.score("chosen_score", row, columns, faults)
        pair["rejected_score"] = self.take.score("rejected_score", row, columns, faults)
        return (("", pair),)

    def _labelled(self, pair_of: Callable[..., Fields], row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        """Two completions, of which a label names the preferred one."""
        first, second = (columns.get(field, field) for field in ("completion_a", "completion_b"))
        try:
            is_first = is_first_preferred(required("label", row, columns), first, second)
        except FieldError as fault:
            faults.append(fault)
            return ()
        chosen, rejected = (first, second) if is_first else (second, first)
        fields = pair_of(row, {**columns, "chosen": chosen, "rejected": rejected}, faults)
        return (("", {**fields, "chosen_score": None, "rejected_score": None}),)

    def ranked(self, row: Row, columns: Columns, faults: Faults) -> Sequence[Part]:
        """Several completions: the best against each of the others."""
        prompt = self.take.prompt(row, columns, faults)
        field = "ranking" if "ranking" in columns else "completions"
        scores, ranks = (row.get(columns[name]) if name in columns else None for name in ("scores", "ranks"))
        try:
            values = required(field, row, columns)
            _require_order(field, columns)
            order = best_of(field, values, scores, ranks)
        except FieldError as fault:
            faults.append(fault)
            return ()
        texts = [self.take.completion_of(f"{field} {n}", value, prompt, faults) for n, value in enumerate(values, start=1)]
        chosen = texts[order.best]
        parts: list[Part] = []
        for number, other in enumerate((place for place in range(len(texts)) if place != order.best), start=1):
            part: Fields | FieldError
            if other in order.ties:
                part = FieldError(field, "tie", f"number {other + 1} is as good as the best, number {order.best + 1}")
            elif texts[other] == chosen:
                part = FieldError(field, "identical", f"number {other + 1} equals the best, number {order.best + 1}")
            else:
                part = {"prompt": prompt[0], "chosen": chosen, "rejected": texts[other]}
                part |= {"chosen_score": order.score(order.best), "rejected_score": order.score(other)}
            parts.append((f"/{number}", part))
        return parts

    def _pair_of(self, row: Row, columns: Columns, faults: Faults) -> Fields:
        """Prompt, chosen and rejected."""
        prompt = self.take.prompt(row, columns, faults)
        chosen = self.take.completion("chosen", row, columns, prompt, faults)
        rejected = self.take.completion("rejected", row, columns, prompt, faults)
        _require_difference(chosen, rejected, faults)
        return {"prompt": prompt[0], "chosen": chosen, "rejected": rejected}

    def _pair_of_conversations(self, row: Row, columns: Columns, faults: Faults) -> Fields:
        """A pair whose prompt is what both conversations begin with."""
        try:
            (prompt, chosen), (other, rejected) = (self._whole(field, row, columns) for field in ("chosen", "rejected"))
        except FieldError as fault:
            faults.append(fault)
            return {}
        self.take.from_transcripts += is_transcript(row[columns["chosen"]])
        if prompt != other:
            faults.append(FieldError("rejected", "prompt_differs", "does not begin with the same messages as chosen"))
        self.take.checked("prompt", prompt, faults)
        for field, text in (("chosen", chosen), ("rejected", rejected)):
            self.take.text(field, text, "empty_completion", faults)
        _require_difference(chosen, rejected, faults)
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def _whole(self, field: str, row: Row, columns: Columns) -> tuple[list[PlainMessage], str]:
        value = required(field, row, columns)
        if is_transcript(value):
            return split_completion(field, parse_transcript(value))
        if isinstance(value, str):
            required("prompt", row, {})  # a bare completion: what is missing is the prompt
        return split_completion(field, self.take.messages(field, value))


Build = Callable[[Builder, Row, Columns, Faults], Sequence[Part]]
"""Takes the parts out of a row, and adds what is wrong with it to the faults. With a fault, the parts mean nothing."""


def _require_order(field: str, columns: Columns) -> None:
    """Refuse a list of completions that does not say which is better."""
    if field == "completions" and not columns.keys() & {"scores", "ranks"}:
        raise FieldError(
            "scores",
            "missing_field",
            "is missing, and ranks too: which completion is better? (If the list is best first, map it: ranking="
            + columns["completions"]
            + ")",
        )


def _require_difference(chosen: Any, rejected: Any, faults: Faults) -> None:
    if chosen is not None and chosen == rejected:
        faults.append(FieldError("chosen", "identical", "equals rejected; the two of a pair must differ"))
