"""The kinds of rows, each with its shapes. docs/formats.md shows a row of each shape."""

from __future__ import annotations

from collections.abc import Iterator

from align.records import Candidate, Instruction, Labelled, Preference, Prompt, ScoredCandidate, TextRow
from align.rows.build import Builder
from align.rows.kind import DataKind, RowKind, register
from align.rows.shapes import Names, Shape

_QUESTION: Names = ("question", "q", "problem")
_TOOLS: dict[str, Names] = {"tools": ("tools", "functions")}
_SYSTEM: dict[str, Names] = {"system": ("system_prompt",), **_TOOLS}
_SCORES: dict[str, Names] = {
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
}
# In a file of prompts, an answer is what a completion is compared with.
_REFERENCE: Names = ("reference", "answer", "solution")

Variant = tuple[dict[str, Names], dict[str, Names]]
"""The columns that a form of the prompt needs, and those that it may have."""

_PROMPT: Variant = ({"prompt": ("prompt",)}, {})
_INSTRUCTION: Variant = ({"instruction": ("instruction",)}, {"input": ("input",)})
_ASKED: Variant = ({"prompt": _QUESTION}, {})
_PROMPT_COLUMNS = frozenset({"prompt", "instruction", *_QUESTION})


def _ranked() -> Iterator[Shape]:
    for prompt, more in (_PROMPT, _INSTRUCTION, _ASKED):
        optional = {**more, **_SYSTEM}
        lists: Names = ("completions", "responses")
        yield Shape("ranking", Builder.ranked, {**prompt, "ranking": ("ranking",)}, optional)
        yield Shape("scores", Builder.ranked, {**prompt, "completions": lists, "scores": ("scores",)}, optional)
        yield Shape("ranks", Builder.ranked, {**prompt, "completions": lists, "ranks": ("ranks",)}, optional)


def _labelled() -> Iterator[Shape]:
    """Two completions and a label: every stem of the column names with every pair of endings."""
    label: dict[str, Names] = {"label": ("label", "preference", "winner")}
    given: Variant = ({"prompt": ("input",)}, {})
    for prompt, more in (_PROMPT, _INSTRUCTION, _ASKED, given):
        # `input` belongs to an instruction where there is one, and is the prompt only without it.
        without = frozenset({"instruction"} if prompt is given[0] else ())
        for sides in (sides for stem in ("completion", "output", "response", "answer") for sides in _sides(stem)):
            yield Shape("a/b", Builder.labelled_pair, {**prompt, **sides, **label}, {**more, **_SYSTEM}, without)
    yield from (Shape("a/b", Builder.labelled_conversations, {**sides, **label}, _TOOLS) for sides in _sides("conversation"))


def _sides(stem: str) -> list[dict[str, Names]]:
    return [{"completion_a": (f"{stem}_{first}",), "completion_b": (f"{stem}_{second}",)} for first, second in ("ab", "12", "01")]


_ANSWERS: Names = ("output", "response", "answer", "completion")
_MESSAGES: Names = ("messages", "conversation")
_SHAREGPT: Names = ("conversations",)

