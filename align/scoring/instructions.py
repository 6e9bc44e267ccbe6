"""Checks instructions such as "no commas": those of IFEval (Zhou et al. 2023) that need no download.

A check looks at the text alone. Where the published code and its own words differ, the words count: a keyword is not a regular
expression, any character can be counted as a letter, and blank lines do not move the number of a paragraph.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import regex

from align.data.quality.language import LANGUAGES, UNKNOWN, language_of

MAX_CHARACTERS = 50_000
"""Longest completion that is read."""
LEFT_OUT = {
    "length_constraints:number_sentences": "it needs a model that finds sentences",
    "change_case:capital_word_frequency": "it needs a model that finds sentences",
}
"""Kinds of IFEval that are not checked, and why."""

_RELATIONS = ("at least", "less than")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCES = ("```json", "```Json", "```JSON", "```")
_COMMAS = ",，、،"
"""Also those of Chinese, Japanese and Arabic, which readers see as commas."""

Arguments = Mapping[str, Any]


class Instruction(NamedTuple):
    """One instruction of a prompt."""

    kind: str
    """Such as `punctuation:no_comma`."""
    arguments: Arguments


def read_instructions(kinds: str, arguments: str) -> list[Instruction]:
    """The instructions of a prompt.

    Args:
        kinds: JSON list of ids, or a single id.
        arguments: JSON list with a mapping for each of them, or a single mapping; null stands for no argument.
    Raises:
        ValueError: if they cannot be read, a kind is unknown or left out, or an argument is missing or has a wrong type.
    """
    names, values = _listed(kinds), _listed(arguments or "{}")
    if not names:
        raise ValueError("no instruction")
    if len(names) != len(values):
        raise ValueError(f"{len(names)} instructions, but arguments for {len(values)}")
    return [Instruction(str(name), _arguments(str(name), value)) for name, value in zip(names, values, strict=True)]


def _listed(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, list) else [value]


def _arguments(kind: str, given: Any) -> Arguments:
    if kind in LEFT_OUT:
        raise ValueError(f"the instruction {kind!r}, which is not checked here: {LEFT_OUT[kind]}")
    if kind not in CHECKS:
        raise ValueError(f"the unknown instruction {kind[:60]!r}; known: {', '.join(sorted(CHECKS))}")
    if not isinstance(given, dict | None):
        raise ValueError(f"{str(given)[:60]!r} as arguments of {kind!r}, where a mapping is expected")
    found = {}
    for name, wanted in CHECKS[kind].arguments.items():
        value = (given or {}).get(name)
        if wanted is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # a table with empty cells has floats
        is_right = value in wanted if isinstance(wanted, tuple) else type(value) is wanted and value not in ("", [])
        if not is_right or (isinstance(value, list) and not all(isinstance(word, str) and word for word in value)):
            words = {int: "a whole number", str: "a text", list: "a list of texts", LANGUAGES: "one of " + " ".join(LANGUAGES)}
            text = words.get(wanted, " or ".join(_RELATIONS))
            raise ValueError(f"{str(value)[:60]!r} as {name!r} of {kind!r}, where {text} is expected")
        found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else value


def follows_all(text: str, instructions: list[Instruction], *, loose: bool = False) -> bool:
    """Whether a completion in NFC follows every instruction; an empty one follows none.

    Args:
        loose: also accept it if it does without its first or its last line, or both, and without asterisks (IFEval's loose
            accuracy); each instruction may need another of these changes.
    """
    texts = [text]
    if loose:
        lines = text.split("\n")
        texts = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
        texts = [text, *texts, *(each.replace("*", "") for each in texts)]
    texts = [each for each in texts if each.strip() and len(each) <= MAX_CHARACTERS]
    return all(any(CHECKS[kind].follows(each, arguments) for each in texts) for kind, arguments in instructions)


def _holds(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _has_keywords(text: str, arguments: Arguments) -> bool:
    return all(word.casefold() in text.casefold() for word in arguments["keywords"])


def _has_no_forbidden_word(text: str, arguments: Arguments) -> bool:
    # Behind a Korean word particles follow; behind others a letter makes another word.
    words = [
        regex.escape(word.casefold()) + ("" if regex.search(r"\p{Hangul}$", word) else r"(?!\w)")
        for word in arguments["forbidden_words"]
    ]
    return not regex.search(rf"(?<!\w)(?:{'|'.join(words)})", text.casefold())


def _has_keyword_often(text: str, arguments: Arguments) -> bool:
    return _holds(text.casefold().count(arguments["keyword"].casefold()), arguments["relation"], arguments["frequency"])


def _has_letter_often(text: str, arguments: Arguments) -> bool:
    return _holds(text.lower().count(arguments["letter"].lower()), arguments["let_relation"], arguments["let_frequency"])


def _has_words(text: str, arguments: Arguments) -> bool:
    return _holds(len(regex.findall(r"\w+", text)), arguments["relation"], arguments["num_words"])


def _has_paragraphs(text: str, arguments: Arguments) -> bool:
    paragraphs = [part.strip() for part in text.split("***")]
    inner = paragraphs[1 if not paragraphs[0] else 0 : len(paragraphs) - (not paragraphs[-1])]
    return all(inner) and len(inner) == int(arguments["num_paragraphs"])


def _starts_paragraph(text: str, arguments: Arguments) -> bool:
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != arguments["num_paragraphs"] or not 1 <= arguments["nth_paragraph"] <= len(paragraphs):
        return False
    word = paragraphs[arguments["nth_paragraph"] - 1].split()[0].lstrip("'").lstrip('"')
    first: str = regex.split(r"[.,?!'\"]", word, maxsplit=1)[0]
    return first.lower() == str(arguments["first_word"]).lower()


def _has_placeholders(text: str, arguments: Arguments) -> bool:
    return len(regex.findall(r"\[[^\]\n]*\]", text)) >= int(arguments["num_placeholders"])


def _has_postscript(text: str, arguments: Arguments) -> bool:
    # P.S. may be written P. S., and P.P.S with or without the last full stop.
    marker = regex.escape(arguments["postscript_marker"].lower()).replace(r"\.", r"\.\s?")
    return regex.search(marker.removesuffix(r"\s?"), text.lower()) is not None


def _has_bullets(text: str, arguments: Arguments) -> bool:
    return len(regex.findall(r"(?m)^\s*(?:\*[^*]|-).*$", text)) == int(arguments["num_bullets"])


def _has_highlights(text: str, arguments: Arguments) -> bool:
    single = [part.strip("*").strip() for part in regex.findall(r"\*[^\n*]*\*", text)]
    double = [part[2:-2].strip() for part in regex.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(map(bool, [*single, *double])) >= int(arguments["num_highlights"])


def _has_sections(text: str, arguments: Arguments) -> bool:
    found = regex.findall(rf"{regex.escape(arguments['section_spliter'])}\s?\d+", text)
    return len(found) >= int(arguments["num_sections"])


def _is_json(text: str, _: Arguments) -> bool:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str, _: Arguments) -> bool:
    return any(title.strip("<> ") for title in regex.findall(r"<<[^\n]+?>>", text))


def _has_two_responses(text: str, _: Arguments) -> bool:
    parts = [part.strip() for part in text.split("*" * 6)]
    inner = parts[1 if not parts[0] else 0 : len(parts) - (not parts[-1])]
    return len(inner) == 2 and all(inner) and all(first != second for first, second in pairwise(inner))


def _repeats_prompt(text: str, arguments: Arguments) -> bool:
    return text.strip().lower().startswith(str(arguments["prompt_to_repeat"]).lower())


def _ends_with(text: str, arguments: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(str(arguments["end_phrase"]).lower())


def _is_english(text: str) -> bool:
    """Whether it is English, or too short to say and mostly in Latin letters."""
    found = language_of(text.lower())
    is_latin = 2 * len(regex.findall(r"\p{Latin}", text)) > len(regex.findall(r"\p{L}", text))
    return found == "en" or (found == UNKNOWN and is_latin)


class Check(NamedTuple):
    """One kind of instruction."""

    follows: Callable[[str, Arguments], bool]
    """Whether a text that is not empty follows it."""
    arguments: Mapping[str, Any]
    """Type of each argument it needs, or a tuple of its values."""


CHECKS: Mapping[str, Check] = {
    "keywords:existence": Check(_has_keywords, {"keywords": list}),
    "keywords:forbidden_words": Check(_has_no_forbidden_word, {"forbidden_words": list}),
    "keywords:frequency": Check(_has_keyword_often, {"keyword": str, "relation": _RELATIONS, "frequency": int}),
    "keywords:letter_frequency": Check(_has_letter_often, {"letter": str, "let_relation": _RELATIONS, "let_frequency": int}),
    "language:response_language": Check(lambda text, given: language_of(text) == given["language"], {"language": LANGUAGES}),
    "length_constraints:number_words": Check(_has_words, {"relation": _RELATIONS, "num_words": int}),
    "length_constraints:number_paragraphs": Check(_has_paragraphs, {"num_paragraphs": int}),
    "length_constraints:nth_paragraph_first_word": Check(
        _starts_paragraph, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}
    ),
    "detectable_content:number_placeholders": Check(_has_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": Check(_has_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": Check(_has_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": Check(lambda text, _: any(each in text for each in _CONSTRAINED), {}),
    "detectable_format:number_highlighted_sections": Check(_has_highlights, {"num_highlights": int}),
    "detectable_format:multiple_sections": Check(_has_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:json_format": Check(_is_json, {}),
    "detectable_format:title": Check(_has_title, {}),
    "combination:two_responses": Check(_has_two_responses, {}),
    "combination:repeat_prompt": Check(_repeats_prompt, {"prompt_to_repeat": str}),
    "startend:end_checker": Check(_ends_with, {"end_phrase": str}),
    "startend:quotation": Check(lambda text, _: regex.fullmatch(r'\s*".*"\s*', text, regex.DOTALL) is not None, {}),
    "change_case:english_capital": Check(lambda text, _: text.isupper() and _is_english(text), {}),
    "change_case:english_lowercase": Check(lambda text, _: text.islower() and _is_english(text), {}),
    "punctuation:no_comma": Check(lambda text, _: not set(_COMMAS) & set(text), {}),
}
"""Every kind that is checked, by the id that IFEval gives it."""
