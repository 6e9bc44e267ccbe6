"""What the rows of an Arrow batch take in memory as Python's values, before they are made.

Arrow can repeat: a dictionary or a view names a text in a few bytes, and a list of nulls takes none. Python makes a value of
each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

# Of a value in Python, besides its content: no more than it really takes, so that no row is refused that is small enough.
_PLACE, _TEXT, _LIST, _DICT = 8, 48, 56, 64


def held_bytes(batch: pyarrow.RecordBatch) -> int:
    """Bytes of all values of a batch whose schema has no `unreadable_columns`. Nothing is copied."""
    return sum(_held(column) for column in batch.columns)


def unreadable_columns(schema: pyarrow.Schema) -> str | None:
    """The first column of a type whose size cannot be told, in words; None if there is none."""
    for field in schema:
        for kind in _types(field.type):
            if _is_unreadable(kind):
                return f"the column {field.name!r} has the type {kind}"
    return None


def _types(kind: Any) -> Iterator[Any]:
    """A type, and those inside it."""
    yield kind
    for number in range(kind.num_fields):
        yield from _types(kind.field(number).type)
    if hasattr(kind, "storage_type"):
        yield from _types(kind.storage_type)


def _is_unreadable(kind: Any) -> bool:
    from pyarrow import types

    is_dictionary = types.is_dictionary(kind)
    return (
        any(check(kind) for check in (types.is_list_view, types.is_large_list_view, types.is_run_end_encoded, types.is_union))
        or (is_dictionary and types.is_nested(kind.value_type))
    )  # fmt: skip


def _held(array: Any) -> int:
    from pyarrow import types

    if hasattr(array, "storage"):
        return _held(array.storage)
    kind, count = array.type, len(array)
    if types.is_dictionary(kind):
        return count * _PLACE + _of_dictionary(array)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return count * _TEXT + _of_views(array)
    if any(check(kind) for check in (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary)):
        return count * _TEXT + _lengths(array)
    if types.is_struct(kind):
        return count * _DICT + sum(_held(field) for field in array.flatten())
    if types.is_nested(kind):  # a list or a map
        return count * _LIST + _held(array.flatten())
    return count * _PLACE + int(array.nbytes)


def _lengths(texts: Any) -> int:
    import pyarrow.compute

    return int(pyarrow.compute.sum(pyarrow.compute.binary_length(texts)).as_py() or 0)


def _of_dictionary(array: Any) -> int:
    """Of the values that the indices name, each as often as it is named."""
    import pyarrow.compute
    from pyarrow import types

    values = array.dictionary
    if types.is_string_view(values.type) or types.is_binary_view(values.type):
        return len(array) * _of_views(values)  # at most
    if not any(check(values.type) for check in (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary)):
        return int(len(array) * values.nbytes / max(1, len(values)))
    lengths = pyarrow.compute.binary_length(values)
    return len(array) * _TEXT + int(pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0)


def _of_views(array: Any) -> int:
    """Of texts as views, which begin with their length."""
    import numpy as np

    views = array.buffers()[1]
    if views is None or not len(array):
        return 0
    lengths = np.frombuffer(views, dtype="<i4", count=4 * (array.offset + len(array)))[4 * array.offset :: 4]
    return int(np.maximum(lengths, 0).sum(dtype=np.int64))
