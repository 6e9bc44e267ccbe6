"""The weights of a model one tensor at a time, so that whoever takes them needs no room for a second model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.peft import Lora
from align.models.facts import names_head, names_token_table
from align.models.files import ADAPTER_PREFIX, ADAPTER_WEIGHTS_NAME, weight_files
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm

if TYPE_CHECKING:
    from torch import Tensor

LANGUAGE_MODEL = "language_model."
"""Before every name of the language model in older folders of models that see images."""
HEAD_NAME = "lm_head.weight"
PART_BYTES = 4 << 30
"""Of a file of weights, so that few of them are in memory while it is written."""


def stored_weights(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's weight files by its name there; LoRA merged into its base model, in float32.

    Only the files that the index names are read: some repositories hold the same weights in a second form beside them.
    """
    if not folder.is_adapter:
        yield from _files(folder)
    elif (merged := _merged_by_name(folder)) is not None:
        yield from merged
    else:
        # 4-bit rounding, packed layers and other names need the model itself, on the CPU.
        yield from ((name, value.detach()) for name, value in load_causal_lm(folder).named_parameters())


def write_parts(weights: Iterable[tuple[str, Tensor]], folder: Path, *, part_bytes: int = PART_BYTES) -> None:
    """Write weights into safetensors files of at most `part_bytes` each, or of one tensor, which no index names."""
    from safetensors.torch import save_file

    part: dict[str, Tensor] = {}
    count = size = 0
    for name, tensor in weights:
        if part and size + tensor.nbytes > part_bytes:
            save_file(part, folder / f"model-{count:05d}.safetensors")
            part, count, size = {}, count + 1, 0
        # A copy: a head that is the embedding table shares its memory, which the format does not have.
        part[name] = tensor.detach().cpu().clone().contiguous()
        size += tensor.nbytes
    save_file(part, folder / f"model-{count:05d}.safetensors")


def _files(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in weight_files(folder.path):
        with safe_open(folder.path / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


def _merged_by_name(folder: ModelFolder) -> Iterator[tuple[str, Tensor]] | None:
    """The base model's tensors, with an adapter added to those that it names; None where names and layout do not tell which."""
    from safetensors.torch import load_file

    from align.models.lora import token_rows

    state, settings = load_file(folder.path / ADAPTER_WEIGHTS_NAME), folder.peft
    targets = {
        name.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")
    }
    if not isinstance(settings, Lora) or settings.method != "lora" or folder.adapter_config.get("fan_in_fan_out"):
        return None
    rows, ids = token_rows(state), folder.trained_token_ids
    known = {f"{name}.weight" for name in (*targets, *rows)} <= folder.base.tensor_shapes.keys()
    if not known or len(state) != 2 * len(targets) + len(rows):
        return None
    added = _added(folder.base, state, targets, settings.scaling)
    return ((name, _with_rows(tensor, name.removesuffix(".weight"), rows, ids)) for name, tensor in added)


def _with_rows(table: Tensor, name: str, rows: Mapping[str, Tensor], ids: Mapping[str, list[int]]) -> Tensor:
    if name in rows:
        table[ids[name]] = rows[name].to(table.dtype)
    return table


def _added(base: ModelFolder, state: Mapping[str, Any], targets: set[str], scaling: float) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _files(base):
        module = name.removesuffix(".weight")
        if module in targets and name != module:
            a, b = (state[f"{ADAPTER_PREFIX}{module}.lora_{part}.weight"] for part in "AB")
            yield name, tensor.float() + scaling * (b @ a)
        else:
            yield name, tensor.float() if tensor.is_floating_point() else tensor


def with_tied_head(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model whose head is its embedding table, and last the head, unless it is among them."""
    head, has_head = None, False
    for name, tensor in weights:
        has_head = has_head or names_head(name)
        if names_token_table(name):
            head = (LANGUAGE_MODEL + HEAD_NAME if name.startswith(LANGUAGE_MODEL) else HEAD_NAME, tensor)
        yield name, tensor
        del tensor
    if head is not None and not has_head:
        yield head
