"""report.html: the whole comparison in one file that opens from disk, without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from align import templates
from align.metric import duration_text, metric_of
from align.report import caution, cost, plots, table, verdict, view, wording
from align.report.answers import align_answers
from align.report.curves import training_curves
from align.report.fields import MIN_PROMPTS, breakdown, prompt_fields
from align.report.figure import marker_path
from align.report.results import Answers, Results
from align.report.style import row_styles
from align.report.trials import trial_plots
from align.report.viewer import to_json, viewer_data
from align.store.artifact import Artifact
from align.store.atomic import write_bytes
from align.visible import visible

TEMPLATE_NAME = "report.html.jinja"
SCRIPT_NAME = "viewer.js.jinja"

Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def write_report(
    path: Path,
    *,
    results: Results,
    answers: Answers,
    curves: Curves,
    stages: Sequence[Artifact],
    recipe: Mapping[str, Any],
    columns: Mapping[str, Mapping[str, str]] | None = None,
    primary_scorer: str | None = None,
    generated: str | None = None,
) -> None:
    """Write report.html, atomically. The same arguments give the same bytes: the page holds no time but `generated`.

    Args:
        results: the numbers, made from the same answers.
        answers: model → its scored candidates. Their texts come from models and prompts and are escaped.
        curves: stage → the log of its trainer, dicts with `step` and any metrics.
        stages: everything that the compared models were made from, in the order of the recipe.
        recipe: the resolved recipe.
        columns: prompt id → other columns of the prompts' file, by which results are reported.
        primary_scorer: whose best answer is highlighted for each prompt; the first scorer when not given.
        generated: when the report was made, in words; left out when not given.
    """
    joined = align_answers(answers)
    primary = primary_scorer or results.scorers[0]
    drawings = [
        *plots.score_scatters(results, joined),
        *plots.cost_frontiers(results),
        *trial_plots(results, stages),
        *plots.frontiers(results),
        *plots.score_histograms(results, joined),
        plots.length_histogram(results, joined),
    ]
    selected = {stage.name: stage.manifest.metrics.get("selected_epoch") for stage in stages}
    drawn_curves = {stage: training_curves(stage, curve, selected_epoch=selected.get(stage)) for stage, curve in curves.items()}
    environment = page_environment()
    fields = prompt_fields(joined, columns or {})
    groups = breakdown(results, joined, fields)
    stage_costs = cost.stage_costs(stages, joined.models)
    page = environment.get_template(TEMPLATE_NAME).render(
        results=results,
        wording=wording,
        verdict=verdict,
        caution=caution,
        table=table,
        scales={measure: view.scales(results, measure) for measure in results.measures},
        styles=row_styles(results),
        behaviour=[*table.behaviour_columns(results), *table.variety_columns(results)],
        plots=drawings,
        curves={stage: drawn for stage, drawn in drawn_curves.items() if drawn},
        stages=stages,
        flattened=view.flattened,
        metric_of=metric_of,
        duration_text=duration_text,
        metric_words=view.metric_words,
        common_versions=_common_versions(stages),
        prompts=view.prompt_views(results, joined),
        primary_scorer=primary,
        groups=groups,
        min_prompts=MIN_PROMPTS,
        stage_costs=stage_costs,
        costs={name: row.cost for name in results.models_baseline_first if (row := results.models[name]).cost},
        num_models=len(joined.models),
        viewer=viewer_data(results, joined, fields, groups, primary),
        script=_script(environment),
        script_hash=_hash(_script(environment)),
        score_text=view.score_text,
        command=shlex.join(results.command),
        recipe=json.dumps(recipe, ensure_ascii=False, indent=2),
        generated=generated,
    )  # fmt: skip
    write_bytes(path, page.encode("utf-8", errors="replace"))  # a model may produce half of a surrogate pair


def _common_versions(stages: Sequence[Artifact]) -> dict[str, str]:
    """The versions that all stages that name some have in common: the page shows them once."""
    named = [stage.manifest.versions for stage in stages if stage.manifest.versions]
    return {name: text for name, text in named[0].items() if all(other.get(name) == text for other in named)} if named else {}


def page_environment() -> Environment:
    """The Jinja environment of all pages: texts are escaped, and made visible; a missing name is an error."""
    environment = templates.environment(Path(__file__).parent, autoescape=True)
    # Of every expression's result. What is markup already was made of such results, or by the filters below.
    environment.finalize = lambda value: visible(value) if type(value) is str else value
    # Only drawings of `align.report.figure`, whose texts are escaped there, go through this.
    environment.filters["svg"] = lambda plot: Markup(plot.svg)
    environment.filters["typeset"] = _typeset
    environment.filters["lang"] = _lang
    environment.filters["json"] = to_json
    environment.filters["numbered"] = lambda names: list(enumerate(names))
    # Long names break at their underscores before they break anywhere else.
    environment.filters["breakable"] = lambda text: escape(visible(text)).replace("_", Markup("_<wbr>"))
    environment.globals["marker_path"] = marker_path
    return environment


def _script(environment: Environment) -> Markup:
    """The page's only script, which is a file of ours and not rendered: no text of a user is in it."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, SCRIPT_NAME)[0])


def _hash(script: str) -> str:
    """The script as the page's content security policy names it: a browser runs no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


_HANGUL, _KANA, _HAN = re.compile("[\uac00-\ud7a3\u1100-\u11ff]"), re.compile("[\u3040-\u30ff]"), re.compile("[\u4e00-\u9fff]")


def _lang(text: str) -> Markup:
    """A `lang` attribute for a text whose script says its language; the page's own is English."""
    for script, code in ((_HANGUL, "ko"), (_KANA, "ja"), (_HAN, "zh")):
        if script.search(text):
            return Markup(f' lang="{code}"')
    return Markup("")


def _typeset(text: str) -> str:
    """Real minus signs before digits, and no line break before a percent sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text).replace(" %", "\u00a0%")
