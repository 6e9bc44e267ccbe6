"""Looks at a user's data file: what its rows are, how many can be used, and which columns hold them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from align.config.inputs import DataInput
from align.data.reader import FORMATS, file_format
from align.data.source import Source, find_source, read_file
from align.data.validation import RowRules, collect_rows
from align.data.validation.collection import Progress
from align.data.validation.kind import LOOKED_AT, guess_kind
from align.data.validation.summary import Problem
from align.errors import DataError, RecipeError
from align.pipeline.starter.model import HUB_ID
from align.records import Prompt, PromptRecord
from align.rows import INSTRUCTIONS, LABELLED, PREFERENCES, PROMPTS, TEXT, DataKind
from align.rows.row import RowReader
from align.rows.shapes import Fit, Recogniser

SAMPLED_ROWS = 512
"""Rows whose lengths decide limits; the first of the file."""
MAX_HELD_OUT = 200
HELD_OUT_SHARE = 0.1
PROMPT_FIELDS = ("prompt", "instruction", "input", "turns", "system")
LATEX = re.compile(r"\\[a-zA-Z]{2,}")
LATEX_SHARE = 0.1
"""Of references, from which on they are mathematics."""
MAX_REFERENCE_CHARACTERS = 40
"""Of the median reference that a completion can be expected to contain word for word."""
NUMBER_AT_END = re.compile(r"\d\W*$")
NOUNS = {PREFERENCES.name: "preference pairs", LABELLED.name: "answers marked good or bad"}
"""Rows of a kind as messages here call them, where the kind's own phrase does not say enough."""
USUAL_NAMES: Mapping[str, frozenset[str]] = {
    "prompt": frozenset(
        {"question", "instruction", "input", "query", "user", "human", "context", "source", "질문", "프롬프트", "지시", "입력"}
    ),
    "completion": frozenset({"target", "reply", "assistant", "answer", "output", "response", "답변", "응답", "출력"}),
    "chosen": frozenset({"good", "better", "preferred", "accepted", "winner", "positive", "선호", "선택", "좋은답변"}),
    "rejected": frozenset({"bad", "worse", "dispreferred", "loser", "negative", "비선호", "거절", "나쁜답변"}),
}
"""Names of columns, in lower case, that no shape knows and that leave little doubt; `columns` maps them, for the user to see."""


PROMPT_NAMES = frozenset(
    name
    for shape in PROMPTS.shapes
    for choices in (shape.required, shape.optional)
    for names in choices.values()
    for name in names
)
RIGHT_ANSWERS = frozenset({"answer", "solution", "target", "정답", "답"})
"""Names of columns, in lower case, that hold the right answer to a problem."""


