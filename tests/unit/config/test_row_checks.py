"""One catalogue of what can be wrong with rows: recipes choose from it, the documentation is it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from align.config.inputs import DataInput
from align.config.row_checks import ROW_CHECKS, action_of

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ROW_CHECKS)
def test_the_documentation_has_every_check_as_it_is(name: str) -> None:
    check = ROW_CHECKS[name]
    default = check.default or "`on_invalid`"
    assert f"\n| `{name}` | {check.meaning} | {check.advice} | {default} | {', '.join(check.actions)} |\n" in PAGE


def test_what_is_done_comes_from_the_recipe_then_the_check_then_on_invalid() -> None:
    assert action_of("repeated_rows", {"repeated_rows": "drop"}, "error") == "drop"
    assert action_of("repeated_rows", {}, "error") == "keep"
    assert action_of("empty_prompt", {}, "drop") == "drop"
    assert action_of("damaged_file", {}, "drop") == "error"


@pytest.mark.parametrize(
    ("checks", "told"),
    [
        ({"repeated_row": "drop"}, "did you mean repeated_rows"),
        ({"not_json": "keep"}, "only error or drop"),
        ({"byte_order_mark": "drop"}, "only error or keep"),
        ({"special_tokens": "drop"}, "needs a model"),
        ({"repeated_rows": "ignore"}, "'error', 'drop' or 'keep'"),
    ],
)
def test_what_cannot_be_is_refused(checks: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataInput.model_validate({"kind": "prompts", "path": "x", "checks": checks})
    assert told in str(caught.value)
