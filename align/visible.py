"""Makes untrusted texts safe to show: characters that control a terminal or change the writing direction become visible signs."""

from __future__ import annotations

import re

# Tab and line feed stay. C0, DEL, C1, zero-width space, direction marks and overrides, the byte order mark, lone surrogates,
# noncharacters. The joiners U+200C and U+200D stay: Persian and emoji are written with them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with ␛ for an escape, `\\u202e` for an override of the writing direction, and so on."""
    return INVISIBLE.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str, cells: int) -> str:
    """The text on one line of at most `cells` columns of a terminal; Korean letters take two."""
    from rich.cells import cell_len, set_cell_size

    line = visible(" ".join(text.split()))
    return line if cell_len(line) <= cells else set_cell_size(line, cells - 1).rstrip() + "…"


def shortened(text: str, characters: int) -> str:
    """Beginning and end of a long text, with the number of characters left out between them."""
    if len(text) <= characters:
        return text
    head, tail = 2 * characters // 3, characters // 3
    return f"{text[:head]} … ({len(text) - head - tail:,} characters not shown) … {text[len(text) - tail :]}"
