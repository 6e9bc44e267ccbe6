"""Load models from a folder, which is checked first. transformers and torch are imported only inside functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.architecture import CONFIG_NAME
from align.config.peft import Lora
from align.errors import RecipeError
from align.models.files import ADAPTER_PREFIX, ADAPTER_WEIGHTS_NAME, weight_files
from align.models.finite import check_finite_files
from align.models.folder import ModelFolder
from align.models.later_weights import build_without_weights, do_weights_come_later
from align.models.tokenizer import differing_ids
from align.runtime.bitsandbytes_check import require_for_qlora
from align.runtime.device import device_name
from align.runtime.profile import phase
from align.store.artifact import Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_NAME = "score.weight"
"""Weight of the head that gives a reward model's score."""


def _checked(model: ModelFolder | Path) -> ModelFolder:
    return (model if isinstance(model, ModelFolder) else ModelFolder(model)).check()


def differing_tokens(first: ModelFolder, second: ModelFolder) -> list[str]:
    """Tokens whose ids differ between the tokenizers of two model folders; none where an id means the same to both."""
    return differing_ids(first.tokenizer.get_vocab(), second.tokenizer.get_vocab())


def check_vocabulary(
    source: Artifact, folder: ModelFolder, reference: Artifact, reference_folder: ModelFolder, *, role: str = "reference"
) -> None:
    """Check that an id means the same token to policy and reference, which read the same ids.

    Args:
        role: what the reference is to the policy.
    Raises:
        RecipeError: if it does not.
    """
    if reference.fingerprint == source.fingerprint:
        return
    if differing := differing_tokens(folder, reference_folder):
        raise RecipeError(
            f"{reference.name}: the {role} of {source.name} needs the same tokenizer, but {len(differing):,} tokens differ "
            f"({', '.join(map(repr, differing[:3]))}, …)",
            hint=f"Name a {role} that was made from the same base model.",
        )


def load_causal_lm(model: ModelFolder | Path, *, dtype: Any = "float32", quantization: Any = None) -> PreTrainedModel:
    """A language model, in eval mode, on the CPU; within `weights_come_later`, without weights. Never goes to the network.

    The folder may hold an adapter. LoRA is merged into its base model (for qlora, into the base model as training saw it, with
    weights rounded to 4 bits); virtual tokens are put in front of theirs.

    Args:
        dtype: float32, bfloat16, or a torch.dtype: what the weights are converted to.
        quantization: transformers' quantization_config; linear layers are then packed as they are read.
    Raises:
        RecipeError: see `ModelFolder.check`; or if the folder lacks weights of the architecture that config.json names,
            which transformers would fill with random numbers; or if a weight is NaN or infinite.
        EnvironmentProblem: see `ModelFolder.check`.
    """
    folder = _checked(model)
    _refuse_encoder_decoder(folder, "a decoder-only language model")
    from transformers import AutoModelForCausalLM

    if folder.is_adapter:
        # The base is float32 here, so that the sum is rounded once, to `dtype`.
        return _with_adapter(folder, load_causal_lm(folder.base), dtype)
    loaded, missing = _load(AutoModelForCausalLM, folder.path, dtype=dtype, **_quantized(quantization))
    _refuse_missing(folder.path, missing, "a language model")
    return loaded


def load_seq2seq_lm(model: ModelFolder | Path, *, dtype: Any = "float32") -> PreTrainedModel:
    """An encoder–decoder language model (T5 style), in eval mode, on the CPU. Never goes to the network.

    Args:
        dtype: as for `load_causal_lm`.
    Raises:
        RecipeError, EnvironmentProblem: as `load_causal_lm`; or if the model does not say what its decoder starts with.
    """
    path = _checked(model).path
    from transformers import AutoModelForSeq2SeqLM

    loaded, missing = _load(AutoModelForSeq2SeqLM, path, dtype=dtype)
    _refuse_missing(path, missing, "an encoder–decoder model")
    if loaded.config.decoder_start_token_id is None:
        raise RecipeError(
            f"{path / CONFIG_NAME}: there is no decoder_start_token_id, the token that every completion is begun with",
            hint="Set it as the model was trained; for T5 it is the padding token's.",
        )
    return loaded


def load_reward_model(
    model: ModelFolder | Path,
    *,
    dtype: Any = "float32",
    num_labels: int = 1,
    new_head: bool | None = None,
    pad_token_id: int | None = None,
    quantization: Any = None,
) -> PreTrainedModel:
    """A model with a scalar score head, in eval mode, on the CPU. Never goes to the network. Adapters as in `load_causal_lm`.

    Args:
        dtype: as for `load_causal_lm`.
        num_labels: scores per sequence.
        new_head: True for a language model, which gets a new score head (drawn from torch's global generator); False for a
            reward model, whose head must be in the folder. None: False exactly if config.json names a sequence classifier.
        pad_token_id: written into the configuration; by it the model finds the last real token, on which the score is read.
            Default: the tokenizer's.
        quantization: as for `load_causal_lm`; the head stays as it is.
    Raises:
        RecipeError, EnvironmentProblem: as `load_causal_lm`.
    """
    folder = _checked(model)
    _refuse_encoder_decoder(folder, "a reward model")
    from transformers import AutoModelForSequenceClassification

    if folder.is_adapter:
        # The base may be a language model, or have another head: the adapter's file brings the head.
        options: dict[str, Any] = {"num_labels": num_labels, "new_head": True}
        own_id = folder.tokenizer.pad_token_id
        base = load_reward_model(folder.base, pad_token_id=own_id, **options)
        loaded = _with_adapter(folder, base, dtype, needs_head=not new_head)
        loaded.config.pad_token_id = own_id if pad_token_id is None else pad_token_id
        return loaded
    options = {"num_labels": num_labels, **_quantized(quantization)}
    loaded, missing = _load(AutoModelForSequenceClassification, folder.path, dtype=dtype, **options)
    if new_head is None:
        new_head = not folder.is_reward_model
    _refuse_missing(folder.path, missing - {HEAD_NAME} if new_head else missing, "a reward model")
    loaded.config.pad_token_id = folder.tokenizer.pad_token_id if pad_token_id is None else pad_token_id
    return loaded


