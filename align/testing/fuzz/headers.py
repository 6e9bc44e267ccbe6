"""The fuzz target of the headers of weights: a safetensors file alone, without the folder of a model around it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from align.errors import EnvironmentProblem, RecipeError
from align.models.weight_file import check_weight_file, tensor_places
from align.testing.fuzz.mutate import HOSTILE_BYTES, as_json, changed_tree, mutated
from align.testing.fuzz.target import ACCEPTED, Finding, refusal

SIZES = {"BOOL": 1, "U8": 1, "I16": 2, "BF16": 2, "F16": 2, "F32": 4, "I64": 8, "C64": 8, "F8_E4M3": 1}
SHAPES: tuple[dict[str, list[int]], ...] = (
    {"a": [2, 3], "b": [4], "c": []},
    {"model.embed_tokens.weight": [6, 4], "model.norm.weight": [4]},
    {"empty": [0, 7], "가": [1]},
    {},
)
NAMES = ("dtype", "shape", "data_offsets", "__metadata__", "a", "b", "model.norm.weight")
LENGTHS = tuple(
    number.to_bytes(8, "little") for number in (0, 1, 2, 7, 100, 2**20, 100 * 2**20 + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)
)
"""Of a header, damaged."""
TENSOR_CHANGES = 3


class HeaderTarget:
    """Files of weights with a changed header. What is accepted must be what the library reads, too."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "model.safetensors"
        self.headers = [_header(shapes, dtype) for shapes in SHAPES for dtype in SIZES]
        self.corpus = [_file(header, json.dumps(header).encode()) for header in self.headers]

    def make(self, random: Random) -> bytes:
        """A third with any bytes changed; of the others a third with numbers of one tensor changed alone."""
        if random.randrange(3) == 0:
            return b"header\n" + mutated(random, self.corpus, [*HOSTILE_BYTES, *LENGTHS])
        known = random.choice(self.headers)
        if known and random.randrange(TENSOR_CHANGES) == 0:
            header = json.loads(json.dumps(known))
            tensor = header[random.choice(list(header))]
            place = random.choice(list(tensor))
            tensor[place] = changed_tree(random, tensor[place], NAMES)
        else:
            header = changed_tree(random, known, NAMES)
        text = as_json(random, header)
        whole = _file(known, text)
        return b"header\n" + (whole if random.randrange(8) else random.choice(LENGTHS) + whole[8:])

    def read(self, data: bytes) -> str:
        """EnvironmentProblem and RecipeError are refusals."""
        self.file.write_bytes(data.partition(b"\n")[2])
        try:
            check_weight_file(self.file)
        except (EnvironmentProblem, RecipeError) as error:
            return refusal(error)
        from safetensors import SafetensorError, safe_open

        places = tensor_places(self.file)
        try:
            with safe_open(self.file, "np") as whole:
                found = {name: (tensor.get_dtype(), tuple(tensor.get_shape())) for name, tensor in _slices(whole)}
        except SafetensorError as error:
            raise Finding(f"the library refuses it: {error}") from error
        if found != {name: (place.dtype, place.shape) for name, place in places.items()}:
            raise Finding(f"the library reads {found}")
        return ACCEPTED


def _slices(whole: Any) -> list[tuple[str, Any]]:
    return [(name, whole.get_slice(name)) for name in list(whole.keys())]


def _header(shapes: dict[str, list[int]], dtype: str) -> dict[str, Any]:
    header: dict[str, Any] = {}
    start = 0
    for name, shape in shapes.items():
        end = start + SIZES[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    return {"__metadata__": {"format": "pt"}, **header} if len(shapes) > 2 else header


def _file(header: dict[str, Any], text: bytes) -> bytes:
    """A file with the tensors of `header`, but with this text in its place."""
    size = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
    return len(text).to_bytes(8, "little") + text + b"\0" * size
