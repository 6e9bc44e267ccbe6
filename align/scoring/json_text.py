"""Checks JSON in a text against a JSON Schema, within limits of time and memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex

from align.strict import no_constant, unique_keys

MAX_CHARACTERS = 20_000
"""Longest JSON that is read: some checks compare all entries of a list with each other."""
PATTERN_TIMEOUT_S = 1.0
"""Seconds that one `pattern` of a schema may search one text."""

_FENCED = regex.compile(r"```[^\n`]*\n(.*?)```", regex.DOTALL)


def fits_schema(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether `text`, or the one fenced block in it, is JSON that fits `schema` (draft 2020-12).

    False as well for a key that occurs twice in an object, NaN and Infinity, and more than `MAX_CHARACTERS`.
    """
    blocks = _FENCED.findall(text)
    source = blocks[0] if len(blocks) == 1 else text
    if len(source) > MAX_CHARACTERS:
        return False
    try:
        value = json.loads(source, object_pairs_hook=unique_keys, parse_constant=no_constant)
        return bool(_validator(json.dumps(schema)).is_valid(value))
    except (ValueError, OverflowError, RecursionError, TimeoutError):
        return False


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, ValidationError, validators

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        # The package's own search has no limit of time.
        if isinstance(instance, str) and not regex.search(wanted, instance, timeout=PATTERN_TIMEOUT_S):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    return validators.extend(Draft202012Validator, {"pattern": pattern})(json.loads(schema))
