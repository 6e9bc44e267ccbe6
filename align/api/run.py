"""What a run has made: tables, curves, models. Reads the folder of a run that is finished, stopped half-way or still going on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.api.show import as_html, as_text
from align.api.table import Table
from align.config.inputs import MANIFEST_NAME
from align.config.names import unknown
from align.errors import EnvironmentProblem, RecipeError
from align.metric import duration_text, headlines, number_text
from align.runtime.event_file import EVENTS_NAME, read_events
from align.runtime.events import Event, Progress, RunPlanned, StageFailed, StagePlan, StageStarted
from align.runtime.replay import metrics_of
from align.store.artifact import DROPS_NAME, EPOCHS_NAME, METRICS_NAME, MODEL_FOLDER, STORE_NAME, Artifact, Entry
from align.store.fingerprint import HASHES_NAME, FileHashes
from align.store.lock import is_held
from align.store.seal import SEAL, BrokenSeal, read_sealed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.export.source import ModelSource
    from align.report.results import Results

LINKS_NAME, INPUT_LINKS_NAME = "stages", "inputs"
State = Literal["done", "running", "waiting", "interrupted", "failed", "damaged", "left out", "not started"]
_RUN_AGAIN = "Run the recipe again; what is finished is not done twice."


@dataclass(frozen=True)
class Stage:
    """One stage of a run, as it was when it was asked for."""

    name: str
    type: str
    """sft, dpo, compare, …"""
    state: State
    detail: str = ""
    """How far it is, why it failed, or what is damaged; empty otherwise."""
    seconds: float | None = None
    """Wall time over all interrupted attempts; None until it is done."""
    path: Path | None = None
    """Folder of its result; None until it is done."""
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Its final numbers, by the key of the metric; empty until it is done."""


