"""Signals of quality: properties of a text that are often, though not always, a reason not to train on it.

Cheap, and the same in every language but for refusals, which are looked for in English and Korean. A signal is a reason to look,
not a verdict: a tutorial on HTML has tags, and a contract has addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import regex

from align.data.quality.repetition import repeated_share

MIN_LETTERS = 3
"""Few, because a whole Korean sentence can have three syllables."""
MIN_CHARACTERS = 20
"""Shorter texts are not judged by shares of their characters."""
MIN_LETTER_SHARE = 0.5
MAX_CAPITAL_SHARE = 0.7
MAX_REPEATED_SHARE = 0.3
REPEATED_NGRAM_WORDS = 5
MIN_CHARACTERS_UNENDED = 200
"""Chat lines and list items need no full stop; a text of this length without one was probably cut."""
REFUSAL_WITHIN = 200
"""Characters from the start within which a refusal counts; later it is a quotation or an aside."""


@dataclass(frozen=True)
class Signal:
    """One signal in words."""

    sentence: str
    """Completes a sentence about the texts that show it: "12 texts …"."""
    advice: str
    """What to do about them."""


SIGNALS: Mapping[str, Signal] = {
    "blank": Signal("have nothing but white space", "Remove the rows; there is nothing to learn or to answer."),
    "very_short": Signal(
        "have fewer than 3 letters or digits", "Read some: a label or a number may be right, a lone 'ok' is not."
    ),
    "few_letters": Signal(
        "are less than half letters and digits", "Read some: it may be a table, code or markup, or the rest of a broken text."
    ),
    "mostly_capitals": Signal("are mostly capitals", "Read some; a model trained on shouting shouts."),
    "repetitive": Signal("repeat over 30 % of their 5-word runs or sentences", "Drop generated ones; sampling got stuck."),
    "refusal": Signal("begin with a refusal", "Check the share: a few per cent teach a model to refuse what it should not."),
    "unfinished": Signal(
        "are long and do not end like a sentence", "Raise the length limit they were sampled with, or drop them."
    ),
    "markup": Signal("have HTML tags or entities", "Strip the markup where it came from scraping."),
    "template_leftover": Signal(
        "have role marks of a chat template", "Split the turns into messages; the template adds its own."
    ),
    "placeholder": Signal("have a placeholder such as [name]", "Fill it in or drop the row; the model would write it."),
    "mojibake": Signal("were decoded with the wrong encoding", "Read the source again as UTF-8 (or cp949) and convert it anew."),
    "invisible": Signal("have invisible characters", "Remove them; they split words into other tokens than readers see."),
    "email": Signal("have an e-mail address", "Privacy: replace addresses of people before training."),
    "phone": Signal("have what looks like a telephone number", "Privacy: replace numbers of people before training."),
    "link": Signal("have a link", "A model makes up links it saw often; drop them if they are not wanted."),
    "copies_prompt": Signal("repeat their prompt", "Cut the prompt off; the completion should begin after it."),
}
"""Name → words, in the order of a report."""

_PATTERNS = {
    "markup": regex.compile(
        r"</?(?:p|br|div|span|a|b|i|em|strong|ul|ol|li|table|t[rdh]|h[1-6]|img|font|script|style)(?:\s[^<>]{0,300})?/?>"
        r"|&(?:nbsp|amp|lt|gt|quot|apos|\#\d{2,5});",
        regex.IGNORECASE,
    ),
    "template_leftover": regex.compile(
        r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
        r"|^\#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User|명령어|응답)\b:?"
        r"|^(?:Human|Assistant|User|사용자|어시스턴트): ",
        regex.MULTILINE,
    ),
    "placeholder": regex.compile(
        r"\[(?:your|insert|enter|the)? ?(?:name|company|date|address|email|phone|title|이름|회사명|날짜)(?: name| here)?\]"
        r"|\{\{ ?\w+ ?\}\}|lorem ipsum",
        regex.IGNORECASE,
    ),
    # UTF-8 read as Latin-1 or cp1252: accents become Ã or Â and a sign, quotes â€ and a sign, Hangul ì í ë ê and two signs.
    "mojibake": regex.compile(r"\ufffd|[ÃÂ][\u0080-\u00bf]|â€|[ìíëê][\u0080-\u00bfŒœŠšŽžŸƒ‚„…†‡ˆ‰‹›‘’“”•–—˜™€]{2}"),
    # Not the joiners U+200C and U+200D, which Persian, Indic scripts and emoji need.
    "invisible": regex.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"),
    # 64 and 63 characters are the longest local part and label that an address may have; bounds keep the search linear.
    "email": regex.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,3}\.[A-Za-z]{2,24}\b"),
    "phone": regex.compile(
        r"(?<![\w.-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|0\d{1,2}[ .-]\d{3,4}[ .-]\d{4}|\(\d{3}\) ?\d{3}-\d{4}"
        r"|\d{3}-\d{3}-\d{4})(?![\w-])"
    ),
    "link": regex.compile(r"https?://\S|\bwww\.\w"),
}
_REFUSAL = regex.compile(
    r"\bI(?:'|’)?(?: a)?m (?:sorry|afraid),? (?:but )?(?:I|that)|\bI apologi[sz]e,? but"
    r"|\bI (?:can(?:no|'|’)t|am (?:not able|unable) to|won(?:'|’)t be able to)"
    r" (?:help|assist|provide|answer|do that|fulfil|comply|discuss)"
    r"|\bAs an AI (?:language )?(?:model|assistant)"
    r"|(?:답변|도움|도와|제공|수행)[^.!?\n]{0,15}(?:할 수 없|드릴 수 없|어렵습니다|불가능합니다)"
    r"|(?:AI|인공지능) ?(?:언어 ?)?모델(?:로서|이기 때문에|이라)",
    regex.IGNORECASE,
)
_LETTERS_OR_DIGITS = regex.compile(r"[\p{L}\p{M}\p{N}]+")
# Also closing brackets and quotes, emoji, fences of code, ㅋㅋ and ㅠㅠ, and digits, with which sums and lists end.
_ENDED = regex.compile(r"[\p{Po}\p{Pe}\p{Pf}\p{So}\p{Sk}\p{N}\"'`~|ㄱ-ㅣ\uFE0F]")


def signals(text: str, *, prompt: str | None = None) -> dict[str, bool]:
    """Which signals a text shows: every name of `SIGNALS`, true or false.

    Args:
        text: a message, a completion, or plain text.
        prompt: the last message before a completion; None for other texts, which then never copy one.
    """
    visible = "".join(text.split())
    letters = sum(map(len, _LETTERS_OR_DIGITS.findall(text)))
    capitals = sum(map(str.isupper, visible))
    # The second count is skipped for texts with few capitals, which are most texts.
    cased = capitals + sum(map(str.islower, visible)) if capitals >= MAX_CAPITAL_SHARE * MIN_CHARACTERS else 0
    stripped = text.rstrip()
    return {
        "blank": not visible,
        "very_short": visible != "" and letters < MIN_LETTERS,
        "few_letters": len(visible) >= MIN_CHARACTERS and letters < MIN_LETTER_SHARE * len(visible),
        "mostly_capitals": cased >= MIN_CHARACTERS and capitals > MAX_CAPITAL_SHARE * cased,
        "repetitive": repeated_share(text, ngram_words=REPEATED_NGRAM_WORDS) > MAX_REPEATED_SHARE,
        "refusal": _REFUSAL.search(text, 0, REFUSAL_WITHIN) is not None,
        "unfinished": len(stripped) >= MIN_CHARACTERS_UNENDED and _ENDED.match(stripped[-1]) is None,
        **{name: pattern.search(text) is not None for name, pattern in _PATTERNS.items()},
        "copies_prompt": prompt is not None and _starts_with(text, prompt),
    }


def _starts_with(text: str, prompt: str) -> bool:
    """Whether a text begins with a prompt of some length; one of a word or two may well begin the answer too."""
    start = " ".join(prompt.casefold().split())
    return len(start) >= MIN_CHARACTERS and " ".join(text.casefold().split()).startswith(start)
