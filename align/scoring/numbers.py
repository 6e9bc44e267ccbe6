"""Reads the number that a text ends with: exact, in English and Korean notation, and None rather than a guess."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import regex

MAX_CHARACTERS = 100
"""Longest number that is read, in characters."""
MAX_EXPONENT = 100
"""Largest exponent of ten that is read."""
MAX_TEXT = 20_000
"""Characters at the end of a text that are searched."""

_DIGITS = r"(?:\d+(?:[.,]\d+)*|(?<![\d.,])\.\d+)"
_CURRENCY = r"(?:\\?[$€£¥₩])?"
# A sign counts only where no digit or letter stands before it: "5-3" ends in 3, "= -3" in -3.
_SIGN = rf"(?:(?<![\w.)])[-+](?={_CURRENCY}(?:\.?\d|\\[dt]?frac)))?"
_FRACTION = rf"\\[dt]?frac\s*\{{\s*{_DIGITS}\s*\}}\s*\{{\s*{_DIGITS}\s*\}}"
# H2O and Q3 hold no number; USD5 does.
_START = r"(?:(?<![\p{Latin}\d_])(?<!\d[.,])|(?<=USD|KRW|EUR|GBP|JPY|Rs))"
# 조각 are pieces, and no trillions.
_UNIT = r"(?:[십백천]+(?:[만억]|조(?!각))?|[만억]|조(?!각))"
_MAGNITUDE = r"(?:(?:[kKMB]|(?: (?:hundred|thousand|million|billion|trillion|dozen)s?)+)(?!\w))?"
# What makes one thing of two numbers; most such things (10:30, 2024/5/6, 3 + 4) are no single number.
_JOINT = (
    r"(?: ?/ ?|:| ?\*{1,2} ?|\^\{?| ?(?:×|·|x|\\times|\\cdot) ?| ?\+ ?| - |[eE]| (?=\d+/\d)|(?<=(?<!\d)\d{1,3}) (?=\d{3}(?!\d)))"
    r"(?:(?<=[eE^{*/])[-+])?(?=\.?\d)"
)
_RUN = (
    rf"{_SIGN}{_CURRENCY}{_SIGN}"
    rf"(?:{_FRACTION}|{_START}{_DIGITS}(?:{_UNIT}(?: ?{_DIGITS}{_UNIT}?)*|(?:{_JOINT}{_DIGITS}\}}?)*{_MAGNITUDE}))"
)

_PREFIX = rf"^[-+]?{_CURRENCY}[-+]?"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_TEN_TO = r"10(?:\^|\*\*)(?:\{(?P<power>[-+]?\d+)\}|(?P<power>[-+]?\d+))"
_FORMS = (
    rf"(?P<plain>{_PLAIN})(?P<magnitude>{_MAGNITUDE})",
    rf"(?P<plain>{_PLAIN}) ?/ ?(?P<under>{_PLAIN})",
    rf"\\[dt]?frac\s*\{{\s*(?P<plain>{_PLAIN})\s*\}}\s*\{{\s*(?P<under>{_PLAIN})\s*\}}",
    r"(?P<whole>\d+) (?P<plain>\d+)/(?P<under>\d+)",
    rf"(?P<plain>{_PLAIN})[eE](?P<power>[-+]?\d+)",
    rf"(?:(?P<plain>{_PLAIN}) ?(?:×|\*|·|x|\\times|\\cdot) ?)?{_TEN_TO}",
)
_TERM = rf" ?(?P<plain>{_PLAIN})(?P<small>[십백천]*)(?P<large>[만억조]?)"
_WORDS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "hundred": 10**2, "thousand": 10**3, "million": 10**6}
_WORDS |= {"billion": 10**9, "trillion": 10**12, "dozen": 12}
_KOREAN = {"": 1, "십": 10, "백": 10**2, "천": 10**3, "만": 10**4, "억": 10**8, "조": 10**12}

# Behind a letter these are exponents: m^2, cm2.
_UNIT_EXPONENT = r"(?<=\p{Latin})\^\{?[-+]?\d+\}?|(?<=(?<!\p{Latin})(?:[ckm]?m|ft|in))[23](?!\w)"
_SUPERSCRIPT = r"[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"
_SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_OTHER_SPELLINGS = {"−": "-", "{,}": ",", ",\\!": ",", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⁄": "/"}


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    # When it is first used: together they take a fiftieth of a second, and a plan imports this module and reads no number.
    return regex.compile(pattern)


def last_number(text: str) -> Fraction | None:
    """The last number written in `text`, exactly: "1,234.50" is 1234.5, "1/2" one half, "3만 5천" 35,000, "50%" is 50.

    None if there is none, or if the last is no single number: a time, a date, a version, a sum or power not worked out, a comma
    that does not part thousands, more than `MAX_CHARACTERS` or an exponent beyond `MAX_EXPONENT`.
    """
    runs = _runs(text[-MAX_TEXT:])
    return _value(runs[-1]) if runs else None


def only_number(text: str) -> Fraction | None:
    """The number in `text`; None if it has several different ones, or one that `last_number` does not read."""
    values = {_value(run) for run in _runs(text)} if len(text) <= MAX_TEXT else set()
    return values.pop() if len(values) == 1 else None


def _runs(text: str) -> list[str]:
    for spelling, plain in _OTHER_SPELLINGS.items():
        text = text.replace(spelling, plain)
    text = _compiled(_SUPERSCRIPT).sub(lambda match: f"^{match[0].translate(_SUPERSCRIPTS)}", text)
    return [match[0] for match in _compiled(_RUN).finditer(_compiled(_UNIT_EXPONENT).sub("", text))]


def _value(run: str) -> Fraction | None:
    if len(run) > MAX_CHARACTERS:
        return None
    unsigned = _compiled(_PREFIX).sub("", run)
    sign = -1 if "-" in run[: len(run) - len(unsigned)] else 1
    for form in _FORMS:
        if match := _compiled(form).fullmatch(unsigned):
            value = _value_of_form(match.groupdict())
            return None if value is None else sign * value
    value = _korean(unsigned)
    return None if value is None else sign * value


def _value_of_form(parts: dict[str, str | None]) -> Fraction | None:
    value = _fraction(parts.get("plain") or "1")
    if under := parts.get("under"):
        if not _fraction(under):
            return None
        value /= _fraction(under)
    if whole := parts.get("whole"):
        return int(whole) + value if value < 1 else None  # 3 1/2, and not 3 7/2
    if power := parts.get("power"):
        return value * Fraction(10) ** int(power) if abs(int(power)) <= MAX_EXPONENT else None
    for word in (parts.get("magnitude") or "").split():
        value *= _WORDS[word.removesuffix("s")]
    return value


def _korean(run: str) -> Fraction | None:
    """The value of 1억 2천만 or 3만 5천원's number; None if its units do not fall."""
    total = section = Fraction(0)
    position, last_large, last_small = 0, 10**16, 10**4
    while match := _compiled(_TERM).match(run, position):
        position = match.end()
        small = 1
        for unit in match["small"]:
            small *= _KOREAN[unit]
        large = _KOREAN[match["large"]]
        value = _fraction(match["plain"]) * small
        if section and (small >= last_small or value >= last_small):
            return None
        section, last_small = section + value, small
        if large > 1:
            if large >= last_large or (total and section * large >= last_large):
                return None
            total, section, last_large, last_small = total + section * large, Fraction(0), large, 10**4
    return None if position < len(run) or (total and section >= last_large) else total + section


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
