"""What a wheel holds is enough to plan a recipe by its name, in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from align_llm import find_clash, find_other

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("recipes", "data_schemas", "docs")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel, as pip unpacks them."""
    place = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools writes beside its sources.
    source, ignored = place / "source", shutil.ignore_patterns("__pycache__")
    for name in ("align", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "align_llm.py"):
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
        pages = {file for file in files_in(ROOT / name) if name != "docs" or file.endswith(".md")}
        assert files_in(installed / "align" / name) == pages
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "align").rglob("*.py")} - {"align/docs/conf.py"}
    assert modules <= files_in(installed)
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"align", "align_llm.py"}


def align(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script, with the files of the wheel and nothing else of ours."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "80"}
    command = [sys.executable, "-c", "import sys, align_llm; sys.exit(align_llm.main())", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_recipe_is_planned_by_its_name(installed: Path, tmp_path: Path) -> None:
    assert align(installed, tmp_path, "schema", "recipe", "--path").stdout.startswith(str(installed))
    assert "\nquickstart " in align(installed, tmp_path, "recipes", "list").stdout
    assert align(installed, tmp_path, "docs", "dpo").stdout == (ROOT / "docs" / "dpo.md").read_text(encoding="utf-8")
    planned = align(installed, tmp_path, "plan", "quickstart")
    assert "reward_model" in planned.stdout, planned.stderr


def test_the_other_project_of_the_name_is_refused(installed: Path, tmp_path: Path) -> None:
    site = Path(shutil.copytree(installed, tmp_path / "site"))
    other = site / "align-0.1.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: align\nVersion: 0.1.1\n")
    # Installed last, ours is what Python imports.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", "import align"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "ImportError: align 0.1.1 is installed as well as align-llm." in done.stderr
    assert done.stderr.splitlines()[-1].startswith("→ pip uninstall align, then pip install")
    (site / "align" / "__init__.py").write_text("import gensim_that_is_not_here\n")
    done = align(site, tmp_path, "--help")
    assert done.returncode == 4
    assert done.stderr.startswith("error: align 0.1.1 is installed as well as align-llm.")
    assert "→ pip uninstall align, then pip install --force-reinstall --no-deps align-llm" in done.stderr
    # pip removes its files, and with them the one that both have.
    shutil.rmtree(other)
    (site / "align" / "__init__.py").unlink()
    done = align(site, tmp_path, "--help")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        4,
        "error: files of align-llm are missing, such as align/__init__.py.",
    )


def test_an_installation_under_the_old_name_is_no_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "align-0.1.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: align\nVersion: 0.1.0\n")
    (old / "entry_points.txt").write_text("[console_scripts]\nalign = align.cli.main:main\n")
    monkeypatch.syspath_prepend(tmp_path)
    find_other.cache_clear()  # it looked when align was imported
    assert find_clash() is None
