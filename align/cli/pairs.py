"""`align pairs`: preference pairs in one command, by sampling and scoring first or from existing scores.

The options are those of the stages it runs. They become a recipe, which runs in a folder beside the output; the same command
resumes it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from align.cli.options import output_console, print_json
from align.errors import RecipeError

if TYPE_CHECKING:
    # Typer vendors click and has no public name for these types of its commands' methods.
    from typer._click import Command, Context, Parameter

    from align.cli.stage import Options
    from align.cli.stage_recipe import StageRequest
    from align.config.source import Document
    from align.export.preference_set import PreferenceSet
    from align.stage import StageConfig

GENERATE, SCORE, PAIRS = "generate", "score", "pairs"
FILLED: Mapping[str, frozenset[str]] = {
    GENERATE: frozenset({"model", "prompts"}),
    # --num-workers is the sampling stage's: there it saves the most, and a judge cannot be shared among processes.
    SCORE: frozenset({"candidates", "scorers", "num_workers"}),
    PAIRS: frozenset({"scored", "scorer"}),
}
"""Fields of the stages that the command sets itself, has its own option for, or leaves at their defaults."""
REWARD_SCORER = "rm"
"""Name of the scorer that --reward-model adds."""
SUFFIXES = (".jsonl", ".parquet")
WORK_SUFFIX = ".work"


def pairs() -> None:
    """Make preference pairs.

    They come from a model, prompts and scorers, or from scored candidates. A card records how.
    """
    raise AssertionError("PairsCommand runs what it builds")


class PairsCommand(TyperCommand):
    """Takes its options from the stages' configurations, which load on first use: `align --help` stays fast."""

    @cached_property
    def _built(self) -> Command:
        from align.cli.stage import build_command

        return build_command(str(self.name), f"{inspect.getdoc(pairs)}", _options(), _run)

    def get_params(self, ctx: Context) -> list[Parameter]:
        return self._built.get_params(ctx)

    def invoke(self, ctx: Context) -> Any:
        return self._built.invoke(ctx)


def _config(stage: str) -> type[StageConfig]:
    from align.stages.registry import STAGES

    return STAGES[stage].config_type


def _options() -> Options:
    from align.cli.stage import COMMON_OPTIONS, field_options

    def text(flag: str, metavar: str, help_text: str) -> tuple[Any, None]:
        return Annotated[str | None, typer.Option(flag, metavar=metavar, help=help_text)], None

    own: Options = {
        "out": (Annotated[Path, typer.Option("--out", metavar="FILE", help="New file: .jsonl or .parquet.")], ...),
        "model": text("--model", "FOLDER", "Model to sample from."),
        "prompts": text("--prompts", "FILE", "Prompts to continue."),
        "reward_model": text("--reward-model", "FOLDER", f"Reward model that scores; its scorer is called {REWARD_SCORER}."),
        "scored": text("--scored", "FILES", "Scored candidates, in place of model, prompts and reward model."),
        "scorer": (
            Annotated[
                list[str] | None,
                typer.Option(
                    "--scorer",
                    metavar="NAME[=PATH]",
                    help="NAME=PATH: a further scorer, which is a reward model, a file of rules or a file with a judge. "
                    "NAME: the scorer that ranks. Repeatable.",
                ),
            ],
            None,
        ),
    }
    fields: dict[str, tuple[Any, Any]] = {}
    for stage in (PAIRS, GENERATE, SCORE):  # help lists the options of pairing first
        for field, option in field_options(_config(stage), leave_out=FILLED[stage]).items():
            # A field that several stages have is one option, which sets all of them.
            fields.setdefault(field, option)
    return {**own, **fields, **COMMON_OPTIONS}


def _run(given: Mapping[str, Any], command: list[str]) -> None:
    from align.cli.stage import option_words
    from align.written import advise_options

    out: Path = given["out"]
    work = out.with_name(out.name + WORK_SUFFIX)
    _check_out(out, work)
    words = {field: word for stage in (PAIRS, SCORE, GENERATE) for field, word in option_words(_config(stage)).items()}
    with advise_options(words):
        made = _make(_document(given, work), given, work, command)
    if given["json"]:
        print_json(made.to_json())
    else:
        for line in made.lines():
            output_console().print(line, soft_wrap=True)


def _make(document: Document, given: Mapping[str, Any], work: Path, command: list[str]) -> PreferenceSet:
    from align.config.machine_file import read_machine_settings
    from align.config.recipe import parse_document
    from align.export.preference_set import write_preference_set
    from align.pipeline.run import run_recipe
    from align.progress.display import ProgressDisplay
    from align.stages.registry import STAGES

    recipe = parse_document(document, path=Path("align pairs"), folder=Path(), stage_types=STAGES)
    machine_file = read_machine_settings(given["machine"], recipe.folder, os.environ)
    with ProgressDisplay() as display:
        run_recipe(recipe, work.parent, store=work / ".store", machine_file=machine_file, sinks=[display], command=command)
        return write_preference_set(work / "stages" / PAIRS, given["out"], command=command)


