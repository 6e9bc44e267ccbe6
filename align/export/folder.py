"""Write a model as a Hugging Face folder: whole weights, tokenizer, template, generation settings and a card.

<parent>/.<name>.<random>.export     being written, locked by its writer
<parent>/<name>                      appears whole, after the check, by one rename
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.config.architecture import CONFIG_NAME
from align.config.sections import Sampling
from align.data.template import ChatFormat
from align.errors import RecipeError
from align.export.card import CARD_NAME, render_card
from align.export.check import CheckReport, check_language_model, check_reward_model
from align.export.lineage import Comparison, comparisons_with, prompts_of, trace
from align.export.source import ModelSource
from align.models.chat_format import Tokens, load_tokens
from align.models.files import GENERATION_CONFIG_NAME, TOKENIZER_CONFIG_NAME
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model
from align.models.save import save_model
from align.store.atomic import fsync_folder, sync_tree, write_bytes, write_json
from align.system_errors import disk_full, explained, writing_to

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ExportDtype = Literal["float32", "bfloat16"]
STAGING_SUFFIX = ".export"
MACHINE_KEYS = ("is_local", "local_files_only")
"""What transformers writes into tokenizer_config.json about how it was loaded here, which is no property of the tokenizer."""


@dataclass(frozen=True)
class ExportResult:
    """What was written, and what the check found."""

    folder: Path
    dtype: str
    weights_bytes: int
    checks: list[CheckReport]

    def to_json(self) -> dict[str, Any]:
        checks = [check.to_json() for check in self.checks]
        return {"folder": str(self.folder), "dtype": self.dtype, "weights_bytes": self.weights_bytes, "checks": checks}


def export_model(
    source: ModelSource,
    target: Path,
    *,
    dtype: ExportDtype | None = None,
    check: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> ExportResult:
    """Export a model to `target`. The folder appears only once it is whole and, with `check`, compared with the source.

    Args:
        target: a folder that does not exist or is empty.
        dtype: of the weights; default: the model's own.
        check: load what was written and compare its answers (a reward model: its scores) with the source's.
        note: called with a line about each step.
    Raises:
        RecipeError: if `target` is not free, or the source cannot be exported.
        StageError: if the check finds a difference; nothing is left at `target`.
        EnvironmentProblem: if there is no room, or the operating system refuses to write there.
    """
    _refuse_target(source, target)
    source.require_mergeable("export")
    steps = [] if source.artifact is None else trace(source.artifact)
    comparisons = comparisons_with(source)
    with _staging(target) as folder:
        note("writing the weights")
        written = write_model(source, folder, dtype=dtype, sampling=_measured_sampling(comparisons))
        checks, exported = [], ModelFolder(folder)
        if check and source.purpose == "reward":
            checks = [check_reward_model(source.folder, exported, dtype=written, note=note)]
        elif check:
            prompts = prompts_of(source, steps, comparisons)
            checks = check_language_model(source.folder, exported, dtype=written, prompts=prompts, note=note)
        card = render_card(source, steps, comparisons, dtype=written, checks=checks)
        # Texts of the card may hold half of a surrogate pair, which UTF-8 cannot write.
        write_bytes(folder / CARD_NAME, card.encode("utf-8", errors="replace"))
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        _publish(folder, target)
    return ExportResult(target, written, weights, checks)


def write_model(source: ModelSource, folder: Path, *, dtype: ExportDtype | None = None, sampling: Sampling | None = None) -> str:
    """Write the model, an adapter merged into its base, to `folder`, without check and card.

    Args:
        folder: exists already.
        dtype: as for `export_model`.
        sampling: settings for generation_config.json; default: the model's own, and align's where it has none.
    Returns:
        The name of the dtype that was written.
    """
    chosen = dtype or source.folder.stored_dtype
    load = load_reward_model if source.purpose == "reward" else load_causal_lm
    model = load(source.folder, dtype=chosen)
    tokens = load_tokens(source.folder)
    _check_room(model, folder)
    model.config.use_cache = True  # training switches it off
    with explained(folder):
        save_model(model, tokens, folder)
    for weights in folder.glob("*.safetensors"):  # safetensors keeps them to this user
        weights.chmod((folder / CONFIG_NAME).stat().st_mode)
    _remove_machine_keys(folder / TOKENIZER_CONFIG_NAME)
    if source.purpose == "language":
        _write_generation_config(folder, tokens, sampling)
    return chosen


def _refuse_target(source: ModelSource, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(f"--to {target}: exists and is not an empty folder", hint="Give a folder that does not exist yet.")
    place = target.resolve()
    own = source.folder.path if source.artifact is None else source.artifact.path
    if place.is_relative_to(own.resolve()):
        raise RecipeError(f"--to {target}: inside the model that is exported", hint="Give a folder elsewhere.")


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside the target, removed after the block unless it was renamed. Removes those of killed exports, too."""
    parent = target.absolute().parent
    with writing_to(parent, hint="Choose another place with --to."):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f".{target.name}.*{STAGING_SUFFIX}"):
            # Another export to the same target may be running; its lock shows that its folder is in use.
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        folder = parent / f".{target.name}.{secrets.token_hex(4)}{STAGING_SUFFIX}"
        folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the operating system frees it when this process dies, however it dies
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _publish(folder: Path, target: Path) -> None:
    # Before the rename: a folder that has its final name must be whole, also after a power cut.
    sync_tree(folder)
    try:
        os.rename(folder, target)  # an empty folder is replaced, anything else is refused
    except OSError as error:
        raise RecipeError(
            f"--to {target}: something else was written there meanwhile ({error.strerror})", hint="Export to another folder."
        ) from error
    fsync_folder(target.absolute().parent)


def _check_room(model: PreTrainedModel, folder: Path) -> None:
    # Checked before: writing would fill the disk first and fail then.
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    if needed > shutil.disk_usage(folder).free:
        raise disk_full(folder.parent, needed)


def _remove_machine_keys(path: Path) -> None:
    if path.exists():
        content = json.loads(path.read_bytes())
        write_json(path, {key: value for key, value in content.items() if key not in MACHINE_KEYS})


def _measured_sampling(comparisons: list[Comparison]) -> Sampling | None:
    """How completions were sampled in the comparison, so that what is used is what was measured."""
    if not comparisons:
        return None
    config = comparisons[-1].manifest.config
    return Sampling(temperature=config["temperature"], top_p=config["top_p"], top_k=config["top_k"])


def _write_generation_config(folder: Path, tokens: Tokens, sampling: Sampling | None) -> None:
    """End-of-sequence and padding ids, and sampling defaults. No limit of length: vLLM would enforce it."""
    path = folder / GENERATION_CONFIG_NAME
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    # With a chat format, `save_format` has written both ids.
    if not isinstance(tokens, ChatFormat):
        own = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
        content = {**{name: token for name, token in own.items() if token is not None}, **content}
    if sampling is not None or "temperature" not in content:
        content.update(_sampling_fields(sampling or Sampling()))
    write_json(path, content)


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False}
    # 0 means "all" in transformers and in vLLM. It must be written: transformers' own default is 50.
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    return {"do_sample": True, **settings}
