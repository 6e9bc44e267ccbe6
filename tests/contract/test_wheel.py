"""What a wheel holds is enough to plan a recipe by its name, in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("recipes", "data_schemas")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel, as pip unpacks them."""
    place = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools writes beside its sources.
    source, ignored = place / "source", shutil.ignore_patterns("__pycache__")
    for name in ("align", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(place)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(place / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(place / "site")
    return place / "site"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_it_holds_every_file_of_the_package_and_each_once(installed: Path) -> None:
    for name in LINKED:
        assert files_in(installed / "align" / name) == files_in(ROOT / name)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "align").rglob("*.py")}
    assert modules <= files_in(installed)
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"align"}


def test_a_recipe_is_planned_by_its_name(installed: Path, tmp_path: Path) -> None:
    def align(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "80"}
        command = [sys.executable, "-m", "align.cli.main", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert align("schema", "recipe", "--path").startswith(str(installed))
    assert "\nquickstart " in align("recipes", "list")
    assert "reward_model" in align("plan", "quickstart")
