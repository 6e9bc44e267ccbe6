"""Reads structs of Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping
from typing import IO, Any

Wanted = Mapping[int, Any]
"""Fields of a struct by their number: with None for numbers and lists of them, with another such mapping for structs and lists
of them."""
_BOOLEANS, _BYTE, _NUMBERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_MOST = 1 << 24
"""Bytes of a text and elements of a list: a damaged length must not lead anywhere."""


def read_struct(file: IO[bytes], wanted: Wanted) -> dict[int, Any]:
    """The wanted fields of the struct that begins at the current place; it ends behind the struct. Texts are None.

    Raises:
        EOFError: if there is no such struct here.
    """
    try:
        return _struct(file, wanted)
    except RecursionError:
        raise EOFError("structs in structs without end") from None


def number_of(struct: Mapping[int, Any], field: int, default: int | None = None) -> int:
    """A number of a struct, 0 or more.

    Raises:
        EOFError: if the field is none.
    """
    number = struct.get(field, default)
    if not isinstance(number, int) or number < 0:
        raise EOFError(f"a header has {number!r} as field {field}")
    return number


def varint(file: IO[bytes]) -> int:
    """A whole number of up to 64 bits, seven to a byte.

    Raises:
        EOFError: if there is none.
    """
    result = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        result |= (byte & 127) << shift
        if byte < 128:
            return result
    raise EOFError("a number of more than 64 bits")


def _struct(file: IO[bytes], wanted: Wanted) -> dict[int, Any]:
    found: dict[int, Any] = {}
    field = 0
    while (head := _byte(file)) != 0:
        field = field + (head >> 4) if head >> 4 else _signed(varint(file))
        if field in wanted:
            found[field] = _value(file, head & 15, wanted[field] or {}, keep=True)
        else:
            _value(file, head & 15, {}, keep=False)
    return found


def _value(file: IO[bytes], kind: int, wanted: Wanted, *, keep: bool, in_list: bool = False) -> Any:
    """A value of this type. What is not kept is passed without taking memory."""
    if kind in _NUMBERS:
        return _signed(varint(file))
    if kind == _STRUCT:
        return _struct(file, wanted)
    if kind == _BYTE or (kind in _BOOLEANS and in_list):
        return _byte(file)
    if kind in _BOOLEANS:
        return None
    if kind in _LISTS:
        head = _byte(file)
        count = min(varint(file) if head >> 4 == 15 else head >> 4, _MOST)
        values = (_value(file, head & 15, wanted, keep=keep, in_list=True) for _ in range(count))
        return list(values) if keep else deque(values, maxlen=0)
    if kind in (_DOUBLE, _BINARY):
        file.seek(8 if kind == _DOUBLE else min(varint(file), _MOST), io.SEEK_CUR)
        return None
    raise EOFError(f"no field of a header has the type {kind}")


def _byte(file: IO[bytes]) -> int:
    if not (content := file.read(1)):
        raise EOFError("the file ends inside a header")
    return content[0]


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
