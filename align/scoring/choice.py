"""Reads which option a text chooses: None where it chooses none or several, rather than a guess."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import regex

MAX_CHARACTERS = 20_000
"""Longest completion that is read."""

_MARKUP = regex.compile(r"\\(?:text(?:bf|rm)?|math(?:rm|bf))\s?\{|[*`$]")
_OPEN = r"""[\s(\[{<"'“‘]*"""
_OPEN_LINE = _OPEN.replace(r"\s", " ")
_CLOSE = r"""[)\]}>"'”’]*+"""
_NOT_SAID = r"(?<!(?:\b(?:if|suppose|assume|assuming|whether|not|never|wrong|incorrect|cannot)\b|n['’]t\b)[^.\n]{0,30})"
_NOT_BEHIND = r"(?!번?\s*[이가은는]?\s*(?:아[니닙닌]|틀))(?!\s*\?)"
_ANNOUNCED = (
    r"(?:\b(?:answer|choice|option)(?:\s+(?:is|would be|should be|must be)\b|\s?[:=])\s*:?(?:\s*(?:option|choice)\b)?"
    r"|\b(?:choose|chose|pick|select|go with)(?:\s+(?:the\s+)?(?:option|choice|answer)\b)?"
    r"|(?<!오)(?:정답|답)(?:은|는|이|:|\s)\s*:?|####|\\boxed)"
)
_AND = r"\s*(?:,|/|&|\bor\b|\band\b|번?\s*(?:또는|혹은|이나|나|와|과|및)(?!\p{Hangul}))"
"""Between two options: both are named, so neither is chosen."""
_CONFIRMED = (
    r"\s+(?:is|must be|would be)\s+(?:the\s+)?(?:only\s+)?(?:correct|right|best (?:answer|option|choice))\b(?!\s*\?)"
    r"|번?\s*[이가]?\s*(?:정답|답이|옳|맞)(?![^.\n]{0,8}(?:않|아니|아닙|없))"
)
_REFUTED = (
    r"(?!\s*[.:]?\s*(?:is|was|are|isn['’]t|cannot|can['’]t|wrong|incorrect|false|not)\b"
    r"|\s*번?(?:[은는이가]\s|\s*(?:틀|오답|아니)))"
)


def choice_of(text: str, labels: Sequence[str]) -> str | None:
    r"""The option that `text` chooses, one of `labels`, or None if there is none or more than one.

    Counts what is announced ("The answer is (B)", "정답은 B입니다", "\boxed{B}"), confirmed ("B is correct", "B가 맞습니다"),
    or begins a line with a bracket or nothing behind it ("B) because …", "(B)", "B번"). A list of several options is no choice.
    Letters count in upper case; in lower case only with a bracket or alone. ① is 1.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _MARKUP.sub("", unicodedata.normalize("NFKC", text))
    plain = {unicodedata.normalize("NFKC", label): label for label in labels}
    alone, said, begun = _patterns(tuple(plain))
    if match := alone.fullmatch(text):
        return plain[match["label"].upper()]
    chosen = {label.upper() for pattern in said for match in pattern.finditer(text) for label in match.captures("label")}
    lines = {match["label"].upper() for match in begun.finditer(text)}
    if len(lines) == 1:
        chosen |= lines
    return plain[chosen.pop()] if len(chosen) == 1 else None


@lru_cache(maxsize=64)
def _patterns(labels: tuple[str, ...]) -> tuple[regex.Pattern[str], tuple[regex.Pattern[str], ...], regex.Pattern[str]]:
    """What finds a label alone, those announced or confirmed, and one at the beginning of a line."""
    either = "|".join(sorted(labels, key=len, reverse=True))
    letters = "|".join(label for label in labels if not label.isdigit()) or "(?!)"
    end = r"(?![\p{Latin}\p{N}])(?!['’\-]\w|\.\d)"
    label = rf"(?<![\p{{L}}\p{{N}}.\-])(?:(?P<label>{either}){end}|(?<=\()(?P<label>(?i:{either}))(?=\)))"
    named = rf"{_OPEN}{label}{_CLOSE}"
    announced = rf"(?i:{_NOT_SAID}{_ANNOUNCED}){named}{_NOT_BEHIND}(?:{_AND}{named})*"
    confirmed = rf"{_NOT_SAID}{label}{_CLOSE}(?:{_CONFIRMED})"
    begun = (
        rf"(?m)^{_OPEN_LINE}(?:(?P<label>(?i:{either}))(?=[)\]]){_CLOSE}{_REFUTED}|(?P<label>{letters})[.:](?=\s){_REFUTED}"
        rf"|(?P<label>{either})(?:{_CLOSE}[.!]?[^\S\n]*$|\s?번(?!\p{{Hangul}}|\s*아)|\s?번(?:입니다|이다|이에요|이야)))"
    )
    alone = rf"[^\p{{L}}\p{{N}}.+\-]*(?P<label>(?i:{either}))[^\p{{L}}\p{{N}}?]*"
    return regex.compile(alone), (regex.compile(announced), regex.compile(confirmed)), regex.compile(begun)
