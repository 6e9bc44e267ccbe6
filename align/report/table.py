"""The comparison as a table in the terminal: one row per model, never wider than the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from align.metric import duration_text
from align.report.results import ModelResult, Results
from align.report.verdict import conclusions
from align.report.wording import (
    BETTER,
    RED_FLAG,
    RED_FLAG_LEGEND,
    WORSE,
    disagreement_legend,
    estimate_text,
    interval_scope,
    marks_legend,
    most_trials,
    number,
    pass_legend,
    path_legend,
    percent_text,
    row_mark,
    sampling_text,
    score_decimals,
)

NOTHING = "–"
MODEL_MAX_WIDTH = 28
MANY_ROWS = 6
LENGTH_LEGEND = "LC: share of wins at equal length (length-controlled)."
STYLES = {BETTER: "bold green", WORSE: "bold red"}


@dataclass(frozen=True)
class Column:
    """A header and one cell per model, baseline first. A cell may have several lines."""

    header: str
    cells: list[Text]


def render_table(results: Results | Mapping[str, Any]) -> ComparisonTable:
    """The table of a comparison, for `rich.console.Console.print`.

    Args:
        results: `Results`, or a parsed results.json.
    """
    return ComparisonTable(results if isinstance(results, Results) else Results.from_json(results))


def render_tables(comparisons: Mapping[str, Results]) -> Group:
    """The tables of a run's comparisons, by stage; where there are several, each below the name of its stage."""
    parts: list[Text | ComparisonTable] = []
    for stage, results in comparisons.items():
        if len(comparisons) > 1:
            parts.append(Text.assemble(("\n" if parts else ""), (stage, "bold"), f": {sampling_text(results)}\n"))
        parts.append(ComparisonTable(results))
    return Group(*parts)


class ComparisonTable:
    """Renders at any width without losing a number.

    If all columns fit, there is one table. Otherwise each scorer's numbers are stacked in one column, and columns that still
    do not fit go into a further table below, with one row per model again.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        results = self.results
        behaviour = behaviour_columns(results)
        by_scorer = [_scorer_columns(results, measure) for measure in results.measures]
        side_by_side = [column for columns in by_scorer for column in columns]
        stacked = [_stacked_scorer_column(results, measure) for measure in results.measures]
        many = len(results.models) > MANY_ROWS and all(self._fits(columns, console, options) for columns in by_scorer)
        for columns in ([*side_by_side, *behaviour], *([] if many else [[*stacked, *_stacked_cost(behaviour)]])):
            if self._fits(columns, console, options):
                yield self._table(columns)
                break
        else:
            # A table that holds only some columns has either scores or behaviour, not both. With many rows, a table per scorer
            # with one line per row reads better than rows of four lines.
            fits = self._fits(side_by_side, console, options)
            groups = [side_by_side] if fits else by_scorer if many else [stacked]
            tables = [columns for group in (*groups, behaviour) for columns in self._split(group, console, options)]
            for index, columns in enumerate(tables):
                yield from ([Text("")] if index else [])
                yield self._table(columns)
        yield Text("")
        for sentence in conclusions(results):
            yield Text(sentence)
        if len(results.models) > 1:
            yield Text(interval_scope(results))
        yield Text(marks_legend(results), style="dim")
        if any(row.red_flags for row in results.models.values()):
            yield Text(RED_FLAG_LEGEND, style="dim")
        if any(length_matters(results, scorer) for scorer in results.scorers):
            yield Text(LENGTH_LEGEND, style="dim")
        for legend in filter(None, (pass_legend(results), disagreement_legend(results), path_legend(results))):
            yield Text(legend, style="dim")

    def _fits(self, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> bool:
        # Measured without a limit, because Rich would fold cells to make any table fit.
        unlimited = options.update(width=10_000)
        return Measurement.get(console, unlimited, self._table(columns)).maximum <= options.max_width

    def _split(self, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> list[list[Column]]:
        tables: list[list[Column]] = []
        for column in columns:
            if tables and self._fits([*tables[-1], column], console, options):
                tables[-1].append(column)
            else:
                tables.append([column])
        return tables

    def _table(self, columns: Sequence[Column]) -> Table:
        multiline = any("\n" in cell.plain for column in columns for cell in column.cells)
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1),
            collapse_padding=True,
            pad_edge=False,
            show_edge=False,
            leading=int(multiline),
        )
        table.add_column("model", max_width=MODEL_MAX_WIDTH, overflow="fold")
        for column in columns:
            table.add_column(Text(column.header), justify="left" if multiline else "right", overflow="fold")
        for index, name in enumerate(self.results.models_baseline_first):
            # Text, not markup: a model may be called "[red]".
            label = Text(name, style="bold")
            if self.results.models[name].red_flags:
                label.append(f" {RED_FLAG}", style="bold red")
            if remark := row_remark(self.results, name):
                label.append(f"\n{remark}" if multiline else f" ({remark})", style="dim")
            table.add_row(label, *(column.cells[index] for column in columns))
        return table


def row_remark(results: Results, name: str) -> str:
    """The remark beside a row's name; empty for a plain model."""
    if name == results.baseline:
        return "baseline"
    count = results.several_seeds.get(name)
    return f"{count} seeds" if count else ""


