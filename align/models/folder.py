"""A model's folder, resolved once: what its files say, each of which is read when it is first needed.

Importing this loads no torch; only the tokenizer needs transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.architecture import CONFIG_NAME, encoder_decoder_architecture, encoder_decoder_refusal
from align.config.chat import ChatSettings
from align.config.peft import Lora, VirtualTokens
from align.config.sections import SaveDtype
from align.errors import EnvironmentProblem, RecipeError
from align.models.adapter import BaseRecord, find_base, read_record
from align.models.files import (
    ADAPTER_CONFIG_NAME,
    CHAT_NAME,
    GENERATION_CONFIG_NAME,
    MXFP4,
    TOKENIZER_CONFIG_NAME,
    check_contents,
    is_configuration_alone,
    read_configuration,
    tensor_shapes,
)
from align.models.meta import shapes_by_config
from align.models.tied import TIED_BY_DEFAULT
from align.models.tokenizer import load_tokenizer
from align.store.artifact import INPUT_STAGE, Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_BOUND = 1_000_000
"""Context, in tokens, of a model whose configuration sets no bound."""


@dataclass(frozen=True)
class ModelFolder:
    """The folder of a model or of an adapter. Make one per folder and hand it on; of files that change, make another.

    What a recipe may say of a model beyond its place belongs here, as further fields, and decides the properties below.

    Every property that reads a file raises RecipeError if the file is unsafe and EnvironmentProblem if it is damaged.
    """

    path: Path
    """Holds config.json, tokenizer.json and weights in safetensors, or those of an adapter and its base.json."""

    chat: ChatSettings | None = None
    """What a recipe says of the model's chat format; None: the folder's own record, if there is one."""

    @classmethod
    def of(cls, artifact: Artifact) -> ModelFolder:
        """The folder of a model, with what the recipe says of it where it is an input."""
        said = artifact.manifest.config.get("chat") if artifact.manifest.stage == INPUT_STAGE else None
        return cls(artifact.model_path, None if said is None else ChatSettings.model_validate(said))

    def __hash__(self) -> int:
        return hash(self.path)  # settings hold mappings, which have no hash

    def __reduce__(self) -> tuple[type[ModelFolder], tuple[Path, ChatSettings | None]]:
        return ModelFolder, (self.path, self.chat)  # another process reads for itself

    def check(self) -> ModelFolder:
        """Refuse a folder that is unsafe, incomplete or damaged. Returns the folder itself.

        Weights are not read beyond their headers, so it takes milliseconds whatever the size.

        Raises:
            RecipeError: if the folder is absent or holds something that is refused.
            EnvironmentProblem: if a file is damaged or cut short.
        """
        return self._checked

    @cached_property
    def _checked(self) -> ModelFolder:
        assert self._configuration  # first: it refuses links that lead out of the folder
        check_contents(self.path)
        return self

    @cached_property
    def _configuration(self) -> dict[str, dict[str, Any]]:
        return read_configuration(self.path)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says; of an adapter it is its base's."""
        return self._configuration[CONFIG_NAME]

    @property
    def generation_config(self) -> dict[str, Any]:
        """What generation_config.json says; empty where there is none."""
        return self._configuration.get(GENERATION_CONFIG_NAME, {})

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """What tokenizer_config.json says; empty where there is none."""
        return self._configuration.get(TOKENIZER_CONFIG_NAME, {})

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens at which generation_config.json stops, in its order."""
        named = self.generation_config.get("eos_token_id")
        values = named if isinstance(named, list) else [named]
        return tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))

    @property
    def chat_settings(self) -> ChatSettings:
        """What a recipe says, or said when the model was trained, of its chat format.

        Raises:
            EnvironmentProblem: if the file that holds it is damaged.
        """
        if self.chat is not None:
            return self.chat
        try:
            return ChatSettings.model_validate(self._configuration.get(CHAT_NAME, {}))
        except ValueError as error:
            raise EnvironmentProblem(f"{self.path / CHAT_NAME}: {error}", hint="Make the model again.") from error

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """Tokens that align added to an input model and that no training has seen."""
        return () if self.chat is None else tuple(self.chat.add_tokens or ())

    @property
    def adapter_config(self) -> dict[str, Any]:
        """What PEFT's adapter_config.json says; empty for a whole model."""
        return self._configuration.get(ADAPTER_CONFIG_NAME, {})

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter, which needs its base model."""
        return (self.path / ADAPTER_CONFIG_NAME).exists()

    @property
    def has_mxfp4(self) -> bool:
        """Whether its experts are stored in MXFP4, which transformers turns into bfloat16 as it reads them, and vLLM does not."""
        found = self.config.get("quantization_config")
        return isinstance(found, dict) and found.get("quant_method") == MXFP4

    @property
    def trained_token_ids(self) -> dict[str, list[int]]:
        """Tokens whose rows an adapter replaces, by the name of the table's layer: those that its base never trained."""
        return dict(self.adapter_config.get("trainable_token_indices") or {})

    @cached_property
    def _record(self) -> BaseRecord | None:
        return read_record(self.check().path) if self.is_adapter else None

    @property
    def peft(self) -> Lora | VirtualTokens | None:
        """The settings that an adapter was trained with; None for a whole model."""
        return None if self._record is None else self._record.peft

    @cached_property
    def base(self) -> ModelFolder:
        """The folder with the weights of a whole model: the base model of an adapter, otherwise this one.

        Raises:
            EnvironmentProblem: if the base model is gone or is not the one that the adapter was trained on.
        """
        return self if self._record is None else ModelFolder(find_base(self.path, self._record))

    @property
    def encoder_decoder(self) -> str | None:
        """The architecture of an encoder–decoder model; None for a decoder."""
        return encoder_decoder_architecture(self.config)

    @property
    def is_reward_model(self) -> bool:
        """Whether its head gives a score."""
        if self.is_adapter:  # config.json is the base's
            return self.adapter_config.get("task_type") == "SEQ_CLS"
        return any(str(name).endswith("ForSequenceClassification") for name in self.config.get("architectures") or [])

    @property
    def can_score(self) -> bool:
        """Whether it can be a reward model: its configuration says so, or its weights have a score head."""
        if self.is_reward_model or self.is_adapter or self.is_configuration_alone:
            return self.is_reward_model
        return any(tensor.endswith("score.weight") for tensor in self.tensor_shapes)

    @property
    def stored_dtype(self) -> str:
        """The dtype that config.json names; float32 where it names none."""
        name = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return str(name).removeprefix("torch.")

    def saved_dtype(self, choice: SaveDtype) -> str:
        """The dtype in which a model that is trained from this one is saved."""
        if choice != "auto":
            return choice
        # Not float16: what float32 can hold may be too large for it.
        return "bfloat16" if self.stored_dtype == "bfloat16" else "float32"

    @property
    def virtual_tokens(self) -> int:
        """How many trained vectors the model puts in front of every prompt."""
        return self.peft.num_virtual_tokens if isinstance(self.peft, VirtualTokens) else 0

    @property
    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What config.json says, and what it says of the language model where there are several modalities."""
        text_config = self.config.get("text_config")
        return self.config, text_config if isinstance(text_config, dict) else {}

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table: as config.json says, else by transformers' default for such a model."""
        values = (source.get("tie_word_embeddings") for source in self._settings)
        return next((value for value in values if isinstance(value, bool)), self.config.get("model_type") in TIED_BY_DEFAULT)

    @property
    def caps_scores(self) -> bool:
        """Whether attention caps its scores (Gemma 2), which only transformers' eager implementation computes."""
        return any(source.get("attn_logit_softcapping") for source in self._settings)

    @property
    def context_tokens(self) -> int:
        """How many tokens the model can see behind its virtual ones; NO_BOUND where its configuration sets no bound."""
        for source in self._settings:
            # GPT-2 uses the second name.
            for key in ("max_position_embeddings", "n_positions"):
                if isinstance(source.get(key), int):
                    return int(source[key]) - self.virtual_tokens
        return NO_BOUND

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a folder that passes `check`. Shared: only `load_format` sets its template and padding, always alike.

        Never goes to the network.
        """
        self.check()
        return load_tokenizer(self.path)

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor in the weight files of a whole model, by name; no weight is read.

        Without weights they are those of the model that config.json describes; that loads torch.
        """
        if self.is_configuration_alone:
            return shapes_by_config(self.path, scores=self.is_reward_model)
        return tensor_shapes(self.path)

    @property
    def is_configuration_alone(self) -> bool:
        """Whether there are no weights: such a folder can be planned with, and nothing else."""
        return is_configuration_alone(self.path)


def refuse_encoder_decoder(stage_type: str, model: Artifact, folder: ModelFolder) -> None:
    """Refuse an encoder–decoder model where a stage is for decoder-only ones.

    A recipe that names such a folder was refused when it was read; the files of a model from a hub are seen only now.

    Raises:
        RecipeError: naming the model.
    """
    if architecture := folder.encoder_decoder:
        raise RecipeError(
            f"{stage_type}: " + encoder_decoder_refusal(f"{model.name} ({model.where(None)})", architecture, stage_type),
            hint="Name a decoder-only model.",
        )
