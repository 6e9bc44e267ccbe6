"""Limits of prompts and completions against what a model can see, and against the first rows themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from align.config.learning_rates import DOUBTFUL_RATE, HIGHEST_RATE
from align.config.peft import VirtualTokens
from align.data.encoding import RowsRefused, encode_instructions, encode_preferences, encode_prompts
from align.data.template import ChatFormat
from align.engines.task import max_prompt_tokens_for
from align.errors import AlignError
from align.models.folder import NO_BOUND, ModelFolder
from align.pipeline.checks.finding import Action, Finding, dropped_rows
from align.records import place_of
from align.rows import INSTRUCTIONS, PREFERENCES, PROMPTS

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Reading:
    """A stage that reads rows with a model."""

    stage: str
    config: Any
    folder: ModelFolder
    """Of the input that the model is, or was made from."""

    @property
    def context(self) -> int:
        """Tokens of a row that the model can see, behind the virtual ones that the stage trains."""
        peft = getattr(self.config, "peft", None)
        return self.folder.context_tokens - (peft.num_virtual_tokens if isinstance(peft, VirtualTokens) else 0)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and completion together."""
        return min(getattr(self.config, "max_tokens", NO_BOUND), self.context)


def check_limits(reading: Reading, where: str) -> list[Finding]:
    """Whether the stage's limits leave room within what its model can see.

    Args:
        where: place of the stage in its recipe.
    """
    config, name, context = reading.config, reading.stage, reading.folder.context_tokens
    written = config.model_fields_set
    if hasattr(config, "max_completion_tokens") and hasattr(config, "max_prompt_tokens"):
        try:
            room = max_prompt_tokens_for(reading.folder, config)
        except AlignError as error:
            return [Finding(name, f"{where}: {error.message}", error.hint or "")]
        # A default that is larger than a small model's context is no mistake of the user's.
        if room < config.max_prompt_tokens and {"max_prompt_tokens", "max_completion_tokens"} & written:
            sizes = f"max_prompt_tokens {config.max_prompt_tokens:,} and max_completion_tokens {config.max_completion_tokens:,}"
            text = f"{sizes} are more than the {context:,} tokens that the model can see: prompts may have {room:,}"
            return [Finding(name, text, action="warn")]
    if "max_tokens" in written and config.max_tokens > context:
        text = f"max_tokens is {config.max_tokens:,}, but the model can see {context:,}, which is the limit of its rows"
        return [Finding(name, text, action="warn")]
    return []


def check_rate(stage: str, where: str, config: Any) -> list[Finding]:
    """A learning rate that fits no model. What is unusual for the method and the size, `unusual_rates` says."""
    rate = getattr(config, "learning_rate", None)
    # Virtual tokens are trained with rates of up to 30 (Lester et al. 2021).
    if rate is None or rate <= DOUBTFUL_RATE or isinstance(getattr(config, "peft", None), VirtualTokens):
        return []
    action: Action = "refuse" if rate > HIGHEST_RATE else "warn"
    advice = f"The default of this stage is {type(config).model_fields['learning_rate'].default:g}."
    return [Finding(stage, f"{where}.learning_rate: {rate:g} is so high that training diverges", advice, action)]


@dataclass(frozen=True)
class Rows:
    """First rows that a stage reads."""

    kind: str
    records: Sequence[Any]
    source: str
    """Name of the file."""
    is_whole: bool
    """Whether there are no further rows."""
    keeps_all: bool
    """Whether the stage will get all of these."""


def check_fit(
    reading: Reading, where: str, rows: Rows, chat_format: ChatFormat, again: Callable[[], ChatFormat] | None
) -> list[Finding]:
    """Whether the first rows can be rendered for the model, and fit the stage's limits.

    Args:
        where: place of the stage in its recipe.
        again: another format that has the last word, unless rows are merely too long: tokens are the same. None: there is none.
    """
    error = _refusal(reading, rows, chat_format)
    if error is not None and again is not None and not _too_long(error):
        error = _refusal(reading, rows, again())
    if error is None:
        return []
    if not isinstance(error, RowsRefused):
        return [Finding(reading.stage, f"{where}: {error.message}", error.hint or "")]
    _, *lines = error.message.splitlines()
    drops = getattr(reading.config, "on_invalid", "error") == "drop"
    if drops and len(lines) < len(rows.records):
        reasons = dict(Counter(drop.drop_reason for drop in error.drops).most_common())
        looked_at, advice = len(rows.records), "Raise the limit, or shorten the rows."
        return [dropped_rows(reading.stage, where, looked_at, reasons, advice, is_whole=rows.is_whole, source=rows.source)]
    action: Action = "warn" if (drops and not rows.is_whole) or not rows.keeps_all else "refuse"
    count = f"{len(rows.records):,}" if rows.is_whole else f"the first {len(rows.records):,}"
    headline = f"{where}: {len(lines):,} of {count} rows of {rows.source} cannot be used"
    more = [f"… and {len(lines) - SHOWN_ROWS:,} more"] if len(lines) > SHOWN_ROWS else []
    return [Finding(reading.stage, "\n".join([headline, *lines[:SHOWN_ROWS], *more]), error.hint or "", action, "data")]


def _refusal(reading: Reading, rows: Rows, chat_format: ChatFormat) -> AlignError | None:
    try:
        _encode(reading, chat_format, rows)
    except AlignError as error:
        return error
    return None


def _too_long(error: AlignError) -> bool:
    return isinstance(error, RowsRefused) and {drop.drop_reason for drop in error.drops} == {"too_long"}


def _encode(reading: Reading, chat_format: ChatFormat, rows: Rows) -> None:
    """As the stage does when it starts.

    Raises:
        RowsRefused: naming each row that cannot be used.
    """

    def where(line: int | None) -> str:
        return rows.source if line is None else place_of(rows.source, line)

    config, folder, records = reading.config, reading.folder, rows.records
    if rows.kind == INSTRUCTIONS.name:
        encode_instructions(
            records,
            chat_format,
            max_tokens=getattr(config, "max_tokens", NO_BOUND) if folder.encoder_decoder else reading.max_tokens,
            max_side_tokens=folder.context_tokens if folder.encoder_decoder else None,
            every_turn=getattr(config, "train_on", "last") == "all",
            on_invalid="error",
            where=where,
        )
    elif rows.kind == PREFERENCES.name:
        encode_preferences(records, chat_format, max_tokens=reading.max_tokens, on_invalid="error", where=where)
    elif rows.kind == PROMPTS.name:
        limit = max_prompt_tokens_for(folder, config)
        encode_prompts(records, chat_format, max_prompt_tokens=limit, on_invalid="error", where=where)