def _scorer_columns(results: Results, scorer: str) -> list[Column]:
    """Of a scorer, or of a pass@k, which has no wins."""
    lines = [_scorer_lines(results, name, scorer) for name in results.models_baseline_first]
    headers = [scorer, f"Δ {scorer}", *([f"{scorer} wins"] if scorer in results.scorers else [])]
    if len(results.models) == 1:
        headers = headers[:1]
    columns = [Column(header, [cells[index] for cells in lines]) for index, header in enumerate(headers)]
    if not length_matters(results, scorer):
        return columns
    equal = [_equal_length_text(results, name, scorer) for name in results.models_baseline_first]
    return [*columns, Column("LC", [Text(text or NOTHING) for text in equal])]


def _stacked_scorer_column(results: Results, scorer: str) -> Column:
    cells = []
    for name in results.models_baseline_first:
        score, delta, wins = _scorer_lines(results, name, scorer)
        lines = [score] if delta.plain == NOTHING else [score, delta]
        if wins.plain != NOTHING:
            lines.append(Text.assemble("wins ", wins))
        if length_matters(results, scorer) and (equal := _equal_length_text(results, name, scorer)):
            lines.append(Text(f"LC {equal}"))
        cells.append(Text("\n").join(lines))
    return Column(scorer, cells)


def length_matters(results: Results, scorer: str) -> bool:
    """Whether the win rate of a row is another one at equal length, by a point at least: only then has the terminal both."""
    rows = [(row.win_rate, (row.win_rate_at_equal_length or {}).get(scorer)) for row in results.models.values()]
    return any(wins and equal and abs(wins[scorer].mean - equal.mean) >= 0.01 for wins, equal in rows)


def _equal_length_text(results: Results, name: str, scorer: str) -> str | None:
    equal = (results.models[name].win_rate_at_equal_length or {}).get(scorer)
    return None if equal is None else f"{100 * equal.mean:.0f} %"


def _scorer_lines(results: Results, name: str, scorer: str) -> tuple[Text, Text, Text]:
    """Score, difference to the baseline and win rate of one model; of a pass@k the same without a win rate."""
    model = results.models[name]
    decimals = score_decimals(results, scorer)
    delta = Text(NOTHING, style="dim")
    if (score := model.scores.get(scorer)) is None:
        return delta, delta, delta
    if score.delta is not None:
        mark = row_mark(results, name, scorer)
        delta = Text(f"{estimate_text(score.delta, decimals, signed=True)} {mark}", style=STYLES.get(mark, ""))
    rate = (model.win_rate or {}).get(scorer)
    wins = Text(NOTHING, style="dim") if rate is None else Text(percent_text(rate))
    return Text(estimate_text(score, decimals)), delta, wins


def kl_text(model: ModelResult) -> str | None:
    """KL to the baseline, or for best of n its bound, marked as such; None where neither is known."""
    if model.kl_to_baseline is not None:
        return number(model.kl_to_baseline.mean, 2)
    return None if model.kl_bound is None else f"≤ {number(model.kl_bound, 2)}"


