"""The model that training starts from, and which part of it is trained: all of it, or an adapter on a frozen base.

`load_trainable` loads it, `save_trained` saves it and `trained_state` is for checkpoints. No trainer needs to know which method
it runs.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.config.architecture import CONFIG_NAME
from align.config.peft import Lora, VirtualTokens
from align.config.sections import SaveDtype
from align.errors import RecipeError
from align.models.adapter import check_continued, write_base_record
from align.models.chat_format import Tokens, save_tokens
from align.models.files import ADAPTER_WEIGHTS_NAME, GENERATION_CONFIG_NAME
from align.models.finite import check_finite_files
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model
from align.models.logits import check_logits
from align.models.lora import (
    HEAD,
    add_lora,
    load_lora_state,
    lora_state,
    quantization_config,
    write_lora_config,
)
from align.models.save import check_finite, save_model
from align.models.virtual_tokens import NAME, WEIGHT, add_virtual_tokens, read_vectors, write_virtual_tokens_config
from align.runtime.bitsandbytes_check import require_for_qlora
from align.runtime.profile import phase

if TYPE_CHECKING:
    pass

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


@dataclass(frozen=True)
class TrainableModel:
    """A model folder (whole, or an adapter), which part of it is trained, and where the result will be."""

    folder: ModelFolder
    peft: Lora | VirtualTokens | None
    """None: every weight is trained. An adapter is then merged into its base model first."""
    store_root: Path
    name: str
    """What to name in messages."""
    save_dtype: SaveDtype = "auto"
    """Of the saved weights where every weight is trained."""

    @property
    def is_continued(self) -> bool:
        """Whether an adapter is trained further."""
        return self.peft is not None and self.folder.is_adapter

    @property
    def base(self) -> ModelFolder:
        """The folder that the frozen weights come from."""
        return self.folder.base if self.is_continued else self.folder

    @property
    def new_token_ids(self) -> list[int]:
        """Tokens that the base model never trained, whose rows LoRA trains."""
        if self.is_continued:
            return next(iter(self.folder.trained_token_ids.values()), [])
        if not self.folder.new_tokens:
            return []
        vocabulary = self.folder.tokenizer.get_vocab()
        return sorted(vocabulary[token] for token in self.folder.new_tokens)

    @property
    def is_quantized(self) -> bool:
        return self.peft is not None and self.peft.method == "qlora"

    @property
    def changes_initial_policy(self) -> bool:
        """Whether the model differs from its folder before the first step: new virtual tokens change it, a new LoRA does not."""
        return isinstance(self.peft, VirtualTokens) and not self.is_continued

    @property
    def context_tokens(self) -> int:
        """How many tokens the model can see behind its virtual ones."""
        new = self.peft.num_virtual_tokens if isinstance(self.peft, VirtualTokens) and not self.is_continued else 0
        return self.folder.context_tokens - new


def load_trainable(
    trainable: TrainableModel,
    *,
    task: Task = "CAUSAL_LM",
    new_head: bool = False,
    pad_token_id: int | None = None,
    frozen_dtype: str = "float32",
) -> Any:
    """The model in eval mode; only parameters to be trained require a gradient, and they are float32.

    New parameters are drawn from torch's global generator.

    Args:
        task: a language model, or a model with a score head, which is always trained.
        new_head: whether the score head is new.
        pad_token_id: see `load_reward_model`.
        frozen_dtype: float32 or bfloat16, of weights that LoRA does not train, and of the arithmetic on weights of 4 bits.
    Raises:
        RecipeError: if the settings do not fit the model, or the folder cannot be used.
        EnvironmentProblem: if bitsandbytes is needed and missing, or an adapter's base model is gone.
    """
    if trainable.is_quantized:
        require_for_qlora(trainable.name)
    folder = trainable.folder
    if trainable.peft is None and (count := folder.virtual_tokens):
        raise RecipeError(
            f"{trainable.name}: the model is {count} virtual tokens in front of a base, which cannot become part of its weights",
            hint="Train them further with the same peft settings (sft, dpo and orpo can), or start from the base model.",
        )
    if isinstance(trainable.peft, VirtualTokens) and folder.new_tokens:
        raise RecipeError(
            f"{trainable.name}: peft: {', '.join(folder.new_tokens)} were added to the vocabulary, and {trainable.peft.method} "
            "would leave their embeddings untrained",
            hint="Use method: lora, which trains them, or take a template that needs no new token: `chat: {template: plain}`.",
        )
    if trainable.peft is not None and folder.peft is not None:
        check_continued(trainable.peft, folder.peft, folder.base.path, trainable.name)
    # Virtual tokens are compared with real ones when they are made, to more digits than bfloat16 has.
    dtype = frozen_dtype if isinstance(trainable.peft, Lora) else "float32"
    quantization = quantization_config(dtype) if trainable.is_quantized else None
    if task == "SEQ_CLS":
        # The trained head of an adapter is in its own file, not in the base model; it is loaded below.
        with_new_head = new_head or trainable.is_continued
        model: Any = load_reward_model(
            trainable.base, dtype=dtype, new_head=with_new_head, pad_token_id=pad_token_id, quantization=quantization
        )
    else:
        model = load_causal_lm(trainable.base, dtype=dtype, quantization=quantization)
        check_logits(model, trainable.name)
    # transformers skips layers of classes that it cannot quantise, and loads the model all the same.
    if trainable.is_quantized and not any(hasattr(parameter, "quant_state") for parameter in model.parameters()):
        raise RecipeError(
            f"{trainable.name}: qlora: transformers keeps none of this model's layers in 4 bits ({type(model).__name__})",
            hint="Use method: lora.",
        )
    if trainable.peft is None:
        return model
    kept = _adapter_state(folder) if trainable.is_continued else None
    if kept is not None and task == "SEQ_CLS" and not new_head and HEAD not in kept:
        raise RecipeError(
            f"{trainable.name}: {folder.path}: is no reward model: the adapter has no score head",
            hint="Name an adapter that a reward_model stage trained.",
        )
    if isinstance(trainable.peft, Lora):
        add_lora(model, trainable.peft, task=task, where=trainable.name, token_ids=trainable.new_token_ids)
        keep_trained_in_float32(model)
        if kept is not None:
            load_lora_state(model, kept)
    else:
        add_virtual_tokens(model, trainable.peft, None if kept is None else read_vectors(kept), where=trainable.name)
    if task == "SEQ_CLS":
        model.score.float().requires_grad_(True)
    return model.eval()


def _adapter_state(folder: ModelFolder) -> dict[str, Tensor]:
    check_finite_files(folder.path, [ADAPTER_WEIGHTS_NAME])
    state: dict[str, Tensor] = load_file(folder.path / ADAPTER_WEIGHTS_NAME)
    return state


def keep_trained_in_float32(model: Any) -> None:
    """Make an adapter float32: PEFT makes it in the type of its layer, and small updates vanish in bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def count_trained(model: Any) -> int:
    """How many parameters are trained; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def trained_state(model: Any) -> dict[str, Tensor]:
    """The parameters that are trained, by name: what a checkpoint of an adapter must hold."""
    return {name: value.detach().cpu().contiguous() for name, value in model.named_parameters() if value.requires_grad}


def load_trained_state(model: Any, state: dict[str, Tensor]) -> None:
    """Restore what `trained_state` returned.

    Raises:
        KeyError: if a trained parameter is not in it.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])


@phase("save")
def save_trained(model: Any, tokens: Tokens, folder: Path, trainable: TrainableModel) -> None:
    """Write the trained model into `folder`, which is created: the whole model, or the adapter and a record of its base.

    Raises:
        StageError: if a trained number is NaN or infinite; nothing is written then.
    """
    if trainable.peft is None:
        save_model(model, tokens, folder, dtype=trainable.folder.saved_dtype(trainable.save_dtype))
        return
    check_finite(trained_state(model))
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(trainable.peft, Lora):
        state = lora_state(model)
        write_lora_config(model, folder)
    else:
        encoder = getattr(model, NAME)
        state = {WEIGHT: encoder.prompt_embeddings.detach().cpu().contiguous()}
        write_virtual_tokens_config(model, encoder, folder)
    save_file(state, folder / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    base = trainable.base.path
    # Stages read context and end tokens from a model's folder without asking whether it is an adapter.
    for name in (CONFIG_NAME, GENERATION_CONFIG_NAME):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    save_tokens(tokens, folder)
    write_base_record(folder, base=base, store_root=trainable.store_root, peft=trainable.peft)
    ModelFolder(folder).check()