@dataclass(frozen=True)
class FoundData:
    """A data file and what is in it."""

    path: str
    """As the user wrote it."""
    location: Path
    """File, folder or glob that can be opened."""
    kind: DataKind[Any]
    columns: Mapping[str, str]
    """align's field → column, where the recipe must say so."""
    fit: Fit
    """How the first rows are read."""
    rows: int
    """Rows that can be used."""
    bad_rows: int
    first_problem: str | None
    """Of the rows that cannot be used."""
    sample: tuple[Any, ...]
    """The first usable rows."""
    held_out: tuple[Mapping[str, Any], ...]
    """Rows of prompts that may be kept out of training: a tenth of the different ones, at most 200, chosen by their hash."""

    @property
    def summary(self) -> str:
        """`pairs.jsonl: 2,431 preference pairs, columns prompt, chosen, rejected`."""
        noun = NOUNS.get(self.kind.name, self.kind.phrase)
        return f"{self.path}: {self.rows:,} {noun}, columns {', '.join(self.fit.columns.values())}"

    @property
    def bad_share(self) -> str:
        """`3 of 2,434 rows`."""
        return f"{self.bad_rows:,} of {self.rows + self.bad_rows:,} rows"

    @property
    def has_references(self) -> bool:
        """Whether its prompts say what a right answer holds."""
        return any(isinstance(record, Prompt) and record.reference for record in self.sample)

    @property
    def references_are_numbers(self) -> bool:
        """Whether most references end in a number, as those of arithmetic problems do."""
        references = [record.reference for record in self.sample if isinstance(record, Prompt) and record.reference]
        return sum(bool(NUMBER_AT_END.search(text)) for text in references) > len(references) / 2

    @property
    def references_can_be_checked(self) -> bool:
        """Whether its references look like right answers. Sentences are answers to imitate: no other answer contains them."""
        lengths = sorted(len(record.reference) for record in self.sample if isinstance(record, Prompt) and record.reference)
        short = bool(lengths) and lengths[len(lengths) // 2] <= MAX_REFERENCE_CHARACTERS
        return short or self.references_are_numbers or self.references_are_latex

    @property
    def references_are_latex(self) -> bool:
        """Whether references are mathematics and no plain numbers."""
        references = [record.reference for record in self.sample if isinstance(record, Prompt) and record.reference]
        return sum(bool(LATEX.search(text)) for text in references) > LATEX_SHARE * len(references)

    def columns_as(self, kind: DataKind[Any]) -> Mapping[str, str] | None:
        """How its rows are read as rows of another kind: the chosen completions of pairs as instructions, any prompts as prompts.

        Returns:
            What `columns` of that input must say; None where its rows cannot be read so.
        """
        if kind is self.kind:
            return self.columns
        rows = first_rows(self.path, self.location)
        return next((columns for columns in _columns_for(kind, self.fit) if _reads(kind, columns, rows)), None)


def look_at_data(
    path: str, columns: Mapping[str, str], kind: DataKind[Any] | None = None, on_progress: Progress | None = None
) -> FoundData:
    """Read a file of rows and say what it holds.

    Args:
        path: a file, folder or glob, as the user wrote it.
        columns: field → column, as the user mapped them; empty: found by the names of the columns.
        kind: None: found by the columns.
    Raises:
        RecipeError, DataError: if there is no such file, or it is not clear what its rows are, or none can be used.
    """
    location = Path(path).expanduser()
    if not location.exists() and HUB_ID.fullmatch(path) and file_format(location) not in FORMATS:
        raise RecipeError(
            f"--data {path}: there is no such file or folder",
            hint="Is it a dataset of the hub? init reads files only: give one, and write dataset: and split: into the recipe\n"
            "in its place. `align docs formats` shows how.",
        )
    rows = first_rows(path, location)
    if kind is None:
        kind, columns = _kind_of(path, location, columns, rows)
    source = _source(kind, path, location, columns)
    problems: list[Problem] = []
    with collect_rows(source, RowRules(kind, on_invalid="drop"), on_problem=problems.append, on_progress=on_progress) as found:
        count, bad = found.summary.rows_out, found.summary.dropped.total()
        records: Iterator[Any] = found.records()
        sample: tuple[Any, ...] = tuple(islice(records, SAMPLED_ROWS))
        held_out = _held_out(chain(sample, records)) if kind.has_prompt else ()
    problem = problems[0].render() if bad else None
    if count == 0:
        raise DataError(f"{path}: no row can be used as {kind.phrase}: {problem or 'it is empty'}", hint=_hint(rows))
    mapped = source.files[0].columns
    reader = RowReader(kind, mapped, RowRules(kind).max_characters)
    first = next(row for row in rows if reader.read(row).parts)
    fit = Recogniser(kind.name, kind.shapes, mapped).find(name for name, value in first.items() if value is not None)
    return FoundData(path, location, kind, columns, fit, count, bad, problem, sample, held_out)


def as_problems(found: FoundData) -> FoundData | None:
    """Questions with their right answers, found as instructions, as prompts with references; None where the rows are no such."""
    columns = found.fit.columns
    is_problem = found.kind is INSTRUCTIONS and columns.keys() == {"prompt", "completion"}
    if not is_problem or columns["completion"].lower() not in RIGHT_ANSWERS:
        return None
    problems = look_at_data(found.path, {"prompt": columns["prompt"], "reference": columns["completion"]}, PROMPTS)
    return problems if problems.references_can_be_checked else None


def first_rows(path: str, location: Path) -> list[dict[str, Any]]:
    """The first rows of a source that are rows at all; see `look_at_data`."""
    source = _source(TEXT, path, location, {})
    return [row for _, row in islice(read_file(source.files[0]), LOOKED_AT) if isinstance(row, dict)]


def _source(kind: DataKind[Any], path: str, location: Path, columns: Mapping[str, str]) -> Source:
    return find_source(DataInput(kind=kind.name, path=path, columns=dict(columns)), lambda _: location)


def _kind_of(
    path: str, location: Path, columns: Mapping[str, str], rows: list[dict[str, Any]]
) -> tuple[DataKind[Any], Mapping[str, str]]:
    """What the rows are, and the mapping that it takes to read them."""
    every = (PREFERENCES, LABELLED, INSTRUCTIONS, PROMPTS)
    guess: DataKind[Any] | None = None
    try:
        guess = guess_kind(_source(TEXT, path, location, columns))
    except DataError as error:
        failure = error
    # Prompts alone may be half of what is there: the answers stand in columns whose names no shape knows.
    if not columns and guess in (None, PROMPTS):
        for kind in every if guess is None else every[:3]:
            usual = _usual_columns(kind, rows)
            if usual and _reads(kind, usual, rows) and not (guess and _answers_are_references(usual, rows)):
                return kind, usual
    if guess is TEXT and not columns:
        for column in rows[0]:  # a text may be a whole conversation
            if _reads(INSTRUCTIONS, {"messages": column}, rows):
                return INSTRUCTIONS, {"messages": column}
    if guess is not None:
        return guess, columns
    # Where two fit, the one that says more: a conversation that ends with an answer is an instruction and a prompt.
    for kind in every:
        if _reads(kind, columns, rows):
            return kind, columns
    raise DataError(failure.message, hint=_hint(rows)) from failure


def _answers_are_references(usual: Mapping[str, str], rows: list[dict[str, Any]]) -> bool:
    """Whether prompts have their right answer in a column that would also do as a completion."""
    fit = Recogniser(PROMPTS.name, PROMPTS.shapes, {}).find(map(str, rows[0]))
    return fit.columns.get("reference") in usual.values()


def _hint(rows: list[dict[str, Any]]) -> str:
    names = [str(name) for name in (rows[0] if rows else ())]
    example = f"--columns prompt={names[0]}" if names else "--columns prompt=question"
    advice = f"Say which column is what: {example}, and likewise completion, or chosen and rejected."
    return f"{advice}\n`align docs formats` has the shapes."


def _usual_columns(kind: DataKind[Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    """A column for each field of the kind, by usual names; empty where one is missing or two would fit."""
    names = [str(name) for name in (rows[0] if rows else ())]
    found: dict[str, str] = {}
    for field in ("prompt", *kind.completions):
        fitting = [name for name in names if name.lower() == field or name.lower() in USUAL_NAMES[field]]
        if len(fitting) != 1:
            return {}
        found[field] = fitting[0]
    return found


def _columns_for(kind: DataKind[Any], fit: Fit) -> Iterator[dict[str, str]]:
    """Ways in which rows of one kind may be read as another, by the columns of their own shape."""
    columns = fit.columns
    prompt = {name: columns[name] for name in PROMPT_FIELDS if name in columns}
    answer = next((columns[name] for name in ("completion", "chosen") if name in columns), None)
    conversation = columns.get("messages", answer)
    if kind is PROMPTS:
        yield from (one for one in (prompt, {"prompt": columns.get("text", "")}) if all(one.values()))
    elif kind is INSTRUCTIONS and answer is not None:
        yield {**prompt, "completion": answer}
    if conversation is not None:
        yield {"messages": conversation}


def _reads(kind: DataKind[Any], columns: Mapping[str, str], rows: list[dict[str, Any]]) -> bool:
    """Whether nearly all rows are of the kind, where the columns are mapped so."""
    if columns.keys() - set(kind.fields):
        return False
    reader = RowReader(kind, columns, RowRules(kind).max_characters)
    return sum(bool(reader.read(row).parts) for row in rows) >= 0.9 * len(rows) > 0


def _held_out(records: Iterable[PromptRecord]) -> tuple[Mapping[str, Any], ...]:
    """A tenth of the different prompts, at most `MAX_HELD_OUT`: those with the smallest hashes, wherever they stand."""
    smallest: dict[bytes, Mapping[str, Any]] = {}
    seen: set[bytes] = set()
    for record in records:
        digest = hashlib.sha256("\0".join(message.text for message in record.prompt).encode()).digest()
        seen.add(digest[:8])
        smallest[digest] = _prompt_row(record)
        if len(smallest) > 2 * MAX_HELD_OUT:  # not at every row
            smallest = dict(sorted(smallest.items(), key=itemgetter(0))[:MAX_HELD_OUT])
    count = min(MAX_HELD_OUT, int(HELD_OUT_SHARE * len(seen)))
    return tuple(smallest[digest] for digest in sorted(smallest)[:count])


def _prompt_row(record: PromptRecord) -> Mapping[str, Any]:
    alone = len(record.prompt) == 1 and record.prompt[0].role == "user" and not record.prompt[0].tools
    row: dict[str, Any] = {"prompt": record.prompt[0].content if alone else [message.model_dump() for message in record.prompt]}
    if not isinstance(record, Prompt):
        return row
    # With the other columns, as rules may read them; but not those that could be taken for the prompt when the row is read again.
    others = {name: value for name, value in record.fields.items() if name.lower() not in PROMPT_NAMES}
    return {**others, **row, **({} if record.reference is None else {"reference": record.reference})}
