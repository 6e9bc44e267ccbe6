"""Checks of the chat template: how it renders conversations, and where the loss is taken."""

from __future__ import annotations

import os.path
import re
import time
from typing import Any

from align.data.plain import PlainFormat
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.data.turns import difference
from align.records import Message
from align.report.model.check import ModelCheck, State, listed

# No template contains these words, so they can be found in its output.
_ASKED, _ANSWERED, _ASKED_AGAIN, _SYSTEM = "Qzfirst", "Qzanswer", "Qzsecond", "Qzsystem"
_QUESTION = Message(role="user", content=_ASKED)
_TURNS = [_QUESTION, Message(role="assistant", content=_ANSWERED), Message(role="user", content=_ASKED_AGAIN)]

COMPLETIONS = {
    "plain": "Of course.",
    "Korean": "물론이죠. 도와드릴게요.",
    "emoji": "좋아요 👍🏽",
    "code": "```python\nprint('{{ x }} {% if %}')\n```",
    "a leading space": " Of course.",
    "a leading line end": "\nOf course.",
    "a trailing space": "Of course. ",
    "a trailing line end": "Of course.\n",
    "thinking in tags": "<think>\nHm.\n</think>\n\nOf course.",
}
"""Completions that should be shown as they are, by what is special about them."""


def check_template(chat_format: ChatFormat) -> ModelCheck:
    """Size of the template and the time it takes to render. That it renders at all, `ChatFormat` has checked."""
    if isinstance(chat_format, PlainFormat):
        return ModelCheck("template", "ok", "none; an encoder–decoder model is shown plain text")
    template = chat_format.tokenizer.chat_template
    # An untrusted template may hold half of a surrogate pair, which strict UTF-8 refuses.
    size = len(str(template).encode("utf-8", "surrogatepass"))
    start = time.perf_counter()
    chat_format.prompt_text([Message(role="user", content="How long does this take?")])
    seconds = time.perf_counter() - start
    return ModelCheck("template", "ok", f"{size:,} bytes, rendered in Jinja's immutable sandbox in {seconds * 1000:.1f} ms")


def check_prompt_prefix(chat_format: ChatFormat) -> ModelCheck:
    """Whether a completion follows its prompt in the second turn, too. `ChatFormat` has checked the first turn."""
    try:
        chat_format.completion_text(_TURNS, _ANSWERED)
    except TemplateProblem as problem:
        if problem.reason == "template_rewrites":
            advice = "Rows with several turns are refused (`template_rewrites`); those with one are not concerned."
            return ModelCheck("prompt_prefix", "info", f"in the second turn: {problem}", advice)
    return ModelCheck(
        "prompt_prefix", "ok", "a rendered conversation begins with its rendered prompt, and the completion follows"
    )


def check_one_pass(chat_format: ChatFormat) -> ModelCheck:
    """Whether prompt and completion become the same tokens in one text as in two."""
    prompt, completion = chat_format.prompt_text([_QUESTION]), chat_format.completion_text([_QUESTION], COMPLETIONS["plain"])
    apart = [*chat_format.encode_prompt([_QUESTION]), *chat_format.encode_completion([_QUESTION], COMPLETIONS["plain"])]
    if chat_format.tokenize([prompt + completion])[0] == apart:
        return ModelCheck("one_pass", "ok", "prompt and completion become the same tokens in one text and apart")
    found = "tokens differ where the completion begins when both are one text; align tokenizes them apart, as in sampling"
    return ModelCheck("one_pass", "info", found, "Tokenize prompt and completion apart wherever else you train this model.")


def check_end_of_turn(chat_format: ChatFormat) -> ModelCheck:
    """Whether the loss covers exactly one end-of-sequence token, after the completion."""
    ids = chat_format.encode_completion([_QUESTION], COMPLETIONS["plain"])
    if ids[-1:] != [chat_format.end_token_id] or ids.count(chat_format.end_token_id) != 1:
        found = f"a completion ends with the tokens {ids[-3:]}, not once with {chat_format.end_token_id}"
        return ModelCheck("end_of_turn", "problem", found, "Make eos_token a special token of the tokenizer.")
    if not chat_format.template_closes:
        found = f"the template does not end a completion; align puts {chat_format.end_token!r} there and trains on it"
        advice = "Several turns in one row are shown without it, as the template has it."
        return ModelCheck("end_of_turn", "info", found, advice)
    return ModelCheck("end_of_turn", "ok", f"the loss is taken on the completion and {chat_format.closing!r}")


