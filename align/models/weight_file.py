"""The header of a safetensors file: read and checked here, before any library opens the file. Loads no torch.

The format: 8 bytes with the header's length, little-endian; the header, JSON; the tensors, at the offsets it gives, which count
from its end.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import EnvironmentProblem, RecipeError
from align.formats.raw import LFS_HINT, LFS_START
from align.runtime.plain_file import other_kind
from align.strict import unique_keys

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""Largest header; the format's own limit."""
MOST_DIGITS = 300
NEEDS_WHOLE_WEIGHTS = "Use its version in bfloat16 or float32. peft: {method: qlora} packs it into 4 bits while it trains."
PLAIN_FILES_ONLY = "A model's folder holds plain files only."
AGAIN = "The download was probably cut short; get this file again."
# In bits. Floating numbers of 8 bits and less belong to quantised weights, whose scales need a package of their own.
_WIDTHS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "C64": 64}
_WIDTHS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
_FEW_BITS = ("F4", "F6", "F8")


class TensorPlace(NamedTuple):
    """A tensor in a file of weights."""

    dtype: str
    """As the format calls it, such as BF16."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    size: int
    """In bytes."""


def tensor_places(file: Path) -> dict[str, TensorPlace]:
    """Every tensor of a file that `check_weight_file` has passed, by name, in the header's order."""
    length, header = _header(file)
    places = {}
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        places[name] = TensorPlace(tensor["dtype"], tuple(tensor["shape"]), 8 + length + start, end - start)
    return places


def check_weight_file(file: Path) -> None:
    """Check that a file is there, as long as its header says, and that its tensors neither overlap nor leave a gap.

    Raises:
        EnvironmentProblem: if it is not. RecipeError: if it is a pipe or the like, or holds floating numbers of 8 bits or less.
    """
    if (kind := other_kind(file)) is not None:
        raise RecipeError(f"{file}: is {kind}, not a file", hint=PLAIN_FILES_ONLY)
    if not file.is_file():
        raise EnvironmentProblem(f"{file}: the index names this file, but it is missing", hint=AGAIN)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    # Before the header is read: a damaged length could ask for any amount of memory.
    if length.to_bytes(8, "little") == LFS_START[:8]:
        raise EnvironmentProblem(f"{file}: {LFS_HINT}", hint="git lfs pull")
    if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise EnvironmentProblem(f"{file}: is not a safetensors file, or was cut short ({size:,} bytes)", hint=AGAIN)
    try:
        spans = sorted(_span(name, tensor) for name, tensor in _header(file)[1].items())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise EnvironmentProblem(f"{file}: its header cannot be read ({error})", hint=AGAIN) from error
    expected = 8 + length + max((end for _, end, _, _ in spans), default=0)
    if size != expected:
        raise EnvironmentProblem(f"{file}: has {size:,} bytes, but its header describes {expected:,}", hint=AGAIN)
    place = 0
    for start, end, name, dtype in spans:
        if start != place:
            raise EnvironmentProblem(
                f"{file}: its header is damaged: {name!r} begins at byte {start:,} of the data, where {place:,} is expected",
                hint="Get this file again.",
            )
        if dtype.startswith(_FEW_BITS):
            raise RecipeError(f"{file}: the weights are quantised ({name} is {dtype})", hint=NEEDS_WHOLE_WEIGHTS)
        place = end


def _span(name: str, tensor: Any) -> tuple[int, int, str, str]:
    """First and last byte of a tensor in the data, its name, and its type."""
    dtype, shape, (start, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    is_list = isinstance(shape, list) and isinstance(tensor["data_offsets"], list)
    if not (is_list and isinstance(dtype, str)) or any(not _is_size(number) for number in (*shape, start, end)):
        raise ValueError(f"{name!r} has no type, shape or place")
    if dtype not in _WIDTHS and not dtype.startswith(_FEW_BITS):
        raise ValueError(f"{name!r} has the type {dtype[:20]!r}, which the format does not have")
    if end < start or (dtype in _WIDTHS and math.prod(shape) * _WIDTHS[dtype] != 8 * (end - start)):
        raise ValueError(f"{name!r} is {list(shape)} in {dtype}, but has {end - start:,} bytes")
    return start, end, name, dtype


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 64


def _header(file: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The header's length in bytes, and what it says of each tensor."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length).decode()
    # What Python takes for JSON and the library that loads the weights does not, is refused here too.
    header = json.loads(text, parse_constant=_refuse, parse_int=_whole, parse_float=_finite, object_pairs_hook=unique_keys)
    if "\\u" in text:
        json.dumps(header, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError: half a character
    if (metadata := header.pop("__metadata__", None)) is not None:
        "".join([*metadata.keys(), *metadata.values()])  # texts, by the format
    return length, header


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no number")


def _whole(text: str) -> int:
    return int(text) if len(text) < MOST_DIGITS else _refuse(text)  # type: ignore[no-any-return]


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _refuse(text)  # type: ignore[no-any-return]
