"""Load models and tokenizers from a folder that was checked. transformers and torch are imported when a function is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.models.folder import CONFIG_NAME, check_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_NAME = "score.weight"
"""Weight of the head that gives a reward model's score."""


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Never goes to the network.

    Raises:
        RecipeError, EnvironmentProblem: see `check_model_folder`.
    """
    check_model_folder(path)
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    return tokenizer


def load_causal_lm(path: Path, *, dtype: Any = "float32") -> PreTrainedModel:
    """A language model, in eval mode, on the CPU. Never goes to the network.

    Args:
        dtype: float32, bfloat16, or a torch.dtype: what the weights are converted to.
    Raises:
        RecipeError: see `check_model_folder`; or if the folder lacks weights of the architecture that config.json names,
            which transformers would fill with random numbers.
        EnvironmentProblem: see `check_model_folder`.
    """
    check_model_folder(path)
    from transformers import AutoModelForCausalLM

    model, missing = _load(AutoModelForCausalLM, path, dtype=dtype)
    _refuse_missing(path, missing, "a language model")
    return model


def load_reward_model(
    path: Path,
    *,
    dtype: Any = "float32",
    num_labels: int = 1,
    new_head: bool | None = None,
    pad_token_id: int | None = None,
) -> PreTrainedModel:
    """A model with a scalar score head, in eval mode, on the CPU. Never goes to the network.

    Args:
        dtype: as for `load_causal_lm`.
        num_labels: scores per sequence.
        new_head: True for a language model, which gets a new score head (drawn from torch's global generator); False for a
            reward model, whose head must be in the folder. None: False exactly if config.json names a sequence classifier.
        pad_token_id: written into the configuration; by it the model finds the last real token, on which the score is read.
            Default: the tokenizer's.
    Raises:
        RecipeError, EnvironmentProblem: as `load_causal_lm`.
    """
    check_model_folder(path)
    from transformers import AutoModelForSequenceClassification

    model, missing = _load(AutoModelForSequenceClassification, path, dtype=dtype, num_labels=num_labels)
    if new_head is None:
        new_head = not _names_reward_model(path)
    _refuse_missing(path, missing - {HEAD_NAME} if new_head else missing, "a reward model")
    if pad_token_id is None:
        pad_token_id = load_tokenizer(path).pad_token_id
    model.config.pad_token_id = pad_token_id
    return model


def _names_reward_model(path: Path) -> bool:
    architectures = json.loads((path / CONFIG_NAME).read_bytes()).get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in architectures)


def _load(auto_class: Any, path: Path, *, dtype: Any, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of weights that the folder does not have."""
    try:
        model, info = auto_class.from_pretrained(
            str(path),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    except (KeyError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"{path}: transformers cannot load this model: {reason}", hint="Is its architecture supported?"
        ) from error
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise RecipeError(
            f"{path}: {name} is {list(found)} in the weights, but {list(wanted)} is needed",
            hint="config.json must be that of the weights, and a reward model gives one score: its head is [1, width].",
        )
    from align.models.fused import fuse

    fuse(model)
    return model, set(info["missing_keys"])


def _refuse_missing(path: Path, missing: set[str], what: str) -> None:
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise RecipeError(
            f"{path}: as {what}, it lacks the weights {shown}; they would be random",
            hint="Is it the right kind of model? A reward model is not a language model, nor the other way round.",
        )
