"""From a data file to its numbers: find it, read and check its rows, and collect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from align.config.inputs import DataInput
from align.data.evaluation import evaluation_prompts
from align.data.source import find_source
from align.data.validation import rules_of
from align.data.validation.collection import collect_rows
from align.errors import DataError
from align.report.dataset.collect import Collector
from align.report.dataset.facts import Facts, SourceSummary
from align.report.dataset.tokens import TrainingView


def inspect_source(
    spec: DataInput,
    *,
    against: Sequence[str] = (),
    training: TrainingView | None = None,
    samples: int,
    seed: int,
    locate: Callable[[str], Path] = Path,
) -> Facts:
    """The numbers of a data file. Rows that cannot be used are counted, whatever `on_invalid` says.

    Args:
        spec: which file, what its rows are, how its columns are called.
        against: files of evaluation prompts.
        training: the model whose tokens are counted.
        samples: rows to be shown.
        seed: of the samples.
        locate: makes a path of what `spec` says.
    Raises:
        DataError: if a file cannot be read, or has no row that can be used.
        RecipeError: if there is no such file or column.
    """
    source = find_source(spec, locate)
    evaluations = {name: DataInput(kind="prompts", path=name) for name in against}
    prompts = {name: evaluation_prompts(find_source(each, locate), each) for name, each in evaluations.items()}
    collector = Collector(spec.row_kind, seed=seed, samples=samples, against=prompts, view=training)
    with collect_rows(source, rules_of(spec)) as collection:
        for record in collection.records():
            collector.add(record)
        found = collection.summary
    if not found.rows_out:
        raise DataError(
            f"{source.shown}: none of its {found.rows_in:,} rows can be used as {spec.kind}",
            hint="`align data validate` says why. Does --kind fit the file? --columns names columns, such as prompt=question.",
        )
    return collector.finish(
        SourceSummary(
            name=source.shown,
            kind=spec.kind,
            rows_in=found.rows_in,
            rows_usable=found.rows_out,
            dropped=dict(found.dropped.most_common()),
            findings=found.counts(),
            notes=found.notes(),
            cut_short=found.cut_short,
        )
    )
