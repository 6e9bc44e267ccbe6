"""A check before training: the decoded labels must be the completions and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from align.data.template import ChatFormat
from align.errors import StageError
from align.losses.logps import IGNORED_LABEL


def spans_of(labels: Sequence[int]) -> list[list[int]]:
    """The runs of labels that the loss is taken on, in order; a run ends at the next ignored label (-100)."""
    spans: list[list[int]] = []
    inside = False
    for label in labels:
        if label == IGNORED_LABEL:
            inside = False
            continue
        if not inside:
            spans.append([])
            inside = True
        spans[-1].append(label)
    return spans


def check_label_spans(batch_labels: Sequence[Sequence[int]], expected_texts: Sequence[str], chat_format: ChatFormat) -> None:
    """Refuse to train unless the loss is taken on exactly the completions and what closes them.

    Every span of every row is decoded and compared, in order, in the format's `unicode_form`.

    Args:
        batch_labels: rows of labels, -100 where no loss is taken; packed rows hold several spans.
        expected_texts: the completions in the order of the spans, as `completion_text` gives them.
    Raises:
        StageError: on the first span that differs, with both texts.
    """
    spans = [span for labels in batch_labels for span in spans_of(labels)]
    if len(spans) != len(expected_texts):
        raise StageError(
            f"the loss would be taken on {len(spans)} spans of tokens, but there are {len(expected_texts)} completions"
        )
    for number, (span, expected) in enumerate(zip(spans, expected_texts, strict=True), start=1):
        # Special tokens included: a loss on a role mark, or none on the end of the completion, must show.
        found = chat_format.decode_completion(span)
        if not chat_format.same_text(found, expected):
            raise StageError(
                f"the loss would be taken on other tokens than the completion (span {number} of {len(spans)})\n"
                f"  completion: {_shortened(expected)}\n  loss on:    {_shortened(found)}",
                hint="The tokenizer does not give the text back, or the labels are shifted. Nothing was trained.",
            )


def _shortened(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 400 else f"{shown[:200]} … {shown[-180:]}"
