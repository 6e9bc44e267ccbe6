"""The public names of Python: they are those of the list, documented, and the blocks of docs/python.md run."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import pytest

import align

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
NAMES = [
    *("AlignError", "DataError", "EnvironmentProblem", "Interrupted", "RecipeError", "Run", "Stage", "StageError", "Table"),
    *("__version__", "build_results", "load_recipe", "load_run", "plan", "run_recipe"),
]
RUN = {
    *(
        "candidates",
        "comparisons",
        "drops",
        "folder",
        "is_finished",
        "load_model",
        "load_tokenizer",
        "metrics",
        "model",
        "name",
        "pairs",
    ),
    *("recipe", "report", "results", "rows", "stages", "table"),
}


def test_the_public_names_are_these() -> None:
    assert align.__all__ == NAMES
    assert set(NAMES) <= set(dir(align))
    assert {name for name in dir(align.Run(Path())) if not name.startswith("_")} == RUN
    assert {name for name in vars(align.Table) if not name.startswith("_")} == {
        *("columns", "of", "read", "to_arrow", "to_list", "to_pandas")
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_every_public_name_says_what_it_does(name: str) -> None:
    thing = getattr(align, name)
    assert inspect.getdoc(thing)
    members = vars(thing).items() if inspect.isclass(thing) else ()
    for member, value in members:
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_the_blocks_of_the_page_run(
    project: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What the page would make in a minute is there already.
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    text = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    names: dict[str, object] = {}
    exec(compile(text, str(PAGE), "exec"), names)
    output = capsys.readouterr().out
    assert output.count("['dpo', 'compare']") == 2
    assert "True done" in output
    assert "stages.dpo.bta: unknown key; did you mean 'beta'?" in output
    assert str(names["best"]) in output
    assert list(names["frame"]["model"]) == ["sft", "rs", "dpo"]  # type: ignore[index]
