"""The catalogue of all row checks, from which messages, recipes, commands and the docs are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from align.config.names import LONGEST_NAME

Action = Literal["error", "drop", "keep"]
"""`error`: the input is unusable. `drop`: the row is dropped and listed. `keep`: the row is used and counted."""
Found = Literal["reading", "row", "text", "rows", "model"]
"""What a check looks at: the file, the fields of a row, its texts, several rows, or a row's tokens for a model."""

BY_ON_INVALID: tuple[Action, ...] = ("error", "drop")
ANY: tuple[Action, ...] = ("error", "drop", "keep")


@dataclass(frozen=True)
class RowCheck:
    """One thing that can be wrong."""

    name: str
    """The row's `drop_reason`, and the finding's name in manifests."""
    found: Found
    meaning: str
    """What was found; completes "rows with: …" in a summary."""
    advice: str
    """What to do."""
    actions: tuple[Action, ...] = BY_ON_INVALID
    """Possible actions. A row from which no record can be made cannot be kept."""
    default: Action | None = None
    """Action by default; None: that of `on_invalid`."""


def _finding(name: str, found: Found, meaning: str, advice: str, default: Action | None = "keep") -> RowCheck:
    """A finding about a row that is usable in spite of it."""
    return RowCheck(name, found, meaning, advice, ANY, default)


_ALL = (
    RowCheck("not_json", "reading", "not JSON, or a key is there twice", "fix the line; write files with a JSON library"),
    RowCheck("not_an_object", "reading", "JSON, but not an object", "every row is {…}"),
    RowCheck("not_csv", "reading", "quotes that do not fit together", "double every quote inside a quoted cell"),
    RowCheck(
        "wrong_columns", "reading", "more or fewer cells than the header, or a column named twice", "quote cells with commas"
    ),
    RowCheck("bad_encoding", "reading", "not UTF-8", "save the file as UTF-8"),
    RowCheck("damaged_file", "reading", "a file that is damaged or cut short", "get it again", ("error",), "error"),
    RowCheck(
        "byte_order_mark",
        "reading",
        "a byte order mark at the start of the file; it is skipped",
        "save as UTF-8 without it",
        ("error", "keep"),
        "keep",
    ),
    RowCheck(
        "crlf_line_ends",
        "reading",
        "lines that end in CR LF, as Windows writes them; read as line ends",
        "save with LF where other tools cut the lines: they would keep the CR",
        ("error", "keep"),
        "keep",
    ),
    RowCheck("missing_field", "row", "a required field is absent or null", "fill it, or map it with columns"),
    RowCheck("wrong_type", "row", "a value of another type, or a message without role and content", "write what the field takes"),
    RowCheck("ambiguous_shape", "row", "the row can be read in two ways", "say with columns which fields are meant"),
    RowCheck("empty_prompt", "row", "no prompt, or nothing visible in it", "fill or remove the row"),
    RowCheck("empty_completion", "row", "nothing visible in a completion", "fill or remove the row"),
    RowCheck("empty_text", "row", "nothing visible in the text", "remove the row"),
    RowCheck("empty_reference", "row", "nothing visible in the reference", "leave the reference out, or fill it"),
    RowCheck(
        "too_long",
        "row",
        "a text longer than max_characters, or a row longer than 64 MiB or of more than 4 million values",
        "shorten it, or raise the limit",
    ),
    RowCheck(
        "lone_surrogate", "row", "half a surrogate pair, which no UTF-8 text can hold", "write the file again from its source"
    ),
    RowCheck(
        "bad_roles",
        "row",
        "an unknown role, a system message that is not the first, or an order in which no completion can follow",
        "user and assistant take turns; the assistant is last",
    ),
    RowCheck(
        "bad_tools",
        "row",
        "tools, tool calls or results that are not in OpenAI's form or do not fit together",
        "see the message; where a column `tools` holds something else, map another: `columns: {tools: none}`",
    ),
    RowCheck("zero_weight", "row", "no message of the assistant with weight 1", "remove the row: nothing is trained on"),
    RowCheck(
        "prompt_differs", "row", "the sides of a pair, or a prompt and its messages, begin differently", "pair them by prompt"
    ),
    RowCheck("identical", "row", "chosen equals rejected", "remove the pair"),
    RowCheck("nonfinite_score", "row", "a score that is NaN or infinite", "score again, or leave the score out"),
    RowCheck("tie", "row", "a label or scores that prefer none", "nothing: it states no preference", BY_ON_INVALID, "drop"),
    _finding(
        "identical_after_trim", "text", "chosen and rejected differ only in white space around them", "remove the pair", None
    ),
    _finding("number_as_text", "text", "a score written as text", 'write 0.5, not "0.5"'),
    _finding("trailing_white_space", "text", "a text that ends in white space", "trim it: the model learns to write it"),
    _finding("not_nfc", "text", "a text that is not in Unicode's NFC form", "normalise it; Korean from macOS names is often so"),
    _finding("control_characters", "text", "control characters in a text", "find the export that wrote them"),
    _finding("nul_character", "text", "a NUL character in a text", "remove it; many tools cut the text there"),
    RowCheck("duplicate_id", "rows", "the id of an earlier row", "give every row its own id, or none"),
    _finding("repeated_rows", "rows", "an earlier row repeated entirely", "remove the later ones: they are trained on twice"),
    _finding(
        "conflicting_pairs", "rows", "a pair that occurs the other way round too", "remove both: they cancel each other out"
    ),
    _finding(
        "conflicting_completions",
        "rows",
        "a prompt with several different completions",
        "intended, or two sources that disagree",
    ),
    _finding(
        "conflicting_labels",
        "rows",
        "equal prompts with different labels, in a field or in an unused column of few values",
        "look which label is right",
    ),
    _finding("repeated_prompts", "rows", "the prompt of an earlier row", "fine for preferences; check the source otherwise"),
    _finding("near_duplicate", "rows", "a prompt or text almost equal to an earlier row's", "keep one of each group"),
    _finding(
        "special_tokens", "model", "a token of the model's template inside a text", "take it out: it ends or starts turns", None
    ),
    _finding("too_many_tokens", "model", "more tokens than the limit", "shorten it, or raise the limit", None),
    _finding(
        "identical_after_truncation",
        "model",
        "chosen and rejected are equal up to the limit of tokens",
        "raise the limit, or remove the pair",
        None,
    ),
    _finding("contains_eos", "model", "the end-of-sequence token inside a text", "take it out", None),
    _finding("not_representable", "model", "the tokenizer cannot write the completion", "use another model or text", None),
    _finding("template_rewrites", "model", "the chat template changes the text", "trim the text, or fix the template", None),
    _finding("contains_thinking", "model", "reasoning that the chat template rewrites", "set `chat.thinking` of the model", None),
    _finding(
        "tools_not_shown",
        "model",
        "tools, tool calls or results that the chat template leaves out",
        "set `chat.template` of the model, or leave the tools out",
        None,
    ),
    _finding("template_error", "model", "the chat template refuses the conversation", "see the message", None),
)

