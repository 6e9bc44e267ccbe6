"""Turns a matplotlib figure into SVG for an HTML page.

Colours become CSS variables, so that one drawing serves light and dark mode. Users' texts (names of models and scorers) never
reach matplotlib, whose fonts lack Korean. It places short tokens, which are replaced by the real texts afterwards. The browser
draws those with its own fonts.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from align.visible import visible

NUM_MODEL_COLORS = 12

# Colours that stand for CSS variables; unlikely enough that nothing else in a drawing has them.
INK, MUTED, GRID, PANEL = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PANEL: "--panel"}
_VARIABLES |= {f"#0a0c{index:02x}": f"--model-{index}" for index in range(NUM_MODEL_COLORS)}

PAD_INCHES = 0.04
"""Around what is drawn."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", "*", ">", "p")


def model_color(index: int) -> str:
    """Stand-in of a model's colour, for matplotlib; the first is the baseline's."""
    return f"#0a0c{index % NUM_MODEL_COLORS:02x}"


def model_variable(index: int) -> str:
    """CSS variable of a model's colour, for HTML."""
    return f"--model-{index % NUM_MODEL_COLORS}"


def marker_path(marker: str) -> str:
    """A marker's outline as path data within -0.75 … 0.75, for the legends that the page draws."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    parts = []
    for points, code in path.iter_segments(simplify=False):
        flipped = np.reshape(points, (-1, 2)) * (1, -1)  # the y axis of a page points down
        parts.append(letters[code] + " ".join(f"{value:.3f}" for value in flipped.ravel()) if code in letters else "Z")
    return "".join(parts)


@dataclass(frozen=True)
class Series:
    """One entry of a legend that the page draws itself."""

    label: str
    variable: str
    """CSS variable of its colour."""
    dashed: bool = False
    marker: str | None = None
    """Its marker, one of `MARKERS`, where the drawing has markers."""
    hollow: bool = False
    """Whether the marker is an outline."""


@dataclass
class Plot:
    """A drawing. Within the block of `draw`, its axes can be drawn on, and its description and legend can grow."""

    title: str
    description: str
    """What it shows, in a sentence: the caption, and what a screen reader says."""
    axes: list[Axes] = field(default_factory=list)
    """From top to bottom; none once the block of `draw` ends."""
    legend: list[Series] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Users' texts in the drawing; `label` adds them."""
    svg: str = ""
    """Safe markup, an <svg> element; empty until the block of `draw` ends."""

    def label(self, text: str) -> str:
        """A short stand-in for `text`, which is put into the drawing after matplotlib is done with it."""
        self.texts.append(text)
        # The q ends the token: label001 would otherwise be found in label0010, too.
        return f"label{len(self.texts) - 1:03d}q"


@contextmanager
def draw(title: str, description: str, width: float, height: float, *, rows: int = 1, salt: str = "") -> Iterator[Plot]:
    """Makes a drawing of `width` × `height` inches with `rows` plots above each other that share the x axis.

    Args:
        salt: makes its ids different from other drawings' on a page, and the same in every run; default: the title.
    """
    settings: Any = {
        # Texts stay texts, so that `Labels` finds its tokens and the browser draws them with its own fonts.
        "svg.fonttype": "none",
        # Without it, matplotlib takes random ids and the page's bytes differ every time.
        "svg.hashsalt": salt or title,
        "font.family": ["DejaVu Sans"],  # ships with matplotlib; the page replaces it by its own fonts
        "font.size": 8.5,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "axes.formatter.useoffset": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "figure.facecolor": "none",
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update(settings)
        # Not pyplot, which keeps every figure open and may look for a window system.
        figure = Figure(figsize=(width, height), layout=_OneLook())
        canvas = FigureCanvasSVG(figure)
        plot = Plot(title, description, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]))
        yield plot
        plot.svg = _to_svg(canvas, plot)
        plot.axes = []  # they hold the whole figure, which a page of many drawings would keep in memory


