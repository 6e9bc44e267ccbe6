"""`align doctor`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align.cli import doctor


def test_json_names_every_check(align: Any) -> None:
    answer = align("doctor", "--json")
    report = json.loads(answer.out)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "torch", "transformers", "trl", "cores", "memory", "disk", "gpu"} <= names
    assert "pytest" not in names
    assert (answer.code == 0) == report["ok"]


def test_a_missing_package_is_exit_4_with_what_to_do(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "trl" else found(name))
    answer = align("doctor")
    assert answer.code == 4
    (line,) = [line for line in answer.out.splitlines() if line.startswith("trl")]
    assert "missing" in line
    assert "pip install 'trl==" in line


def test_another_version_is_told_but_is_no_failure(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "0.0.1" if name == "trl" else "9999" if name == "vllm" else "1")
    checks = {check.name: check for check in doctor.check_packages()}
    assert checks["trl"].state == "differs"
    assert checks["vllm"].found == "9999"
    assert align("doctor").code == 0


def test_a_build_label_is_the_same_version() -> None:
    assert doctor._compared("torch", "2.13.0+cpu", "==2.13.0", "").state == "ok"
