"""How Sphinx makes the site of the Markdown pages: `make docs`.

The pages are those that GitHub shows, so nothing in them is Sphinx's own. The navigation is the list of links in index.md, and a
link to a file of the code leads to a page with that file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
SECTION = re.compile(r"^## (?P<caption>.+)\n(?P<body>(?:(?!## ).*\n?)*)", re.MULTILINE)
ENTRY = re.compile(r"\[(?P<title>[^\]]+)\]\((?P<page>[^)#:]+\.md)\)")
SOURCE_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name}</title>
<link rel="stylesheet" href="{static}/pygments.css"><link rel="stylesheet" href="{static}/source.css"></head>
<body data-theme="auto"><h1>{name}</h1>
{code}</body></html>
"""

project = "align"
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/*.md", "recipes/**/README.md", "data_schemas/*.md"]
exclude_patterns = [".*", "align", "build", "runs", "scripts", "tests"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "align"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["site/static"]
html_css_files = ["site.css"]
# A reader opens build/docs/index.html; the pages lie below, in the folders of their sources.
html_extra_path = ["site/index.html"]


def add_navigation(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Give the first page a table of contents for each section, made of the section's own links."""
    if docname != root_doc:
        return
    for section in SECTION.finditer(source[0]):
        pages = "\n".join(f"{entry['title']} </{_from_root(entry['page'])}>" for entry in ENTRY.finditer(section["body"]))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {section['caption']}\n\n{pages}\n```\n"


def _from_root(target: str) -> str:
    return str((ROOT / "docs" / target).resolve().relative_to(ROOT))


def link_source_files(app: Sphinx, document: nodes.document) -> None:
    """Make a link to a file of the repository one to its page, in place of a download."""
    files: set[str] = app.env.__dict__.setdefault("source_files", set())
    for link in list(document.findall(addnodes.download_reference)):
        target, _ = app.env.relfn2path(link["reftarget"])
        files.add(target)
        depth = app.env.docname.count("/")
        page = nodes.reference("", "", *link.children, refuri=f"{'../' * depth}source/{target}.html", internal=True)
        link.replace_self(page)


def write_source_pages(app: Sphinx, exception: Exception | None) -> None:
    """Write a plain page for each file that a page links to. Pages with the theme's navigation would take as long as all else."""
    if exception is not None:
        return
    formatter = HtmlFormatter(linenos="inline")
    for name in sorted(app.env.__dict__.get("source_files", ())):
        text = (ROOT / name).read_text(encoding="utf-8")
        try:
            lexer = get_lexer_for_filename(name)
        except ClassNotFound:
            lexer = TextLexer()
        page = app.outdir / "source" / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        static = "../" * (name.count("/") + 1) + "_static"
        page.write_text(SOURCE_PAGE.format(name=name, static=static, code=highlight(text, lexer, formatter)), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this: what is ours is one function for the navigation and two for the files of the code."""
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", link_source_files, priority=100)  # before what collects downloads
    app.connect("build-finished", write_source_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