def trained_models(results: Results) -> list[str]:
    """The models with a known number of trained parameters."""
    return [name for name in results.models_baseline_first if results.models[name].trained_parameters is not None]


def count_text(count: int) -> str:
    """A number of parameters, to three digits: 812, 31.2 k, 2.21 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def memory_text(memory_bytes: int | None) -> str | None:
    """Bytes in GiB."""
    return None if memory_bytes is None else f"{memory_bytes / 2**30:.2f} GiB"


def _stacked_cost(columns: Sequence[Column]) -> list[Column]:
    """The columns with the operations of a path below its time, as scorers are stacked: a table of several lines has the room."""
    by_header = {column.header: column for column in columns}
    flops, path = by_header.pop("FLOPs", None), by_header.get("path")
    if flops is not None and path is not None:
        cells = [Text("\n").join(pair) for pair in zip(path.cells, flops.cells, strict=True)]
        by_header["path"] = Column("path\nFLOPs", cells)
        return list(by_header.values())
    return list(columns)


def path_text(model: ModelResult) -> str | None:
    """Time to make a model, or the completions that best of n needs for an answer; None where neither is known."""
    cost = model.cost
    if cost is None or cost.per_answer:
        return None if cost is None else f"{cost.scored_completions:.0f}/answer"
    return None if cost.seconds is None else duration_text(cost.seconds)


def flops_text(flops: float | None) -> str | None:
    """Floating-point operations in two digits: 3.1e14."""
    if not flops:
        return None if flops is None else "0"
    return f"{flops:.1e}".replace("e+", "e")


def behaviour_columns(results: Results) -> list[Column]:
    """What the models do, besides their scores. A column that no model has a number for is left out."""
    cells: dict[str, Callable[[ModelResult], str | None]] = {
        "KL\n(nats)": kl_text,
        "tokens": lambda model: number(model.completion_tokens.mean, 1),
        "EOS": lambda model: f"{100 * model.eos_share:.0f} %",
        "distinct-2": lambda model: None if model.distinct_2 is None else number(model.distinct_2, 2),
        "retention\nppl": lambda model: None if model.retention_perplexity is None else number(model.retention_perplexity, 2),
        "path": path_text,
        "FLOPs": lambda model: None if model.cost is None else flops_text(model.cost.flops),
    }
    if most_trials(results) > 1:
        cells["trials"] = lambda model: None if model.cost is None or model.cost.per_answer else f"{model.cost.trials:g}"
    if len({results.models[name].trained_parameters for name in trained_models(results)}) > 1:
        # With adapters among whole models, the reader needs the cost of each beside its scores.
        cells["trained"] = lambda model: None if model.trained_parameters is None else count_text(model.trained_parameters)
        cells["memory"] = lambda model: memory_text(model.train_memory_bytes)
    cells |= {f"{scorer}\nmembers ±": _disagreement_cell(results, scorer) for scorer in results.ensembles}
    return _known_columns(results, cells)


def _disagreement_cell(results: Results, scorer: str) -> Callable[[ModelResult], str | None]:
    decimals = score_decimals(results, scorer)
    return lambda row: number(row.disagreement[scorer].mean, decimals)


def variety_columns(results: Results) -> list[Column]:
    """How varied the completions are, for the report, which has the room."""
    return _known_columns(
        results,
        {
            "distinct-1": lambda model: None if model.distinct_1 is None else number(model.distinct_1, 2),
            "compression": lambda model: None if model.compression_ratio is None else number(model.compression_ratio, 1),
            "repetition": lambda model: None if model.repetition is None else f"{100 * model.repetition:.0f} %",
        },
    )


def _known_columns(results: Results, cells: Mapping[str, Callable[[ModelResult], str | None]]) -> list[Column]:
    columns = []
    for header, cell in cells.items():
        texts = [cell(results.models[name]) for name in results.models_baseline_first]
        if any(text is not None for text in texts):
            columns.append(Column(header, [Text(NOTHING if text is None else text) for text in texts]))
    return columns
