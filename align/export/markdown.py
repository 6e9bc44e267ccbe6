"""What the cards of models and of data sets share: their templates' environment, and how steps and settings are written."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from ruamel.yaml import YAML

from align import templates
from align.config.base import execution_fields
from align.config.judge import Judge
from align.export.lineage import Step

NOT_SETTINGS = frozenset({"stage", "checkpoint_minutes", "checkpoint_steps", "num_workers", "shard_prompts", "batch_tokens"})
"""Fields that only say how the work was divided; they change no byte of the result."""
_FENCE = re.compile(r"^ *(`{3,})", re.MULTILINE)


def environment() -> Environment:
    """Templates beside this file. They write Markdown, so nothing is escaped by itself: see the filters."""
    made = templates.environment(Path(__file__).parent, autoescape=False)
    made.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    made.filters["place"] = place
    made.filters["fenced"] = fenced
    return made


def place(source: str | None) -> str:
    """The origin of something, without the folders of this machine: they mean nothing to the card's readers."""
    if source is None or not Path(source).is_absolute():
        return source or "–"
    return f"…/{Path(source).name}"


def fenced(text: str) -> str:
    """An untrusted text as a code block. The text cannot end the block, because the fence is longer than any in it."""
    longest = max((len(fence) for fence in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def settings_text(step: Step) -> str:
    """The configuration of a stage as YAML, without what changes no byte; with its seed and drops."""
    if step.manifest is None:
        return ""
    manifest = step.manifest
    config = {key: value for key, value in manifest.config.items() if key not in NOT_SETTINGS and key != "seed"}
    shown: dict[str, Any] = {"stage": manifest.stage, **_without_nulls(config), "seed": manifest.seed}
    if manifest.dropped:
        shown["dropped_rows"] = manifest.dropped
    return yaml_text(shown)


def _without_nulls(value: Any) -> Any:
    """Without fields that were not set, and without how the judge was called, such as the variable that holds its key."""
    if isinstance(value, dict):
        shown = {key: item for key, item in value.items() if item is not None and key not in execution_fields(Judge)}
        return {key: _without_nulls(item) for key, item in shown.items()}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def yaml_text(value: Mapping[str, Any]) -> str:
    """A mapping as YAML, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.allow_unicode = True
    # ruamel would fold long texts into several lines, which are hard to read in a card.
    writer.width = 4096
    writer.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    writer.dump(dict(value), stream)
    return stream.getvalue().rstrip("\n")
