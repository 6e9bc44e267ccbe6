"""The files of a model folder, and checks that they are safe and whole before anything of them is loaded. Loads no torch.

Each rule answers a known vulnerability: safetensors only (CVE-2025-32434: pickles run code even with weights_only), no code or
kernels named by the configuration (CVE-2026-4372, CVE-2026-5241), no file outside the folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from align.config.architecture import CONFIG_NAME
from align.errors import EnvironmentProblem, RecipeError
from align.models.weight_file import NEEDS_WHOLE_WEIGHTS, PLAIN_FILES_ONLY, check_weight_file, tensor_places
from align.runtime.plain_file import other_kind, read_small_file
from align.system_errors import system_problem

GENERATION_CONFIG_NAME = "generation_config.json"
CHAT_NAME = "chat_settings.json"
"""Chat settings that a recipe gave; see `ChatSettings`."""
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
"""PEFT's, before every name in an adapter's file."""
BASE_NAME = "base.json"
ADAPTER_AGAIN = "The folder is damaged; run the stage that made it again."

ADDITIONAL_TEMPLATES_NAME = "additional_chat_templates"
TOOL_TEMPLATE = "tool_use"
"""Name of the template that transformers takes for conversations with tools, where a tokenizer has several."""
# transformers opens these by their well-known names, so no name passes through `_inside`.
_READ_UNNAMED = frozenset({".json", ".jinja", ".model", ".txt"})
MAX_SHARDS = 10_000
MAX_TEXT_BYTES = 256 * 1024 * 1024
"""Of a file that is read whole; the largest tokenizer.json of public models has some 40 MB."""
MAX_NAME_BYTES = 255
MOST_TOKENS = 1 << 24
"""Of a vocabulary; the largest of public models have some 260,000."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_QUANTIZED_NAMES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Settings of GPTQ, AWQ and ModelOpt, in folders whose config.json says nothing of them."""
MXFP4 = "mxfp4"
"""The one that is read: transformers turns it, in which gpt-oss is published, into bfloat16."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "_attn_implementation_internal", "_experts_implementation_internal"})
# These may name a kernel repository on the hub, whose code would be run; only what transformers has built in is let through.
_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"})
_BUILT_IN_KERNELS = frozenset(
    {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm", "batched_mm"}
)


def read_configuration(path: Path) -> dict[str, dict[str, Any]]:
    """What the configuration files of a folder say, by the file's name; a file that is not there is left out.

    Raises:
        RecipeError: if there is no such folder or no config.json in it, or a file could make loading run code or leads out of it.
        EnvironmentProblem: if a file cannot be read.
    """
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "there is no such folder"
        raise RecipeError(f"{path}: {what}", hint="Give the folder that holds the model's config.json.")
    # First: the other checks read files, and would follow a link out of the folder.
    _check_links(path)
    if not (path / CONFIG_NAME).exists():
        _refuse_gguf(path)
        if (path / ADAPTER_CONFIG_NAME).exists():
            _refuse_bare_adapter(path)
        inner = sorted((found.parent for found in path.glob(f"*/{CONFIG_NAME}")), key=lambda one: (len(one.name), one.name))
        hint = f"Did you mean {inner[-1]}?" if inner else "Give the folder that holds the model's config.json."
        raise RecipeError(f"{path}: there is no {CONFIG_NAME}", hint=hint)
    contents: dict[str, dict[str, Any]] = {}
    for name in (CONFIG_NAME, TOKENIZER_CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME, CHAT_NAME):
        if not (path / name).exists():
            continue
        contents[name] = read_json_object(path, name)
        settings = contents[name]
        if name == CONFIG_NAME and _is_known_to_transformers(settings):
            # Many publish code beside an architecture that transformers has built in; it is not read, as we never allow it.
            settings = {key: value for key, value in settings.items() if key != "auto_map"}
        named = sorted(set(_forbidden(settings)))
        if named:
            raise RecipeError(
                f"{path / name}: has {', '.join(named)}, with which loading the model could run code that came with it",
                hint="align runs no code from model folders. Use a model whose architecture transformers has built in.",
            )
    _check_form(path, contents[CONFIG_NAME])
    _refuse_quantized(path, contents[CONFIG_NAME])
    return contents


def _check_form(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration whose type and classes are no texts: what reads them would fail far from here."""
    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str | None):
        raise EnvironmentProblem(f"{path / CONFIG_NAME}: model_type is {kind!r}, not a text", hint="Get the model again.")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        what = f"architectures is {classes!r}, not a list of texts"
        raise EnvironmentProblem(f"{path / CONFIG_NAME}: {what}", hint="Get the model again.")


