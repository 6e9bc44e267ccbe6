"""The site of the documentation is built without a warning, holds every page, and needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a browser loads by itself; links that a reader follows are not among it.
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)="(?:https?:)?//|@import|url\(["']?(?:https?:)?//""")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"-m sphinx (.*) build/docs", makefile)
    assert options is not None
    command = [sys.executable, "-m", "sphinx", *options[1].split(), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_page_and_every_linked_file_is_there(site: Path) -> None:
    for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/README.md"), ROOT / "README.md"]:
        assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file()
    assert "_downloads" not in {path.name for path in site.iterdir()}
    for page in site.glob("docs/*.html"):
        for target in re.findall(r'href="([^"#:?]+)[#"?]', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*") if path.suffix in {".html", ".css"}}
    assert [path.name for path, text in texts.items() if "source" not in path.parts and LOADED.search(text)] == []


def test_the_search_knows_english_and_korean_words(site: Path) -> None:
    index = (site / "searchindex.js").read_bytes().decode("unicode_escape")
    assert "bootstrap" in index
    assert "한국어" in index