ROW_CHECKS: Mapping[str, RowCheck] = {check.name: check for check in _ALL}
"""By name, in the order in which a summary has them."""

STATISTICS: Mapping[str, str] = {"chosen_longer": "pairs whose longer completion was chosen"}
"""Findings that are no fault of any row."""


def action_of(name: str, checks: Mapping[str, Action], on_invalid: Action) -> Action:
    """The action for a row with the problem or finding `name`."""
    # From the most specific to the most general setting.
    return checks.get(name) or ROW_CHECKS[name].default or on_invalid


def check_actions(checks: Mapping[str, Action], *, with_model: bool) -> None:
    """Refuse a check that does not exist, or an action that it does not have.

    Args:
        with_model: whether there is a model, which some checks need.
    Raises:
        ValueError: that names the check, the action and what is possible.
    """
    for name, action in checks.items():
        check = ROW_CHECKS.get(name)
        if check is None:
            close = get_close_matches(name[:LONGEST_NAME], ROW_CHECKS, n=1)
            advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(ROW_CHECKS)}"
            raise ValueError(f"there is no check {name!r}; {advice}")
        if action not in check.actions:
            raise ValueError(f"{name} cannot be {action!r}, only {' or '.join(check.actions)}: {check.meaning}")
        # Without the error, the action would be ignored: no model's tokenizer is at hand when data is read.
        if check.found == "model" and not with_model:
            raise ValueError(
                f"{name} needs a model: a stage checks it when it starts (its on_invalid decides), "
                "and so does align data validate --model"
            )
