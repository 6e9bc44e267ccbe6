"""The numbers of a first recipe: what follows from the model's size, the rows' lengths and the machine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.config.learning_rates import SMALL_PARAMETERS, TOY_PARAMETERS, usual_rates
from align.config.peft import Lora
from align.errors import RecipeError
from align.models.files import TOKENIZER_NAME
from align.models.shape import ModelShape
from align.pipeline.estimate.fit import fit_stage
from align.pipeline.estimate.lengths import MESSAGE_TOKENS, measured_lengths
from align.pipeline.estimate.loaded_model import Peft
from align.pipeline.estimate.machine import Machine, read_machine
from align.pipeline.estimate.memory import method_name
from align.pipeline.estimate.plan import METHODS
from align.pipeline.estimate.table import count_text, size_text
from align.pipeline.starter.choices import ONLINE
from align.pipeline.starter.data import FoundData
from align.pipeline.starter.layout import Layout, Part
from align.pipeline.starter.model import FoundModel
from align.stages.registry import STAGES
from align.training.needs import RowLength, Trains

THIS_MACHINE = "auto"
CPU = "cpu"
GPU_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?", re.IGNORECASE)
USED_SHARE = 0.9
"""Of the memory: an estimate is no measurement."""
TOY_RATES = {"sft": 1e-3, "reward_model": 5e-4, "dpo": 2e-4, "orpo": 5e-4, "kto": 2e-4, "grpo": 3e-4, "rloo": 3e-4}
"""Those of recipes/quickstart, and of its kind of model; nothing is published for models this small."""
MAX_TOKENS = 4096
MIN_TOKENS = 64
UNKNOWN_TOKENS = 1024
ANSWER_TOKENS = 256
WORKED_ANSWER_TOKENS = 1024
"""Where a rule checks the answer: room to work it out, for models large enough to do so."""
BYTES_PER_TOKEN = 3
"""Of UTF-8, where no tokenizer is here: about what today's vocabularies need for a token, in English and in Korean."""
SMALL_DATA = 2_000
"""Rows below which one pass teaches little."""
STEPS = 50
"""Optimizer steps in a pass that batches are to leave; more rows in a batch would mean too few updates."""


class Choice(NamedTuple):
    """How the stages train, and why."""

    peft: Peft
    reason: str


def parse_machine(text: str, folder: Path) -> Machine:
    """The machine that --machine names.

    Args:
        text: auto, cpu, or the memory of a GPU in GiB, such as 24 or 24GB.
    Raises:
        RecipeError: if it is none of these.
    """
    here = read_machine(folder)
    if text == THIS_MACHINE or (text == CPU and here.device == "cpu"):
        return here
    if text == CPU:
        raise RecipeError(
            "--machine cpu: there is a GPU here, and stages would use it", hint="Hide it with CUDA_VISIBLE_DEVICES= (empty)."
        )
    found = GPU_MEMORY.fullmatch(text.strip())
    if found is None or not 1 <= float(found[1]) <= 4096:
        raise RecipeError(
            f"--machine {text}: expected auto, cpu, or the memory of a GPU in GiB", hint="For example: --machine 24"
        )
    size = int(float(found[1]) * (1 << 30))
    return Machine("cuda", "a GPU", size, size, here.free_disk_bytes, has_bfloat16=True)


def machine_text(machine: Machine) -> str:
    """`CPU, 62 GiB of memory` or `NVIDIA H100, 79 GiB`."""
    size = size_text(machine.total_bytes)
    return f"CPU, {size} of memory" if machine.device == "cpu" else f"{machine.name}, {size}"


def fill_in(layout: Layout, model: FoundModel, machine: Machine) -> Choice:
    """Give every stage its numbers, and choose how all that train do it."""
    lengths = {id(part): _lengths(part.rows, model) for part in layout.stages.values() if part.rows is not None}
    is_toy = model.shape is not None and model.shape.parameters < TOY_PARAMETERS
    answer_tokens = WORKED_ANSWER_TOKENS if layout.has_rule and not is_toy else ANSWER_TOKENS
    for part in layout.stages.values():
        _limits(part, lengths.get(id(part)), model, answer_tokens)
    choice = _choose(layout, {key: rows for key, rows in lengths.items() if model.folder is not None}, model.shape, machine)
    for part in layout.stages.values():
        if part.fields["stage"] in ONLINE:
            _practise(part, model.shape, choice)
        elif _trains(part):
            _train(part, lengths.get(id(part)), model.shape, choice)
    return choice


