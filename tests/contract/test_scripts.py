"""Every script starts: its imports resolve and its options parse. No other test runs most of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `trl_ppo.py` runs in an environment of its own: the installed TRL has no PPO.
SCRIPTS = sorted({*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/benchmarks/*.py")} - {ROOT / "scripts/benchmarks/trl_ppo.py"})


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    module = load(path, monkeypatch)
    if "ArgumentParser" in path.read_text(encoding="utf-8"):
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == 0
        assert "usage:" in capsys.readouterr().out


def test_the_validation_benchmark_measures_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load(ROOT / "scripts/benchmarks/validation.py", monkeypatch)
    path = tmp_path / "pairs.jsonl"
    benchmark.write_pairs(path, 2000)
    measured = benchmark.measure(path)
    assert (measured["rows"], measured["repeated_rows_found"]) == (2000, 2)
