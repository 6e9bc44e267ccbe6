"""`align doctor`."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from align.cli import doctor
from align.report.model.check import WHY
from align.testing.tiny import tiny_causal_lm


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Make packages have these versions; None: not be there."""
    found = metadata.version

    def version(name: str) -> str:
        wanted = versions[name] if name in versions else found(name)
        if wanted is None:
            raise metadata.PackageNotFoundError(name)
        return wanted

    monkeypatch.setattr(metadata, "version", version)


def test_json_names_every_check(align: Any) -> None:
    answer = align("doctor", "--json")
    report = json.loads(answer.out)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "torch", "transformers", "trl", "cores", "memory", "disk", "gpu"} <= names
    assert "pytest" not in names
    assert (answer.code == 0) == report["ok"]


def test_a_missing_package_is_exit_4_with_what_to_do(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, trl=None)
    answer = align("doctor")
    assert answer.code == 4
    (line,) = [line for line in answer.out.splitlines() if line.startswith("trl")]
    assert "missing" in line
    assert "pip install 'trl==" in line


def test_another_version_is_told_but_is_no_failure(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, trl="0.0.1", vllm="9999")
    checks = {check.name: check for check in doctor.check_packages()}
    assert checks["trl"].state == "differs"
    assert checks["vllm"].found == "9999"
    assert align("doctor").code == 0


def test_a_build_label_is_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    (wanted,) = [check.wanted for check in doctor.check_packages() if check.name == "torch"]
    installed(monkeypatch, torch=f"{wanted.removeprefix('==')}+cpu")
    assert {check.name: check.state for check in doctor.check_packages()}["torch"] == "ok"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("models") / "tiny")


class TestModel:
    def test_a_sound_model(self, align: Any, model: Path) -> None:
        answer = align("doctor", str(model), "--json")
        report = json.loads(answer.out)
        assert (answer.code, report["ok"], report["skipped"]) == (0, True, [])
        assert set(report["checks"][0]) == {"name", "state", "found", "why", "advice"}

    def test_a_problem_is_exit_2_and_comes_first(self, align: Any, model: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(model, tmp_path / "loud"))
        (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
        answer = align("doctor", str(folder))
        assert answer.code == 2
        assert answer.out.splitlines()[2].startswith("problem  template ")
        assert answer.err == ""

    def test_what_is_no_model_is_an_error(self, align: Any, tmp_path: Path) -> None:
        answer = align("doctor", str(tmp_path / "nothing"))
        assert (answer.code, answer.out) == (2, "")
        assert "there is no such folder" in answer.err

    def test_every_check_is_documented(self) -> None:
        page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
        assert [name for name in WHY if f"| `{name}` |" not in page] == []


def test_settings_of_a_base_model_can_be_tried_before_a_run(align: Any, tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    assert align("doctor", str(folder)).code == 2
    assert align("doctor", str(folder), "--chat", "{template: chatml}").code == 0
    settings = "{template: chatml, add_tokens: [<|x|>, <|im_start|>]}"
    report = json.loads(align("doctor", str(folder), "--chat", settings, "--json").out)
    (vocabulary,) = [check for check in report["checks"] if check["name"] == "vocabulary"]
    assert (report["ok"], vocabulary["found"].endswith("; a run adds <|x|>, with a row for each")) == (True, True)
    for wrong, said in (
        ("{template: none.jinja}", "there is no template or file 'none.jinja'"),
        ("{colour: 1}", "--chat {colour: 1}: colour: unknown key"),
        ("5", "--chat 5: expected a mapping"),
    ):
        answer = align("doctor", str(folder), "--chat", wrong)
        assert (answer.code, said in answer.err) == (2, True), answer.err
    assert "--chat needs MODEL" in align("doctor", "--chat", "{}").err