class _OneLook(LayoutEngine):
    """Room for what stands around plots that lie above each other: labels of axes and ticks, measured once.

    matplotlib's constrained layout measures twice, which takes longer than the rest of a drawing, and a report has a hundred.
    """

    _adjust_compatible = True
    _colorbar_gridspec = False

    def execute(self, fig: Any) -> None:
        """Set the margins of a figure."""
        renderer = fig._get_renderer()
        width, height = fig.bbox.size
        pad = PAD_INCHES * fig.dpi
        left, right = 0.0, 0.0
        rows: dict[int, tuple[float, float]] = {}
        for axes in fig.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if not axis.get_label_text():  # else matplotlib measures all ticks again, to find a place for no label
                    axis.set_label_coords(0, 0)
            inside, around = axes.get_window_extent(renderer), axes.get_tightbbox(renderer, for_layout_only=True)
            left, right = max(left, inside.x0 - around.x0), max(right, around.x1 - inside.x1)
            row = axes.get_subplotspec().rowspan.start
            above, below = rows.get(row, (0.0, 0.0))  # two axes share a plot that has a scale on each side
            rows[row] = max(above, around.y1 - inside.y1), max(below, inside.y0 - around.y0)
        places = [rows[row] for row in sorted(rows)]
        top, bottom = places[0][0] + pad, places[-1][1] + pad
        gap = max([below + above + 2 * pad for (_, below), (above, _) in pairwise(places)], default=0.0)
        each = (height - top - bottom - gap * (len(places) - 1)) / len(places)
        fig.subplots_adjust(
            left=(left + pad) / width,
            right=1 - (right + pad) / width,
            top=1 - top / height,
            bottom=bottom / height,
            hspace=gap / each,
        )


def _to_svg(canvas: FigureCanvasSVG, plot: Plot) -> str:
    """The figure as an <svg> element: same bytes every time, no date, no links, no fonts, colours as CSS variables."""
    stream = io.StringIO()
    # `savefig` would draw everything twice, the first time for the layout, which this makes as well.
    canvas.print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    # An XML declaration and a doctype are not allowed inside HTML.
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib's style sheet would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # Ids such as `figure_1` and `axes_1` would occur once per drawing, and nothing refers to them.
    svg = re.sub(r'\sid="[A-Za-z]+[A-Za-z0-9]*(?:\.[a-z]+)?_\d+"', "", svg)
    svg = svg.replace("'DejaVu Sans'", "var(--sans, sans-serif)").replace("xlink:href", "href")
    svg = _compact(svg)
    # CSS variables change with light and dark mode; a colour in the SVG could not.
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    box = view_box.group(1) if view_box else ""
    head = (
        f'<svg viewBox="{box}" role="img" aria-label="{html.escape(visible(plot.description))}" style="stroke-linejoin: round">'
    )
    body = svg[svg.index(">") + 1 :]
    return head + re.sub(r"label(\d{3,})q", lambda match: html.escape(visible(plot.texts[int(match[1])])), body)


def _compact(svg: str) -> str:
    """The same drawing in fewer bytes, for a page that has a hundred of them."""
    svg = re.sub(r"\n\s*", "\n", svg)
    # A hundredth of a point cannot be seen.
    svg = re.sub(r' (?:d|x|y|transform)="[^"]+"', lambda attribute: re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]), svg)
    # What draws nothing: the grounds of the figure and its axes, and ticks without a mark.
    svg = re.sub(r'<path d="[^"]*" style="fill: none"/>\n|<g/>\n', "", svg)
    # The points of one row look alike: their style is written once.
    points = r'(?:<use [^>]*( style="[^"]*")/>\n)(?:<use [^>]*\1/>\n)+'
    return re.sub(points, lambda run: f"<g{run[1]}>\n{run[0].replace(run[1], '')}</g>\n", svg)


def evenly(indices: Any, count: int) -> Any:
    """At most `count` of the indices, evenly spaced, with the first and the last."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
