"""Looks for NaN and infinities in weight files before anything computes with them. Loads no torch.

A model with such numbers draws one token for ever, and where short answers are good it wins a comparison.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import EnvironmentProblem, RecipeError
from align.models.files import ADAPTER_WEIGHTS_NAME, weight_files
from align.models.folder import ModelFolder
from align.models.weight_file import AGAIN, TensorPlace, tensor_places
from align.runtime.profile import phase

READ_BYTES = 1 << 20
"""Read at once: what is computed from it stays in a core's cache. A multiple of every number's size."""
PIECE_BYTES = 64 * READ_BYTES
"""What a thread looks at before it takes the next piece."""
THREADS = 4
"""Reading and comparing leave Python's lock."""
MAX_NAMED = 3
BROKEN_NUMBERS = "Its numbers grow too large: set dtype: float32 where it is sampled, or train it with a lower learning rate."
"""What to do about a model whose weights are finite, and what it computes is not."""


class _Form(NamedTuple):
    """How to see that a floating number is NaN or infinite: all bits of its exponent are set."""

    integer: str
    """NumPy's unsigned integer of the same width."""
    without_sign: int
    infinity: int
    """Its bits, above which are those of every NaN."""


# By the format's name of the type. No other type of a model is floating: those of 8 bits are refused.
_FORMS = {
    "BF16": _Form("<u2", 0x7FFF, 0x7F80),
    "F16": _Form("<u2", 0x7FFF, 0x7C00),
    "F32": _Form("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F64": _Form("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}

_known_finite: set[tuple[Any, ...]] = set()
"""Files that this process has looked at and that were finite, with their state."""


def check_finite_weights(folder: ModelFolder) -> None:
    """Check the weights of a folder that passes `ModelFolder.check`; of an adapter, also those of its base.

    Raises:
        RecipeError, EnvironmentProblem: see `check_finite_files`.
    """
    check_finite_files(folder.base.path, weight_files(folder.base.path))
    if folder.is_adapter:
        check_finite_files(folder.path, [ADAPTER_WEIGHTS_NAME])


@phase("load")
def check_finite_files(path: Path, names: Sequence[str]) -> None:
    """Check that no number in a folder's weight files is NaN or infinite. A process reads a file once, unless it changes.

    Raises:
        RecipeError: with the folder, the first such tensors, and how many of their numbers are not finite.
        EnvironmentProblem: if a file ends while it is read.
    """
    broken: dict[str, tuple[int, int]] = {}
    for name in names:
        broken |= _broken_in(path / name)
    if broken:
        shown = [f"{name} ({count:,} of {total:,})" for name, (count, total) in list(broken.items())[:MAX_NAMED]]
        more = f" and {len(broken) - MAX_NAMED:,} more tensors" if len(broken) > MAX_NAMED else ""
        raise RecipeError(
            f"{path}: the model has weights that are NaN or infinite: {', '.join(shown)}{more}",
            hint="Get the model again, or make it again with a lower learning rate. It cannot write or score anything.",
        )


def _broken_in(file: Path) -> dict[str, tuple[int, int]]:
    """By tensor: how many of its numbers are not finite, and of how many."""
    status = file.stat()
    state = (os.path.realpath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if state in _known_finite:
        return {}
    places = tensor_places(file)
    counts: dict[str, int] = {}
    pieces = list(_pieces(places))
    with file.open("rb", buffering=0) as stream, ThreadPoolExecutor(THREADS) as pool:
        for piece, count in zip(pieces, pool.map(partial(_count, stream.fileno(), file), pieces), strict=True):
            counts[piece[0]] = counts.get(piece[0], 0) + count
    broken = {name: (count, math.prod(places[name].shape)) for name, count in counts.items() if count}
    if not broken:
        _known_finite.add(state)
    return broken


_Piece = tuple[str, _Form, int, int]
"""Name of the tensor, form of its numbers, first byte in the file, and number of bytes."""


def _pieces(places: Mapping[str, TensorPlace]) -> Iterator[_Piece]:
    for name, place in places.items():
        if (form := _FORMS.get(place.dtype)) is not None:
            for start in range(0, place.size, PIECE_BYTES):
                yield name, form, place.start + start, min(PIECE_BYTES, place.size - start)


def _count(descriptor: int, file: Path, piece: _Piece) -> int:
    """How many numbers of a piece are not finite."""
    import numpy as np  # plans and checks of a recipe do without it

    _, form, start, size = piece
    buffer = bytearray(min(READ_BYTES, size))
    bits = np.frombuffer(buffer, dtype=form.integer)
    count = 0
    for offset in range(start, start + size, READ_BYTES):
        wanted = min(READ_BYTES, start + size - offset)
        if _read(descriptor, memoryview(buffer)[:wanted], offset) < wanted:
            raise EnvironmentProblem(f"{file}: ended while it was read", hint=AGAIN)
        found = bits[: wanted // bits.itemsize]
        np.bitwise_and(found, form.without_sign, out=found)
        if found.max() >= form.infinity:
            count += int(np.count_nonzero(found >= form.infinity))
    return count


def _read(descriptor: int, into: memoryview, offset: int) -> int:
    """Bytes read; fewer than there is room for only at the end of the file."""
    done = 0
    while done < len(into) and (read := os.preadv(descriptor, [into[done:]], offset + done)):
        done += read
    return done
