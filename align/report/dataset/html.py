"""The report on a data file as one page that opens from disk, without a network and without scripts."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup, escape

from align.report.dataset import view
from align.report.dataset.drawing import drawings
from align.report.dataset.facts import Facts
from align.report.dataset.finding import findings, share_text
from align.report.dataset.tokens import Piece, TrainingView
from align.report.html import page_environment
from align.store.atomic import write_bytes
from align.system_errors import writing_to
from align.visible import shortened, visible

TEMPLATE_NAME = "dataset.html.jinja"
EXAMPLE_CHARACTERS = 400
_SPACES = re.compile("([ \t\n\u00a0\u3000])")
_SPACE_CLASSES = {" ": "", "\t": ' class="t"', "\n": ' class="n"', "\u00a0": ' class="b"', "\u3000": ' class="b"'}


def write_page(path: Path, facts: Facts, training: TrainingView | None, *, command: str) -> None:
    """Write the page, atomically. The arguments are those of `render_page`.

    Raises:
        EnvironmentProblem: if it cannot be written there.
    """
    page = render_page(facts, training, command=command).encode("utf-8", errors="replace")
    with writing_to(path, hint="Name a file in a folder of yours."):
        write_bytes(path, page)


def render_page(facts: Facts, training: TrainingView | None, *, command: str) -> str:
    """The page as text. The same arguments give the same text: it holds no time.

    Args:
        facts: the numbers. Texts in them are untrusted and are escaped.
        training: renders the samples with their loss mask; None shows them by role.
        command: what was typed.
    """
    environment = page_environment()
    environment.filters["piece"] = _piece
    environment.filters["example"] = lambda text: shortened(text, EXAMPLE_CHARACTERS)
    environment.filters["share"] = share_text
    environment.filters["code"] = _code
    environment.filters["middle_left_out"] = view.middle_left_out
    environment.filters["length_text"] = view.length_text
    return environment.get_template(TEMPLATE_NAME).render(
        facts=facts,
        source=facts.source,
        findings=findings(facts),
        plots=drawings(facts),
        lengths=view.length_groups(facts),
        dropped=view.count_bars(facts.source.dropped, facts.source.rows_in),
        variety=view.variety_facts(facts),
        openings=view.opening_bars(facts),
        languages=view.language_bars(facts),
        signals=view.signal_bars(facts),
        preference=view.preference_facts(facts),
        measured_on=view.measured_on(facts),
        samples=view.sample_views(facts, training),
        command=command,
    )


def _code(text: str) -> Markup:
    """The text as HTML; parts between backticks become code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))


def _piece(piece: Piece) -> Markup:
    """A token as an element.

    Its white space gets elements of its own, on which the style sheet draws signs; the text stays as it is, to be copied.
    """
    classes = " ".join(name for name, given in (("s", piece.special), ("l", piece.trained)) if given)
    # A piece of zero tokens is the remark about hidden ones; its spaces belong to no token.
    texts = _SPACES.split(piece.text) if piece.tokens else [piece.text]
    inner = Markup("").join(
        Markup(f"<i{_SPACE_CLASSES[text]}>{text}</i>") if text in _SPACE_CLASSES else escape(visible(text)) for text in texts
    )
    return Markup('<span class="{}">{}</span>').format(classes, inner) if classes else Markup("<span>{}</span>").format(inner)