def is_configuration_alone(path: Path) -> bool:
    """Whether there is a configuration and not one file of weights, of any kind: enough to plan with."""
    found = (file for pattern in ("*.safetensors", "*.gguf", *_PICKLES) for file in path.glob(pattern))
    return (path / CONFIG_NAME).is_file() and not any(found)


def check_contents(path: Path) -> None:
    """Check tokenizer and weights of a folder whose configuration was read. Weights are not read beyond their headers.

    Raises:
        RecipeError, EnvironmentProblem: see `ModelFolder.check`.
    """
    if not (path / TOKENIZER_NAME).exists():
        raise RecipeError(
            f"{path}: there is no {TOKENIZER_NAME}",
            hint=f'Save the tokenizer there: AutoTokenizer.from_pretrained("…").save_pretrained("{path}")',
        )
    _check_token_ids(path)
    if (path / ADAPTER_CONFIG_NAME).exists():
        _check_adapter(path)
        return
    for weights in weight_files(path):
        check_weight_file(path / weights)


def _check_token_ids(path: Path) -> None:
    """Refuse a tokenizer with an id that no vocabulary needs: the library makes room for all ids below the largest."""
    content = read_json_object(path, TOKENIZER_NAME)
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        tokens += [(token.get("content"), token.get("id")) for token in added if isinstance(token, dict)]
    for text, number in tokens:
        if isinstance(number, int) and not 0 <= number < MOST_TOKENS:
            raise EnvironmentProblem(
                f"{path / TOKENIZER_NAME}: the token {str(text)[:60]!r} has the id {number}; expected 0 to {MOST_TOKENS - 1:,}",
                hint="Get the model again.",
            )


def _refuse_bare_adapter(path: Path) -> None:
    """Refuse an adapter as PEFT saves it: its base model is named and not there."""
    base = read_json_object(path, ADAPTER_CONFIG_NAME).get("base_model_name_or_path") or "its base model"
    raise RecipeError(
        f"{path}: an adapter alone; the model is {base} with it",
        hint="Merge them: AutoPeftModelForCausalLM.from_pretrained"
        f'("{path}").merge_and_unload().save_pretrained("merged"), and save the tokenizer there too.',
    )