def check_beginning(chat_format: ChatFormat) -> ModelCheck:
    """Whether a prompt in tokens has one beginning-of-sequence token."""
    tokenizer: Any = chat_format.tokenizer
    begin = tokenizer.bos_token_id
    if begin is None:
        return ModelCheck("beginning", "ok", "the tokenizer has no beginning-of-sequence token, and none is written")
    text = chat_format.prompt_text([_QUESTION])
    count = chat_format.tokenize([text])[0].count(begin)
    token = f"{tokenizer.bos_token!r} ({begin})"
    # Some models use one token for both; it then occurs once more at the end of each turn.
    if count > 1 and begin != tokenizer.eos_token_id:
        advice = "Write it once in chat_template.jinja; nothing is added to a rendered prompt."
        return ModelCheck("beginning", "problem", f"{token} is {count} times in a prompt of one turn", advice)
    added = list(tokenizer([text], add_special_tokens=True)["input_ids"][0]).count(begin) > count
    if count == 0 and added:
        found = f"the template does not write {token}, which the tokenizer puts in front of plain text"
        return ModelCheck("beginning", "info", found, "If the model was trained with it, write {{ bos_token }} in the template.")
    if count == 0:
        return ModelCheck("beginning", "ok", f"none is written; {token} is not used")
    warning = "; a program that lets the tokenizer add special tokens to a rendered prompt gets two" if added else ""
    return ModelCheck("beginning", "ok", f"one {token}{warning}")


def check_first_message(chat_format: ChatFormat) -> ModelCheck:
    """Whether the template puts a text of its own in front of the first question."""
    before = chat_format.prompt_text([_QUESTION]).partition(_ASKED)[0]
    try:
        again = chat_format.prompt_text(_TURNS).rpartition(_ASKED_AGAIN)[0].rpartition(_ANSWERED)[2]
    except TemplateProblem:
        again = ""
    # What stands before a later question as well is the template's frame of a turn; the rest is its own text.
    usual = _common_end(before, again)
    begin = str(getattr(chat_format.tokenizer, "bos_token", None) or "")
    extra = (before[: len(before) - len(usual)] if usual else before).removeprefix(begin)
    # Role names and line ends are a word or two; a system message is longer.
    if again and len(extra.split()) > 2:
        return ModelCheck("first_message", "info", f"without a system message, the template writes its own: {_cut(extra)}")
    return ModelCheck(
        "first_message", "ok", f"a prompt begins with {_cut(before)}" if before else "a prompt begins with the text itself"
    )


def check_system_message(chat_format: ChatFormat) -> ModelCheck:
    """Whether a system message is shown."""
    name = "system_message"
    try:
        text = chat_format.prompt_text([Message(role="system", content=_SYSTEM), _QUESTION])
    except TemplateProblem as problem:
        return ModelCheck(name, "info", str(problem), "Put the instruction into the user's message; such rows are dropped.")
    if _SYSTEM not in text:
        advice = "Put the instruction into the user's message, or fix chat_template.jinja."
        return ModelCheck(name, "problem", "the template leaves system messages out silently", advice)
    return ModelCheck(name, "ok", f"shown: {_cut(text.partition(_ASKED)[0])}")


def check_two_turns(chat_format: ChatFormat) -> ModelCheck:
    """Whether all turns of a conversation are shown."""
    try:
        text = chat_format.prompt_text(_TURNS)
    except TemplateProblem as problem:
        return ModelCheck("two_turns", "info", str(problem), "Train on rows of one turn; others are dropped (`template_error`).")
    missing = [message.role for message in _TURNS if message.content not in text]
    if missing:
        found = f"the template leaves out {', '.join(missing)} messages of earlier turns silently"
        return ModelCheck("two_turns", "problem", found, "Fix chat_template.jinja, or train on rows of one turn.")
    return ModelCheck("two_turns", "ok", "all turns are shown")


def check_date(chat_format: ChatFormat) -> ModelCheck:
    """Whether the template's output depends on the date."""
    text = str(chat_format.tokenizer.chat_template or "")
    if chat_format.printed_dates:
        shown = listed(list(chat_format.printed_dates.values()))
        found = f"the template prints today's date; align gives it {shown} on every day"
        return ModelCheck("date", "info", found, "Another day: `chat: {date: …}` at the model.")
    if named := re.search(r"\bdate_string\b", text):
        return ModelCheck(
            "date",
            "info",
            f"the template writes a date, {named.group()}, which align does not set; the template uses its default",
        )
    return ModelCheck("date", "ok", "the same on every day")


def check_completions(chat_format: ChatFormat) -> ModelCheck:
    """Whether completions are shown, and come back from tokens, as they are."""
    refused, changed = {}, []
    for what, completion in COMPLETIONS.items():
        try:
            expected = chat_format.completion_text([_QUESTION], completion)
        except TemplateProblem as problem:
            refused[what] = str(problem)
            continue
        found = chat_format.decode_completion(chat_format.encode_completion([_QUESTION], completion))
        if not chat_format.same_text(found, expected):
            changed.append(what)
            refused.setdefault(what, f"the tokenizer decodes to something else: {difference(expected, found)}")
    if not refused:
        return ModelCheck("completions", "ok", f"kept as they are: {listed(list(COMPLETIONS), 99)}")
    state: State = "problem" if "plain" in refused else "info"
    first = next(iter(refused))
    found = f"not kept: {listed(list(refused), 99)}. With {first}: {refused[first]}"
    return ModelCheck(
        "completions", state, found, "Rows with such completions are refused before training; fix them, or drop them."
    )


def _common_end(first: str, second: str) -> str:
    return os.path.commonprefix([first[::-1], second[::-1]])[::-1]


def _cut(text: str, most: int = 60) -> str:
    shown = repr(text)
    return shown if len(shown) <= most else f"{shown[: most - 20]} … {shown[-18:]}"