def _with_adapter(folder: ModelFolder, base: PreTrainedModel, dtype: Any, *, needs_head: bool = False) -> PreTrainedModel:
    """`base` with the adapter in `folder`: LoRA is merged, virtual tokens stand in front. No weight is left frozen.

    Args:
        needs_head: whether the adapter must bring a score head, since that of `base` is random.
    """
    from safetensors.torch import load_file

    from align.models import lora, virtual_tokens

    path, peft = folder.path, folder.peft
    assert peft is not None
    check_finite_files(path, [ADAPTER_WEIGHTS_NAME])
    state = load_file(path / ADAPTER_WEIGHTS_NAME)
    if needs_head:
        _refuse_missing(path, {HEAD_NAME} - {name.removeprefix(ADAPTER_PREFIX) for name in state}, "a reward model")
    if isinstance(peft, Lora):
        if peft.method == "qlora":
            require_for_qlora(str(path))
        if not do_weights_come_later():
            lora.merge(base, state, peft, folder.trained_token_ids)
    else:
        virtual_tokens.add_virtual_tokens(base, peft, virtual_tokens.read_vectors(state))
        # `add_virtual_tokens` freezes the base; a loaded model is not frozen.
        base.requires_grad_(True)
    _convert(base, dtype)
    return base.eval()


def _convert(model: Any, dtype: Any) -> None:
    import torch

    for parameter in model.parameters():  # not buffers: positions are encoded by frequencies that bfloat16 would spoil
        parameter.data = parameter.data.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def _unpacked() -> dict[str, Any]:
    """Options with which MXFP4 is never kept, on a GPU neither: it cannot be trained, and its kernels come from a hub."""
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def _quantized(quantization: Any) -> dict[str, Any]:
    """Options that quantise each tensor as it is read, so that the model never has to fit into memory in full precision."""
    if quantization is None:
        return {}
    return {"quantization_config": quantization, "device_map": {"": 0 if device_name() == "cuda" else "cpu"}}


def _refuse_encoder_decoder(folder: ModelFolder, wanted: str) -> None:
    """transformers would load half of some of them (BART's decoder alone) without an error."""
    if architecture := folder.encoder_decoder:
        raise RecipeError(
            f"{folder.path}: is an encoder–decoder model ({architecture}), where {wanted} is needed",
            hint="Encoder–decoder models can be fine-tuned (sft), sampled (generate) and compared, and nothing else.",
        )


@phase("load")
def _load(auto_class: Any, path: Path, *, dtype: Any, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of weights that the folder lacks, which transformers fills with random numbers."""
    from align.models.kernels import use_kernels

    if do_weights_come_later():  # whoever reads them checks them
        model = build_without_weights(auto_class, path, dtype=dtype, **options)
        use_kernels(model)
        return model, set()
    check_finite_files(path, weight_files(path))
    unpacks = "quantization_config" not in options and ModelFolder(path).has_mxfp4
    try:
        # The folder was checked; these options enforce the same rules while transformers reads it.
        model, info = auto_class.from_pretrained(
            str(path),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **({**options, **_unpacked()} if unpacks else options),
        )
    except (KeyError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        if "ForSequenceClassification" in auto_class.__name__ and reason.startswith("Unrecognized configuration class"):
            raise RecipeError(
                f"{path}: transformers has no reward model of this architecture ({ModelFolder(path).config.get('model_type')})",
                hint="Train the reward model from another model (Llama, Qwen, Gemma …): it scores texts, whatever wrote them.",
            ) from error
        raise RecipeError(
            f"{path}: transformers cannot load this model: {reason}", hint="Is its architecture supported?"
        ) from error
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise RecipeError(
            f"{path}: {name} is {list(found)} in the weights, but {list(wanted)} is needed",
            hint="config.json must be that of the weights, and a reward model gives one score: its head is [1, width].",
        )
    if unpacks:
        _convert(model, dtype)  # it is bfloat16, whatever was asked for
    if "quantization_config" in options:
        from align.models.lora import keep_plain_format

        keep_plain_format(model)
    use_kernels(model)
    return model, set(info["missing_keys"])


def _refuse_missing(path: Path, missing: set[str], what: str) -> None:
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise RecipeError(
            f"{path}: as {what}, it lacks the weights {shown}; they would be random",
            hint="Is it the right kind of model? A reward model is not a language model, nor the other way round.",
        )