def _check_out(out: Path, work: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise RecipeError(f"--out {out}: expected a file that ends in {' or '.join(SUFFIXES)}")
    # The work folder shows that the file is from an earlier run of this command, which may replace it.
    if out.exists() and not work.is_dir():
        raise RecipeError(f"--out {out}: the file exists, and align pairs did not make it", hint="Name another file.")


def _document(given: Mapping[str, Any], work: Path) -> Document:
    """The recipe of the options."""
    if given["scored"] is not None:
        return _from_scores(given, work)
    if given["model"] is None or given["prompts"] is None:
        hint = "Sample and score: --model, --prompts and --reward-model or --scorer. Or take scores: --scored and --scorer."
        raise RecipeError(f"--{'prompts' if given['model'] else 'model'} is missing, and so is --scored", hint=hint)
    return _from_model(given, work)


def _from_scores(given: Mapping[str, Any], work: Path) -> Document:
    for other in ("model", "prompts", "reward_model"):
        if given[other] is not None:
            raise RecipeError(f"--{other.replace('_', '-')} cannot be used with --scored, whose candidates are scored already")
    unused = [field for field in _fields_given(given, GENERATE, SCORE) if field not in _config(PAIRS).model_fields]
    if unused:
        raise RecipeError(f"--{unused[0].replace('_', '-')} cannot be used with --scored, which samples and scores nothing")
    added, ranking = _scorers(given)
    if added:
        raise RecipeError(
            f"--scorer {added[0][0]}={added[0][1]}: nothing is scored with --scored; give the name of a scorer alone"
        )
    request = _request(PAIRS, given, work)
    request.set_field("scored", given["scored"])
    _set_fields(request, PAIRS, given)
    if ranking is not None:
        request.set_field("scorer", ranking)
    return request.finish()


def _from_model(given: Mapping[str, Any], work: Path) -> Document:
    added, ranking = _scorers(given)
    if given["reward_model"] is not None:
        added.insert(0, (REWARD_SCORER, given["reward_model"], f"--reward-model {given['reward_model']}"))
    names = [name for name, _, _ in added]
    if not added:
        raise RecipeError("no scorer is given for the completions", hint="Give --reward-model FOLDER, or --scorer NAME=PATH.")
    # Scores are stored by name, so the second scorer would overwrite the first.
    if len(set(names)) < len(names):
        raise RecipeError(f"--scorer: two scorers are called '{max(names, key=names.count)}'")
    if ranking is None and given.get("scorers") is None:
        if len(names) > 1:
            hint = f"Name one: --scorer {names[0]}. Or weigh them: " + " ".join(f"--scorers {name}=1" for name in names)
            raise RecipeError(f"there are the scorers {', '.join(names)}, and none is named to rank", hint=hint)
        ranking = names[0]
    generate = _request(GENERATE, given, work)
    generate.set_field("model", given["model"])
    generate.set_field("prompts", given["prompts"])
    _set_fields(generate, GENERATE, given)
    score = generate.another(SCORE, _config(SCORE))
    score.name_stage("candidates", GENERATE)
    for name, place, flag in added:
        score.add_scorer(name, place, flag)
    _set_fields(score, SCORE, given)
    last = generate.another(PAIRS, _config(PAIRS))
    last.name_stage("scored", SCORE)
    _set_fields(last, PAIRS, given)
    if ranking is not None:
        last.set_field("scorer", ranking)
    return generate.finish()


def _request(stage: str, given: Mapping[str, Any], work: Path) -> StageRequest:
    from align.cli.stage_recipe import StageRequest

    columns, chat = given["columns"] or (), given["chat"]
    return StageRequest(stage, _config(stage), out=work, seed=given["seed"], columns=columns, chat=chat, command="align pairs")


def _scorers(given: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]], str | None]:
    """Split the --scorer options into (name, path, option) of each further scorer, and the name of the one that ranks."""
    added, ranking = [], None
    for text in given["scorer"] or ():
        name, equals, place = text.partition("=")
        if equals:
            added.append((name, place, f"--scorer {text}"))
        elif ranking is not None:
            raise RecipeError(
                f"--scorer {text}: the pairs are ranked by '{ranking}' already", hint="Write a further scorer as NAME=PATH."
            )
        else:
            ranking = name
    return added, ranking


def _fields_given(given: Mapping[str, Any], *stages: str) -> Collection[str]:
    """Fields of stages that an option sets."""
    fields = dict.fromkeys(field for stage in stages for field in _config(stage).model_fields if field not in FILLED[stage])
    return [field for field in fields if field != "seed" and given.get(field) not in (None, [])]


def _set_fields(request: StageRequest, stage: str, given: Mapping[str, Any]) -> None:
    for field in _fields_given(given, stage):
        request.set_field(field, given[field])