def _trains(part: Part) -> bool:
    return part.fields["stage"] in TOY_RATES


def _lengths(rows: FoundData, model: FoundModel) -> list[RowLength]:
    """Tokens of the first rows, by the model's tokenizer; without one, by their bytes."""
    tokenizer = None if model.folder is None else model.folder / TOKENIZER_NAME
    if tokenizer is not None and tokenizer.is_file():
        return measured_lengths(rows.kind, rows.sample, tokenizer)
    return [
        RowLength(
            sum(_tokens(message.text) for message in rows.kind.messages(record)),
            tuple(_tokens(text) for text in rows.kind.completions_of(record).values()),
        )
        for record in rows.sample
    ]


def _tokens(text: str) -> int:
    return MESSAGE_TOKENS + len(text.encode()) // BYTES_PER_TOKEN


def _limits(part: Part, lengths: Sequence[RowLength] | None, model: FoundModel, unknown_answer: int) -> None:
    """The limits of prompts and answers, in tokens; `unknown_answer`: that of answers of which there are no examples."""
    context = model.context_tokens or UNKNOWN_TOKENS * 4
    longest = max((row.longer_side for row in lengths or ()), default=UNKNOWN_TOKENS)
    if _trains(part) and part.fields["stage"] not in ONLINE:
        part.fields["max_tokens"] = limit = min(_rounded(longest), context)
        where = f"the longest of the first rows has about {longest:,}" if lengths else "what is sampled is shorter"
        part.remarks["max_tokens"] = where if longest <= limit else f"{where}; longer rows are left out"
        part.fields["on_invalid"] = "drop"
        part.remarks["on_invalid"] = "leave longer rows out instead of stopping"
    elif part.fields["stage"] in ("generate", "compare", *ONLINE):
        answer = max((max(row.completions, default=0) for row in lengths or ()), default=0)
        answer_tokens = min(_rounded(answer) if answer else unknown_answer, context // 2)
        if part.fields["stage"] == "generate":
            part.fields["num_candidates"] = 8
        part.fields["max_completion_tokens"] = answer_tokens
        cut = "longer answers are cut" + (", and nothing is learned from them" if part.fields["stage"] in ONLINE else "")
        part.remarks["max_completion_tokens"] = cut
        prompt = max((row.prompt for row in lengths or ()), default=UNKNOWN_TOKENS)
        part.fields["max_prompt_tokens"] = min(_rounded(prompt), context - answer_tokens)
        part.fields["on_invalid"] = "drop"
        part.remarks["on_invalid"] = "leave longer prompts out instead of stopping"


def _rounded(tokens: int) -> int:
    """The next power of two, with a tenth to spare, as only the first rows were measured."""
    return min(max(MIN_TOKENS, 1 << math.ceil(math.log2(max(1.1 * tokens, 1)))), MAX_TOKENS)


def _choose(layout: Layout, lengths: dict[int, list[RowLength]], shape: ModelShape | None, machine: Machine) -> Choice:
    """Full fine-tuning where it fits, else LoRA, else QLoRA."""
    lora = Lora(method="lora")
    parts = [part for part in layout.stages.values() if _trains(part)]
    if not parts:
        return Choice(None, "")
    if shape is None:
        return Choice(lora, "the model's size is not known here, and LoRA needs little memory at any size")
    room = USED_SHARE * machine.free_bytes
    needed: dict[str, int] = {}
    for peft in METHODS if machine.device == "cuda" else METHODS[:2]:  # QLoRA is slow on a CPU
        name = method_name(peft)
        needed[name] = max(_peaks(parts, peft, lengths, shape, machine))
        if needed[name] <= room:
            return Choice(peft, _why(needed, machine))
    return Choice(peft, f"may not fit: it needs about {size_text(needed[name])} of {size_text(machine.free_bytes)}")


def _why(needed: dict[str, int], machine: Machine) -> str:
    """`full needs about 95 GiB of 24 GiB; lora 19 GiB`."""
    (first, peak), *others = needed.items()
    rest = "".join(f"; {name} {size_text(size)}" for name, size in others)
    return f"{first} needs about {size_text(peak)} of {size_text(machine.free_bytes)}{rest}"


def _peaks(
    parts: Sequence[Part], peft: Peft, lengths: dict[int, list[RowLength]], shape: ModelShape, machine: Machine
) -> Iterator[int]:
    for part in parts:
        fields = {key: value for key, value in part.fields.items() if key != "stage"}
        batch = {} if part.fields["stage"] in ONLINE else _batch(part, lengths.get(id(part)))
        config: Any = STAGES[part.fields["stage"]].config_type.model_validate({**fields, **batch})
        assert isinstance(config, Trains)
        shapes = dict.fromkeys(config.training_needs().models, shape)  # all start from the one model
        yield fit_stage(config, peft, shapes, lengths.get(id(part)), machine).memory.peak


def _practise(part: Part, shape: ModelShape | None, choice: Choice) -> None:
    """Learning rate, completions and adapter of a method that samples while it learns."""
    limits = {key: part.fields.pop(key) for key in ("max_completion_tokens", "max_prompt_tokens", "on_invalid")}
    _rate(part, shape, choice)
    defaults = STAGES[part.fields["stage"]].config_type.model_fields
    group, batch = defaults["group_size"].default, defaults["rollout_batch_size"].default
    prompts = part.row_count or SMALL_DATA
    part.fields["num_episodes"] = episodes = max(group * prompts, STEPS * batch)
    often = f", {episodes / (group * prompts):,.1f} times" if episodes > group * prompts else ""
    part.remarks["num_episodes"] = f"answers to learn from: {group} to each prompt{often}"
    part.fields |= limits
    _adapter(part, choice)


def _train(part: Part, lengths: Sequence[RowLength] | None, shape: ModelShape | None, choice: Choice) -> None:
    """Learning rate, passes, batch and adapter of a method that reads rows."""
    stage = str(part.fields["stage"])
    limits = {key: part.fields.pop(key) for key in ("max_tokens", "on_invalid")}
    _rate(part, shape, choice)
    rows = part.row_count or SMALL_DATA
    part.fields["num_epochs"] = 3 if rows < SMALL_DATA else 2 if stage == "sft" else 1
    part.fields |= {**_batch(part, lengths), **limits}
    _adapter(part, choice)


def _rate(part: Part, shape: ModelShape | None, choice: Choice) -> None:
    stage, adapter = str(part.fields["stage"]), choice.peft is not None
    usual = usual_rates(stage, shape.parameters if shape else 2 * SMALL_PARAMETERS, adapter=adapter)
    trained = "an adapter" if adapter else "all weights"
    if usual is None:
        part.fields["learning_rate"] = TOY_RATES[stage]
        part.remarks["learning_rate"] = (
            f"for a model below {count_text(TOY_PARAMETERS).strip()} parameters; larger ones need less"
        )
    else:
        part.fields["learning_rate"] = usual.start
        part.remarks["learning_rate"] = f"usual for {trained}: {usual}"


def _adapter(part: Part, choice: Choice) -> None:
    if choice.peft is not None:
        part.fields["peft"] = {"method": choice.peft.method}
        part.remarks["peft"] = choice.reason


def _batch(part: Part, lengths: Sequence[RowLength] | None) -> dict[str, int]:
    """Rows per optimizer step: up to 64 pairs or 16 packed rows, and fewer where a pass would have too few steps."""
    rows, largest = float(part.row_count or SMALL_DATA), 64
    if part.fields["stage"] == "sft":
        # Several samples share a row.
        mean = sum(row.longer_side for row in lengths or ()) / len(lengths) if lengths else UNKNOWN_TOKENS
        rows, largest = rows * mean / part.fields.get("max_tokens", UNKNOWN_TOKENS), 16
    return {"batch_size": next((size for size in (64, 32, 16, 8) if size <= largest and rows >= STEPS * size), 8)}
