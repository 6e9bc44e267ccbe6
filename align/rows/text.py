"""Checks the characters of a text: whether any is visible, stray characters, the Unicode form. Changes nothing."""

from __future__ import annotations

import os.path
import re
import unicodedata

# Characters that show nothing and that str.strip keeps: fillers (Hangul, half-width Hangul, Braille blank), zero-width space
# and joiners, directional marks, word joiner and invisible operators, byte order mark, soft hyphen, Mongolian vowel separator.
_INVISIBLE = "\u3164\uffa0\u115f\u1160\u2800\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\u180e"
_BLANK = re.compile(rf"[\s{_INVISIBLE}\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*")
# The C0 controls other than tab, line feed and carriage return; DEL; the C1 controls. NUL has a check of its own.
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTEXT = 12


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: empty, white space, zero-width characters, fillers, controls."""
    if "!" <= text[:1] <= "~":  # nearly every English text returns without the regular expression
        return False
    return _BLANK.fullmatch(text) is not None


def oddities(text: str) -> list[str]:
    """Names of the checks that find something in a text that is not blank; see `align.config.row_checks`."""
    found = []
    if text[-1:].isspace():
        found.append("trailing_white_space")
    # A printable text holds no control character: most texts without line breaks need no further look.
    if not text.isprintable():
        if "\x00" in text:
            found.append("nul_character")
        if _CONTROL.search(text):
            found.append("control_characters")
    # ASCII text is always in NFC, and isascii costs nothing beside is_normalized.
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        found.append("not_nfc")
    return found


def explain(name: str, text: str) -> str:
    """The message for the finding `name`: where it is in `text`, and what was expected."""
    if name == "trailing_white_space":
        return f"ends in white space: …{text[-_CONTEXT:]!r}; expected none there"
    if name == "nul_character":
        return f"has a NUL character: {_around(text, text.index(chr(0)))}; expected none"
    if name == "control_characters":
        match = _CONTROL.search(text)
        index = match.start() if match else 0
        return f"has the control character U+{ord(text[index]):04X}: {_around(text, index)}; expected none"
    index = len(os.path.commonprefix([text, unicodedata.normalize("NFC", text)]))
    return f"is not in Unicode's NFC form: {_around(text, index)}; expected composed characters"


def _around(text: str, index: int) -> str:
    return f"{text[max(0, index - _CONTEXT) : index + _CONTEXT]!r} at character {index + 1}"