class Run:
    """A run's folder. Every call reads the disk, so that a run that goes on can be watched; results are checked before use.

    Names are those of the recipe. A name that the run does not have is a RecipeError. What is not done yet, or is damaged, is an
    EnvironmentProblem.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return self._last_plan()[0].recipe

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe as it was run: overrides applied, defaults filled in."""
        from align.pipeline.owner import RECIPE_NAME

        path = self.folder / RECIPE_NAME
        try:
            written = read_sealed(path)
        except FileNotFoundError:
            raise EnvironmentProblem(f"{path}: there is no such file", hint=_RUN_AGAIN) from None
        except BrokenSeal as problem:
            raise EnvironmentProblem(f"{path}: {problem}", hint=_RUN_AGAIN) from problem
        return {name: value for name, value in written.items() if name != SEAL}

    @property
    def stages(self) -> dict[str, Stage]:
        """Every stage of the recipe by name, in the order in which they run."""
        planned, events = self._last_plan()
        hashes = FileHashes(self._store / HASHES_NAME)
        goes_on = is_held(self._store / f"run-{planned.recipe}.lock")
        return {stage.name: self._stage(stage, events, hashes, goes_on=goes_on) for stage in planned.stages}

    @property
    def is_finished(self) -> bool:
        """Whether every stage has its result."""
        return all(stage.state == "done" for stage in self.stages.values())

    @property
    def results(self) -> Results:
        """The last comparison, with every interval and ranking."""
        return self._results(None)

    @property
    def comparisons(self) -> dict[str, Results]:
        """Every finished comparison by its stage, in the order of the recipe."""
        done = [name for name, stage in self.stages.items() if stage.type == "compare" and stage.state == "done"]
        return {name: self._results(name) for name in done}

    def table(self, stage: str | None = None) -> Table:
        """A comparison, one row per model, the baseline first; see `align.report.flat.flat_rows` for the columns.

        Args:
            stage: a `compare` stage; default: the last one.
        """
        from align.report.flat import flat_rows

        return Table.of(flat_rows(self._results(stage)))

    @property
    def report(self) -> Path:
        """The HTML page of the last comparison."""
        return self._report(None)

    def metrics(self, stage: str) -> Table:
        """The curves of a stage that trains, one row per logged step; of a stage that runs now, those so far."""
        found = self._one_of_the_stages(stage)
        if found.state != "done":
            rows = metrics_of(self.folder / EVENTS_NAME).get(stage, [])
        else:
            from align.report.training import read_log

            path = self._artifact(stage).path / METRICS_NAME
            rows = read_log(path) if path.exists() else []
        if not rows and found.state == "done":
            raise RecipeError(f"{stage}: a {found.type} stage has no curves", hint="Its final numbers are stages[name].summary.")
        if not rows:
            raise EnvironmentProblem(f"{stage}: {_in_words(found)}; it has logged nothing yet", hint=_RUN_AGAIN)
        return Table.of([{"step": row["step"], **row} for row in rows])

    def rows(self, name: str) -> Table:
        """The rows of a stage or a data input, as they are in its file; of a comparison, all answers of all its models."""
        artifact = self._artifact(name)
        if artifact.kind == "comparison":
            answers = sorted((artifact.path / "answers").glob("*.jsonl"))
            return Table.read(answers, model=[path.stem for path in answers])
        paths = [path for path in artifact.row_paths if path.is_file()]
        if not paths:
            raise RecipeError(f"{name}: holds {artifact.kind}, not rows", hint="Stages that train have curves: metrics().")
        return Table.read(paths)

    def drops(self, stage: str) -> Table:
        """The rows that a stage left out, each with its reason. Empty where a stage left out none."""
        path = self._artifact(stage).path / DROPS_NAME
        return Table.read([path] if path.is_file() else [])

    @property
    def candidates(self) -> dict[str, Table]:
        """Completions, with their scores once they have some, by the stage that made them."""
        return self._rows_of("candidates", "scored_candidates")

    @property
    def pairs(self) -> dict[str, Table]:
        """Preference pairs, by the stage that made them."""
        return self._rows_of("preferences")

    def model(self, name: str) -> Path:
        """The folder of a stage's or an input's model: weights, configuration and tokenizer in Hugging Face's format.

        An adapter's folder holds the adapter alone; `load_model` merges it.
        """
        return self._source(name).folder.path

    def load_model(self, name: str, *, dtype: str | None = None) -> PreTrainedModel:
        """A stage's or an input's model with its weights, in eval mode, on the CPU. LoRA comes merged into its base model.

        Args:
            dtype: float32 or bfloat16; default: that of the stored weights.
        """
        from align.models.load import load_causal_lm, load_reward_model, load_seq2seq_lm

        source = self._source(name, read=True)
        dtype = dtype or source.folder.stored_dtype
        if source.purpose == "reward":
            return load_reward_model(source.folder, dtype=dtype)
        load: Callable[..., PreTrainedModel] = load_seq2seq_lm if source.folder.encoder_decoder else load_causal_lm
        return load(source.folder, dtype=dtype)

    def load_tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a stage's or an input's model."""
        return self._source(name).folder.tokenizer

    def __repr__(self) -> str:
        stages = self.stages.values()
        done = [stage for stage in stages if stage.state == "done"]
        groups: dict[str, list[str]] = {}
        for stage in stages:
            groups.setdefault(_in_words(stage), []).append(stage.name)
        lines = [f"Run({str(self.folder)!r}): {len(done)} of {len(stages)} stages are done"]
        return "\n".join([*lines, *(f"  {words}: {', '.join(names)}" for words, names in groups.items())])

    def __str__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> list[RenderableType]:
        from rich import box
        from rich.table import Table as RichTable

        stages = self.stages.values()
        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for header in ("stage", "type", "state", "took", ""):
            table.add_column(header, overflow="fold")
        for stage in stages:
            took = "" if stage.seconds is None else duration_text(stage.seconds)
            table.add_row(stage.name, stage.type, _in_words(stage), took, ", ".join(headlines(stage.summary)))
        shown: list[RenderableType] = [f"{self.name}, in {self.folder}", table]
        if comparisons := self.comparisons:
            from align.report.table import render_tables

            shown += ["", render_tables(comparisons), "", *(f"Report: {self._report(name)}" for name in comparisons)]
        return shown

    @property
    def _store(self) -> Path:
        # A run of a single stage (`align stage`) keeps its store in its own folder.
        own = self.folder / STORE_NAME
        return own if own.is_dir() else self.folder.parent / STORE_NAME

    def _last_plan(self) -> tuple[RunPlanned, list[Event]]:
        """The plan of the last attempt, and the events since."""
        from align.config.recipe import FILE_NAME

        events: list[Event] = []
        try:
            for event in read_events(self.folder / EVENTS_NAME):
                if isinstance(event, RunPlanned):
                    events = []
                events.append(event)
        except ValueError as error:
            raise EnvironmentProblem(str(error), hint=_RUN_AGAIN) from error
        if not events or not isinstance(events[0], RunPlanned):
            raise EnvironmentProblem(f"{self.folder}: the run has not begun yet", hint="Wait a few seconds.")
        for name in (events[0].recipe, *(stage.name for stage in events[0].stages)):
            if not FILE_NAME.fullmatch(name):  # of a damaged line; files have such names
                raise EnvironmentProblem(f"{self.folder / EVENTS_NAME}: names {name[:60]!r}, as no recipe can", hint=_RUN_AGAIN)
        return events[0], events

    def _stage(self, planned: StagePlan, events: list[Event], hashes: FileHashes, *, goes_on: bool) -> Stage:
        stage = partial(Stage, planned.name, planned.stage_type)
        link = self.folder / LINKS_NAME / planned.name
        # The link leads to the result of an earlier run until the stage has run with its new settings.
        if link.resolve().name == f"{planned.stage_type}-{planned.fingerprint}":
            entry = Entry(link.resolve())
            state, problem = entry.check(hashes)
            manifest = entry.read_manifest()
            if state == "damaged":
                return stage("damaged", problem)
            if manifest is not None:
                return stage("done", "", manifest.seconds, entry.path, manifest.metrics)
        own = [event for event in events if getattr(event, "stage", None) == planned.name]
        failed = next((event for event in own if isinstance(event, StageFailed)), None)
        begun = any(isinstance(event, StageStarted) for event in own)
        if failed is not None and failed.exit_code not in (130, 143):
            return stage("failed", failed.error)
        if planned.status == "skipped":
            return stage("left out")
        if failed is not None or (begun and not goes_on):
            return stage("interrupted")
        progress = [event for event in own if isinstance(event, Progress)]
        return stage("running", _how_far(progress)) if begun else stage("waiting" if goes_on else "not started")

    def _one_of_the_stages(self, name: str) -> Stage:
        stages = self.stages
        if name not in stages:
            raise RecipeError(f"{name}: {unknown(name, list(stages), what='stage')}")
        return stages[name]

    def _artifact(self, name: str) -> Artifact:
        """The finished, undamaged result of a stage, or a data input."""
        link = self.folder / INPUT_LINKS_NAME / name
        if not link.is_dir():
            stage = self._one_of_the_stages(name)
            if stage.path is None:
                raise EnvironmentProblem(f"{name}: {_in_words(stage)}; it has no result to read", hint=_RUN_AGAIN)
            link = stage.path
        entry = Entry(link.resolve())
        state, problem = entry.verify(_is_small)
        manifest = entry.read_manifest()
        if state == "missing":
            raise RecipeError(f"{name}: a model, which is used where it lies; it has no rows", hint="model() gives its folder.")
        if manifest is None or state != "done":
            raise EnvironmentProblem(f"{name}: {problem}", hint=_RUN_AGAIN)
        return Artifact(name, entry.path, manifest)

    def _source(self, name: str, *, read: bool = False) -> ModelSource:
        from align.export.source import KINDS, find_source

        link = self.folder / INPUT_LINKS_NAME / name
        if link.is_dir() and not (link / MANIFEST_NAME).exists():
            return find_source(link.resolve(), read=read)
        artifact = self._artifact(name)
        if artifact.kind not in KINDS:
            raise RecipeError(f"{name}: holds {artifact.kind}, not a model", hint="rows() reads it.")
        return find_source(artifact.path, read=read)

    def _results(self, comparison: str | None) -> Results:
        from align.report.results import Results

        path = self._comparison(comparison).path / "results.json"
        try:
            return Results.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise EnvironmentProblem(f"{path}: another version of align wrote it", hint=_RUN_AGAIN) from error

    def _report(self, comparison: str | None) -> Path:
        return self._comparison(comparison).path / "report.html"

    def _comparison(self, name: str | None) -> Artifact:
        if name is None:
            comparisons = [stage for stage in self.stages.values() if stage.type == "compare"]
            if not comparisons:
                raise RecipeError(f"{self.folder}: the recipe has no comparison", hint="A `compare` stage makes one.")
            done = [stage for stage in comparisons if stage.state == "done"]
            name = (done or comparisons)[-1].name
        artifact = self._artifact(name)
        if artifact.kind != "comparison":
            raise RecipeError(f"{name}: holds {artifact.kind}, not a comparison", hint="rows() and metrics() read other stages.")
        return artifact

    def _rows_of(self, *kinds: str) -> dict[str, Table]:
        done = [stage.name for stage in self.stages.values() if stage.state == "done"]
        return {name: self.rows(name) for name in done if self._artifact(name).kind in kinds}


def _is_small(name: str) -> bool:
    """Whether a file of a result is no model's; those are read when one is loaded."""
    return not name.startswith((f"{MODEL_FOLDER}/", f"{EPOCHS_NAME}/"))