def _refuse_quantized(path: Path, config: dict[str, Any]) -> None:
    """Refuse weights that were stored in a few bits: they cannot be trained, and each kind needs a package of its own to read."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):  # of several modalities
        for found in (part.get("quantization_config"), part.get("compression_config")):
            method = found.get("quant_method") if isinstance(found, dict) else None
            if found and method != MXFP4:
                raise RecipeError(
                    f"{path / CONFIG_NAME}: the weights are quantised ({method or 'in a way that it does not name'})",
                    hint=NEEDS_WHOLE_WEIGHTS,
                )
    for name in _QUANTIZED_NAMES:
        if (path / name).exists():
            raise RecipeError(f"{path}: the weights are quantised ({name})", hint=NEEDS_WHOLE_WEIGHTS)


def _refuse_gguf(path: Path) -> None:
    if found := sorted(file.name for file in path.glob("*.gguf")):
        raise RecipeError(
            f"{path}: the weights are in GGUF ({', '.join(found[:3])}), which is for inference only",
            hint="Use the version of the model that has config.json and safetensors.",
        )


def _check_links(path: Path) -> None:
    """Refuse links that lead out of the folder from files that are read without being named: a template, a vocabulary.

    Pipes, devices and files that are too large are refused too: reading one may never end, or fill the memory.
    """
    for file in sorted(path.iterdir()):
        if file.is_symlink() and (file.suffix in _READ_UNNAMED or file.name == ADDITIONAL_TEMPLATES_NAME):
            _inside(path, file.name)
        _refuse_endless(file)
    for file in sorted((path / ADDITIONAL_TEMPLATES_NAME).glob("*")):
        _inside(path, f"{ADDITIONAL_TEMPLATES_NAME}/{file.name}")
        _refuse_endless(file)


def _refuse_endless(file: Path) -> None:
    if (kind := other_kind(file)) is not None and not file.is_dir():
        raise RecipeError(f"{file}: is {kind}, not a file", hint=PLAIN_FILES_ONLY)
    if file.suffix in _READ_UNNAMED and file.is_file() and (size := file.stat().st_size) > MAX_TEXT_BYTES:
        raise EnvironmentProblem(f"{file}: has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read", hint="Get the model again.")


def _check_adapter(path: Path) -> None:
    if not (path / BASE_NAME).exists():
        # PEFT would follow its base_model_name_or_path, wherever that points.
        raise RecipeError(
            f"{path}: it holds an adapter ({ADAPTER_CONFIG_NAME}), but no {BASE_NAME} that says which base model it belongs to",
            hint="Merge it into its base model first: PeftModel.merge_and_unload().save_pretrained(…)",
        )
    if not (path / ADAPTER_WEIGHTS_NAME).exists():
        raise EnvironmentProblem(f"{path}: there is no {ADAPTER_WEIGHTS_NAME}", hint=ADAPTER_AGAIN)
    tokens = read_json_object(path, ADAPTER_CONFIG_NAME).get("trainable_token_indices") or {}
    if not isinstance(tokens, dict) or not all(isinstance(ids, list) for ids in tokens.values()):
        what = f"trainable_token_indices is {str(tokens)[:60]}; expected lists of tokens by the name of a layer"
        raise EnvironmentProblem(f"{path / ADAPTER_CONFIG_NAME}: {what}", hint=ADAPTER_AGAIN)
    _inside(path, ADAPTER_WEIGHTS_NAME)
    check_weight_file(path / ADAPTER_WEIGHTS_NAME)


def _is_known_to_transformers(config: dict[str, Any]) -> bool:
    """Whether transformers has a model of that type; its folders are looked at, as importing it takes seconds."""
    models, name = _models_of_transformers(), config.get("model_type")
    if models is None or not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        return False
    if not _may_be_a_name(name):
        return False
    return (models / name.replace("-", "_")).is_dir()


@cache
def _models_of_transformers() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"


def _forbidden(value: Any) -> Iterator[str]:
    """Names of the entries, at any depth, that could make loading run code."""
    if isinstance(value, list):
        for item in value:
            yield from _forbidden(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in _CODE_KEYS:
            yield key
        elif key in _KERNEL_KEYS and not _is_built_in(item):
            yield f"{key}: {item!r}"
        else:
            yield from _forbidden(item)


def _is_built_in(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return all(item is None or (isinstance(item, str) and item in _BUILT_IN_KERNELS) for item in values)


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a model's folder.

    Raises:
        RecipeError: if the name leads out of the folder.
        EnvironmentProblem: if there is no such file, or no object in it.
    """
    file = _inside(path, name)
    try:
        content = json.loads(read_small_file(file, most_bytes=MAX_TEXT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        damaged = EnvironmentProblem(f"{path / name}: cannot be read as JSON ({reason})", hint="Get the model again.")
        raise system_problem(error, file) or damaged from error
    if not isinstance(content, dict):
        raise EnvironmentProblem(f"{path / name}: must hold a JSON object, but holds {type(content).__name__}")
    return content


def _inside(path: Path, name: Any) -> Path:
    """The file `name` of the folder.

    Raises:
        RecipeError: if the name leads out of the folder, itself or as a link.
    """
    refusal = RecipeError(
        f"{path}: names the file {name!r}, which is not inside the folder",
        hint="Do not use this model: whoever made it reaches for other files of this machine.",
    )
    if (
        not isinstance(name, str)
        or not name
        or "\\" in name
        or "\0" in name
        or not _may_be_a_name(name)
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise refusal
    # The name itself is harmless now, but a link can still lead elsewhere.
    real = Path(os.path.realpath(path / name))
    if not any(real.is_relative_to(root) for root in _allowed_roots(path)):
        raise refusal
    return path / name


def _may_be_a_name(name: str) -> bool:
    """Whether a file can have the name: none can have half a character in it, or a part of more than 255 bytes."""
    try:
        return max(map(len, os.fsencode(name).split(b"/"))) <= MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False


def _allowed_roots(path: Path) -> list[Path]:
    """The folder itself and, for a snapshot in the hub's cache, the folder its links lead to by design."""
    real = Path(os.path.realpath(path))
    roots = [real]
    if real.parent.name == "snapshots":
        roots.append(real.parent.parent / "blobs")
    return roots


def weight_files(path: Path) -> list[str]:
    """Names of the weight files, each inside the folder."""
    if (path / INDEX_NAME).exists():
        weight_map = read_json_object(path, INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise EnvironmentProblem(f"{path / INDEX_NAME}: has no weight_map", hint="Get the model again.")
        for name in weight_map.values():
            if not isinstance(name, str):
                _inside(path, name)  # which refuses it; it may be of a kind that no set can hold
        names = list(dict.fromkeys(weight_map.values()))
        for name in names:
            _inside(path, name)
            if not str(name).endswith(".safetensors"):
                raise RecipeError(f"{path / INDEX_NAME}: names {name!r}, which is not a safetensors file", hint=_CONVERT)
        return names
    if (path / WEIGHTS_NAME).exists():
        _inside(path, WEIGHTS_NAME)
        return [WEIGHTS_NAME]
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise RecipeError(
            f"{path}: the weights are pickled ({', '.join(pickles[:3])}); loading a pickle can run any code", hint=_CONVERT
        )
    _refuse_gguf(path)
    if found := sorted(file.name for file in path.glob("*.safetensors")):
        raise _other_safetensors(path, found)
    raise RecipeError(f"{path}: there are no weights ({WEIGHTS_NAME} or {INDEX_NAME})", hint="Get the model again.")


def _other_safetensors(path: Path, found: list[str]) -> RecipeError:
    """The refusal of a folder whose safetensors files nothing leads to: shards without their index, or a file of another name."""
    shards = [name for name in found if _SHARD.fullmatch(name)]
    if shards:
        start, _, count = _SHARD.fullmatch(shards[0]).groups()  # type: ignore[union-attr]  # all of them match
        whole = [f"{start}-{number:0{len(count)}}-of-{count}.safetensors" for number in range(1, min(int(count), MAX_SHARDS) + 1)]
        missing = [name for name in whole if name not in shards]
        gone = f", and without {_some(missing)}" if missing else ""
        return RecipeError(
            f"{path}: holds {_some(shards)} without {INDEX_NAME}, which says what is in which file{gone}",
            hint=f"Get {'these files' if missing else 'the index'} from where the others came from.",
        )
    if ADAPTER_WEIGHTS_NAME in found:
        return RecipeError(
            f"{path}: holds an adapter's weights ({ADAPTER_WEIGHTS_NAME}) without {ADAPTER_CONFIG_NAME}",
            hint="Get the adapter again, or name the folder of the whole model.",
        )
    return RecipeError(
        f"{path}: there is no {WEIGHTS_NAME}, but {_some(found)}",
        hint=f"If that is the whole model, rename it to {WEIGHTS_NAME}; otherwise get the model again.",
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


_CONVERT = (
    "Use the model's safetensors version. To convert weights you trust: "
    'AutoModelForCausalLM.from_pretrained("…", use_safetensors=False).save_pretrained("…")'
)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the weight files of a checked folder, by name; no weight is read."""
    return {name: place.shape for file in weight_files(path) for name, place in tensor_places(path / file).items()}
