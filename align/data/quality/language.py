"""The language of a text: by its script where one language uses it, by py3langid where several share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

UNKNOWN = "und"
"""ISO 639's code for undetermined."""
READ_CHARACTERS = 300
MIN_LETTERS = 20
"""With fewer letters of a script that several languages share, the language is not guessed."""
MIN_PROBABILITY = 0.5

_LANGUAGE_OF_SCRIPT = {
    "Hangul": "ko", "Thai": "th", "Greek": "el", "Hebrew": "he", "Georgian": "ka", "Armenian": "hy", "Khmer": "km", "Lao": "lo",
    "Myanmar": "my", "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Malayalam": "ml", "Gujarati": "gu", "Gurmukhi": "pa",
    "Bengali": "bn", "Sinhala": "si", "Ethiopic": "am",
}  # fmt: skip
_LANGUAGES_OF_SCRIPT = {
    script: frozenset(languages.split())
    for script, languages in {
        "Latin": "af az ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv ms mt nl no pl pt ro sk sl sq sv sw"
        " tl tr uz vi",
        "Cyrillic": "be bg kk ky mk mn ru sr tg uk",
        "Arabic": "ar fa ku ps ur",
        "Devanagari": "hi mr ne",
    }.items()
}
LANGUAGES = tuple(sorted({*_LANGUAGE_OF_SCRIPT.values(), "ja", "zh"}.union(*_LANGUAGES_OF_SCRIPT.values())))
"""Every language that can be found."""
_LETTERS_PER_SIGN = {"Hangul": 2.5, "Han": 3.0, "Hiragana": 1.5, "Katakana": 1.5}
"""About how many Latin letters a sign stands for, so that a Korean sentence with English terms in it stays Korean."""
_KANA_SHARE = 0.1
"""Japanese has at least so many kana among its kana and Han; a Chinese text with a Japanese name has fewer."""

_SCRIPTS = [*_LANGUAGE_OF_SCRIPT, *_LANGUAGES_OF_SCRIPT, "Han", "Hiragana", "Katakana"]
_RUN_OF_SCRIPT = regex.compile("|".join(rf"(?P<{script}>(?:(?=\p{{L}})\p{{{script}}})+)" for script in _SCRIPTS))


def language_of(text: str) -> str:
    """Language of most of a text, as an ISO 639 code; `und` where it is not clear.

    Hangul is Korean, kana is Japanese, Han without kana is Chinese, and so on, however short the text is. In a script that many
    languages share (Latin, Cyrillic, Arabic, Devanagari) a text with fewer than `MIN_LETTERS` letters is `und`, and so is one
    whose best language is less likely than `MIN_PROBABILITY`. Only the languages of the text's script are considered, and of
    Latin ones only some 40 widely written ones. Code, numbers and names may pass for any of them. Only the first
    `READ_CHARACTERS` are read. Deterministic, and safe to call from several threads.
    """
    counts = _letters_by_script(text[:READ_CHARACTERS])
    # Japanese mixes Han and kana, so these three compete with other scripts as one.
    east_asian = {script: counts.pop(script, 0.0) for script in ("Han", "Hiragana", "Katakana")}
    together, kana = sum(east_asian.values()), east_asian["Hiragana"] + east_asian["Katakana"]
    script = max(counts, key=lambda name: counts[name], default="")
    if together > counts.get(script, 0.0):
        return "ja" if kana >= _KANA_SHARE * together else "zh"
    if script in _LANGUAGE_OF_SCRIPT:
        return _LANGUAGE_OF_SCRIPT[script]
    if not script or counts[script] < MIN_LETTERS:
        return UNKNOWN
    languages = _LANGUAGES_OF_SCRIPT[script]
    # Ranked among all languages, then filtered: `set_languages` for each script would change state that threads share.
    likely = {
        language: p for language, p in _identifier().rank(" ".join(text[:READ_CHARACTERS].split())) if language in languages
    }
    best = max(likely, key=lambda language: likely[language], default=UNKNOWN)
    # The probabilities are of all languages; within the script, they are scaled to sum to 1.
    return best if likely.get(best, 0.0) >= MIN_PROBABILITY * sum(likely.values()) else UNKNOWN


def language_shares(texts: Iterable[str]) -> dict[str, float]:
    """Share of texts by language, largest first, equals in alphabetical order; empty without texts."""
    counts = Counter(map(language_of, texts))
    return {language: count / counts.total() for language, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def _letters_by_script(text: str) -> dict[str, float]:
    """Letters, in Latin ones, by script."""
    if text.isascii():
        letters = float(sum(map(str.isalpha, text)))
        return {"Latin": letters} if letters else {}
    counts: Counter[str] = Counter()
    for run in _RUN_OF_SCRIPT.finditer(text):
        counts[run.lastgroup] += len(run[0])
    return {script: count * _LETTERS_PER_SIGN.get(script, 1.0) for script, count in counts.items()}


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """An identifier of our own: the package's shared one could be restricted to other languages by someone else."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, for the model

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(sorted(frozenset().union(*_LANGUAGES_OF_SCRIPT.values())))
    return identifier
