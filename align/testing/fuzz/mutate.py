"""Hostile inputs from a seed: valid ones of which bytes, words, lines or values were changed, or replaced by odd ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_WORD = re.compile(rb"[\w.+-]+")
MOST_BYTES = 100_000
"""Of a mutated input: duplicated parts do not add up."""
DEEP = 2_000
LONG = 70_000

HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 1e-320, 1e308,
    float("inf"), float("-inf"), float("nan"), "", " ", "a", "\0", "\ud800", "\udfff", "\ufeff", "\u202e", "\x1b[2J", "\r\n",
    "\u2028",
    "가", "e\u0301", "𝒳", "../../etc/passwd", "/dev/zero", "C:\\x", "~", "~nobody/x", "$HOME", "${x}", "{{ 7*7 }}",
    "{0.__class__}", "%s%n",
    "null", "true", "1e999", "-0", "0x10", "NaN", "a" * 300, "x" * LONG, [], {}, [[]], [{}], [None], {"": None},
    {"a": {"a": {}}},
    [1, "a", None], [0] * 1000, {"__class__": "x"}, {"__metadata__": {}},
)  # fmt: skip
"""Values in place of any other in a JSON tree."""
HOSTILE_BYTES: tuple[bytes, ...] = (
    b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\r",
    b"\n\n", b"\t",
    b"\x1a", b"\x1b[31m", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\\ud800", b"\\u0000", b"\"", b"'", b"\\", b"[", b"]",
    b"{",
    b"}", b":", b",", b"#", b"-", b"- ", b"? ", b"| \n", b">\n", b"%", b"@", b"`", b"&a ", b"*a ", b"<<: *a\n",
    b"!!python/object:os.system ",
    b"!!binary ", b"!x ", b"---\n", b"...\n", b"%YAML 1.1\n", b"NaN", b"Infinity", b"-Infinity", b"-0", b"1e999", b"-1e-999",
    b"1" * 400,
    b"0.1" + b"0" * 5000, b"0x" + b"f" * 40, b".inf", b".nan", b"1_000", b"null", b"~", b"true",
    b"[" * DEEP, b'{"a":' * DEEP, b"- " * 200,
    b"&a [x]\n*a ", b"a" * LONG, b"<script>", b"PK\x03\x04", b"PAR1", b"ARROW1", b"\x1f\x8b\x08", b"version https://git-lfs",
)  # fmt: skip
"""Bytes put in anywhere."""


def mutated(random: Random, corpus: Sequence[bytes], hostile: Sequence[bytes] = HOSTILE_BYTES) -> bytes:
    """One of the corpus with one to four changes."""
    data = random.choice(corpus)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        data = random.choice(_CHANGES)(random, data, corpus, hostile)[:MOST_BYTES]
    return data


def _place(random: Random, data: bytes) -> int:
    return random.randrange(len(data) + 1)


def _flip(random: Random, data: bytes, _corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]


def _byte(random: Random, data: bytes, _corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    place = _place(random, data)
    return data[:place] + bytes([random.randrange(256)]) + data[place + random.randrange(2) :]


def _cut(random: Random, data: bytes, _corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    return data[: _place(random, data)]


def _remove(random: Random, data: bytes, _corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    start = _place(random, data)
    return data[:start] + data[start + random.choice((1, 2, 4, 16, 64)) :]


def _repeat(random: Random, data: bytes, _corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    start = _place(random, data)
    part = data[start : start + random.choice((1, 4, 16, 64))]
    return data[:start] + part * random.choice((2, 2, 3, 50)) + data[start + len(part) :]


def _insert(random: Random, data: bytes, _corpus: Sequence[bytes], hostile: Sequence[bytes]) -> bytes:
    place = _place(random, data)
    return data[:place] + random.choice(hostile) + data[place:]


def _splice(random: Random, data: bytes, corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    other = random.choice(corpus)
    return data[: _place(random, data)] + other[_place(random, other) :]


def _word(random: Random, data: bytes, corpus: Sequence[bytes], hostile: Sequence[bytes]) -> bytes:
    """Another word in place of one: a hostile one, or one of the corpus."""
    found = list(_WORD.finditer(data))
    if not found:
        return data
    place = random.choice(found)
    others = _WORD.findall(random.choice(corpus)) if random.randrange(2) else hostile
    word: bytes = random.choice(others or [b""])
    return data[: place.start()] + word + data[place.end() :]


def _lines(random: Random, data: bytes, _corpus: Sequence[bytes], _hostile: Sequence[bytes]) -> bytes:
    """A line taken out, doubled, moved, or indented otherwise."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return data
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    how = random.randrange(4)
    if how == 0:
        del lines[first]
    elif how == 1:
        lines.insert(second, lines[first])
    elif how == 2:
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines[first] = b"  " + lines[first] if random.randrange(2) else lines[first].lstrip(b" ")
    return b"".join(lines)


Change = Callable[[Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]
_CHANGES: tuple[Change, ...] = (
    _flip,
    _byte,
    _cut,
    _remove,
    _repeat,
    _insert,
    _insert,
    _splice,
    _word,
    _word,
    _word,
    _lines,
    _lines,
)


def changed_tree(random: Random, tree: Any, names: Sequence[str] = ()) -> Any:
    """A copy of a JSON tree with one to three changes: values replaced, taken out, moved, or put in under some name."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return random.choice(HOSTILE_VALUES)
        around, key = random.choice(places)
        how = random.randrange(10)
        if how < 5:
            around[key] = _value(random)
        elif how < 6:
            del around[key]
        elif how < 8:
            other, other_key = random.choice(places)
            around[key] = json.loads(json.dumps(other[other_key]))  # a copy: a tree that holds itself cannot be written
        elif isinstance(around, dict):
            around[random.choice(names) if names and random.randrange(4) else str(_value(random))[:200]] = _value(random)
        else:
            around.insert(key, _value(random))
    return tree


def _value(random: Random) -> Any:
    kind = random.randrange(12)
    if kind == 0:
        return random.randrange(-10, 100)
    if kind == 1:
        return random.uniform(-2, 2)
    if kind == 2:
        return 10 ** random.randrange(40) * random.choice((-1, 1))
    value = random.choice(HOSTILE_VALUES)
    return json.loads(json.dumps(value)) if isinstance(value, (list, dict)) else value


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place of a tree that holds a value: what is around it, and its key."""
    found, open_trees = [], [tree]
    while open_trees:
        around = open_trees.pop()
        if isinstance(around, (dict, list)):
            for key in list(around) if isinstance(around, dict) else range(len(around)):
                found.append((around, key))
                open_trees.append(around[key])
    return found


def as_json(random: Random, tree: Any) -> bytes:
    """A tree as JSON, with NaN and Infinity as Python writes them; characters beyond ASCII now as escapes, now as they are."""
    text = json.dumps(tree, ensure_ascii=bool(random.randrange(2)), indent=random.choice((None, None, 1)))
    return text.encode("utf-8", "surrogatepass")