def load_run(folder: str | Path) -> Run:
    """What a run has made, from its folder `runs/<recipe>`; also while it runs, and after it was stopped.

    Raises:
        RecipeError: if there is no such folder, or it holds no run.
    """
    path = Path(folder).expanduser()
    if (path / EVENTS_NAME).is_file():
        return Run(path)
    runs = sorted(found.parent.name for found in path.glob(f"*/{EVENTS_NAME}"))
    if runs:
        raise RecipeError(f"{path}: a folder of runs: {', '.join(runs)}", hint=f"Name one of them: {path / runs[0]}")
    others = sorted(found.parent.name for found in path.parent.glob(f"*/{EVENTS_NAME}"))
    problem = "a folder without a run" if path.is_dir() else "there is no such folder"
    problem = unknown(path.name, others, what="run") if others else problem
    raise RecipeError(f"{path}: {problem}", hint="Give the folder of a run: runs/<name of the recipe>.")


def _in_words(stage: Stage) -> str:
    return f"{stage.state} ({stage.detail})" if stage.detail else stage.state


def _how_far(progress: list[Progress]) -> str:
    if not progress:
        return ""
    last = progress[-1]
    of_total = "" if last.total is None else f" of {number_text(last.total)}"
    return f"{number_text(last.done)}{of_total} {last.unit}"