INSTRUCTIONS = register(
    DataKind(
        "instructions",
        Instruction,
        "instructions",
        shapes=(
            Shape(
                "prompt/completion",
                Builder.instruction,
                {"prompt": ("prompt",), "completion": ("completion", "response")},
                _SYSTEM,
            ),
            Shape("messages", Builder.conversation, {"messages": _MESSAGES}, _TOOLS),
            Shape("sharegpt", Builder.conversation, {"messages": _SHAREGPT}, _TOOLS),
            Shape(
                "alpaca",
                Builder.instruction,
                {"instruction": ("instruction",), "completion": _ANSWERS},
                {"input": ("input",), **_SYSTEM},
            ),
            Shape(
                "question/answer", Builder.instruction, {"prompt": _QUESTION, "completion": ("answer", "a", "response")}, _SYSTEM
            ),
        ),
        completions=("completion",),
        details=(),
        contradiction="conflicting_completions",
    )
)
_PAIR: dict[str, Names] = {"chosen": ("chosen",), "rejected": ("rejected",)}
PREFERENCES = register(
    DataKind(
        "preferences",
        Preference,
        "preferences",
        shapes=(
            *(
                Shape("chosen/rejected", Builder.pair, {**prompt, **_PAIR}, more | _SCORES | _SYSTEM)
                for prompt, more in (_PROMPT, _INSTRUCTION, _ASKED)
            ),
            # With a prompt column, the same columns are `chosen/rejected`; without one, the conversations hold the prompt.
            Shape("conversations", Builder.pair_of_conversations, _PAIR, _SCORES | _TOOLS, _PROMPT_COLUMNS),
            *_ranked(),
            *_labelled(),
        ),
        completions=("chosen", "rejected"),
        details=(),
        contradiction="conflicting_pairs",
    )
)
# The three public forms: TRL's label, LLaMA-Factory's kto_tag, and thumbs of users.
_VERDICT: dict[str, Names] = {"desirable": ("desirable", "label", "kto_tag", "thumbs", "thumbs_up", "feedback")}
LABELLED = register(
    DataKind(
        "labelled",
        Labelled,
        "labelled completions",
        shapes=(
            Shape(
                "prompt/completion",
                Builder.rated,
                {"prompt": ("prompt",), "completion": ("completion", "response"), **_VERDICT},
                _SYSTEM,
            ),
            Shape("messages", Builder.rated_conversation, {"messages": _MESSAGES, **_VERDICT}, _TOOLS),
            Shape("sharegpt", Builder.rated_conversation, {"messages": _SHAREGPT, **_VERDICT}, _TOOLS),
            # No question and answer: there, a label of 0 or 1 is usually a topic.
            Shape(
                "alpaca",
                Builder.rated,
                {"instruction": ("instruction",), "completion": _ANSWERS, **_VERDICT},
                {"input": ("input",), **_SYSTEM},
            ),
            *(
                Shape("chosen/rejected", Builder.both_sides, {**prompt, **_PAIR}, more | _SYSTEM, is_converted=True)
                for prompt, more in (_PROMPT, _INSTRUCTION, _ASKED)
            ),
            Shape("conversations", Builder.both_conversations, _PAIR, _TOOLS, _PROMPT_COLUMNS, is_converted=True),
        ),
        completions=("completion",),
        details=("desirable",),
        contradiction="conflicting_labels",
    )
)
_MAYBE: dict[str, Names] = {"reference": _REFERENCE}
PROMPTS = register(
    DataKind(
        "prompts",
        Prompt,
        "prompts",
        shapes=(
            Shape("prompt", Builder.prompt, {"prompt": ("prompt",)}, _MAYBE | _SYSTEM),
            Shape("turns", Builder.turns, {"turns": ("turns",)}, {"reference": ("reference",), **_SYSTEM}),
            Shape("question", Builder.prompt, {"prompt": _QUESTION}, {"reference": (*_REFERENCE, "a"), **_SYSTEM}),
            Shape("instruction", Builder.prompt, {"instruction": ("instruction",)}, {"input": ("input",)} | _MAYBE | _SYSTEM),
            Shape("messages", Builder.open_conversation, {"messages": _MESSAGES}, _MAYBE | _TOOLS),
            Shape("sharegpt", Builder.open_conversation, {"messages": _SHAREGPT}, _MAYBE | _TOOLS),
        ),
        completions=(),
        details=("reference",),
        contradiction=None,
    )
)
TEXT = register(
    DataKind(
        "text",
        TextRow,
        "text",
        shapes=(Shape("text", Builder.text, {"text": ("text", "content")}),),
        completions=(),
        details=(),
        contradiction=None,
    )
)
CANDIDATES = register(RowKind("candidates", Candidate, "candidates"))
SCORED_CANDIDATES = register(RowKind("scored_candidates", ScoredCandidate, "scored candidates"))
