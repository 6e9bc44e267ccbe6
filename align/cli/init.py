"""`align init`: a first recipe for one's own model and data, by questions or by options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from align.cli import complete
from align.cli.options import ColumnsOption, column_mapping
from align.errors import AlignError, DataError, RecipeError

if TYPE_CHECKING:
    from align.pipeline.estimate.machine import Machine
    from align.pipeline.starter.data import FoundData
    from align.pipeline.starter.goal import Wanted
    from align.pipeline.starter.model import FoundModel
    from align.pipeline.starter.write import Written
    from align.rows import DataKind

T = TypeVar("T")


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder for the recipe.")] = Path("mine"),
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="A model's folder, or its hub id (owner/name).")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="FILE", help="A file of rows, a folder of them, or a glob. Repeatable.")
    ] = None,
    columns: ColumnsOption = None,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            metavar="GOAL",
            autocompletion=complete.goals,
            help="sft, dpo, orpo, kto, grpo, rloo, reward_model, pairs, rejection_sampling or compare (several methods).",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            autocompletion=complete.methods,
            help="For compare: sft, dpo, orpo, rejection_sampling, grpo or rloo. Repeatable.",
        ),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option("--reward-model", metavar="MODEL", help="A reward model that scores answers.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            "--rule",
            metavar="RULE",
            autocompletion=complete.rule_types,
            help="What checks answers against the `reference` of their prompts: numeric_answer, choice_answer, math_answer, "
            "expression, contains_reference or json.  [default: by the references]",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        bool | None,
        typer.Option(
            "--judge/--no-judge",
            help="For compare: keep half of the preference pairs for a second reward model that judges.  [default: from 1,000 "
            "pairs on]",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option("--judge-model", metavar="MODEL", help="For compare: a reward model that judges, and that no method uses."),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine",
            "--gpu-memory",
            metavar="MACHINE",
            help="auto, cpu, or GiB of a GPU's memory: 24.  [default: auto, this one]",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the recipe.  [default: the folder's]", show_default=False),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch the configuration of a hub model (no weights) to choose settings by it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take what is usual where an option is missing.")] = False,
) -> None:
    """Write a first recipe for your own model and data.

    Asks for what no option says, if this is a terminal: align init mine. Or without questions:

    align init mine --model Qwen/Qwen3-0.6B --data pairs.jsonl --goal dpo
    """
    from align.pipeline.starter.choices import COMPARE, GOALS, METHODS, ONLINE, RULES
    from align.pipeline.starter.goal import (
        Wanted,
        lacks_scorer,
        scored_by_rule,
        usual_goal,
        usual_methods,
        with_problems,
    )
    from align.pipeline.starter.model import look_at_reward_model
    from align.pipeline.starter.rule import missing_package
    from align.pipeline.starter.settings import THIS_MACHINE, machine_text, parse_machine
    from align.pipeline.starter.write import recipe_name, refuse_folder, write_starter

    refuse_folder(folder)
    recipe = recipe_name(name, folder)
    goal = None if goal is None else _one_of("--goal", goal, tuple(GOALS))
    methods = tuple(dict.fromkeys(_one_of("--method", one, METHODS) for one in method or ()))
    if methods and goal not in (COMPARE, None):
        raise RecipeError(f"--method goes with --goal compare; {goal} is a method itself", hint="Leave --method out.")
    rule = None if rule is None else _one_of("--rule", rule, tuple(RULES))
    if rule is not None and reward_model is not None:
        raise RecipeError("--rule and --reward-model: one of them scores answers, not both", hint="Leave one of them out.")
    if judge_model is not None and judge is not None:
        raise RecipeError(
            f"--judge-model and --{'' if judge else 'no-'}judge: one of them says what judges, not both",
            hint="Leave one of them out.",
        )
    target = parse_machine(machine or THIS_MACHINE, folder)
    ask = _Questions(yes=yes, missing=[option for option, value in (("--model", model), ("--data", data)) if not value])
    found_model = ask.model(model, fetch=fetch)
    print(f"model    {found_model.summary}")
    found_data = ask.data(data, column_mapping(columns))
    if goal is None:
        usual = COMPARE if methods else usual_goal(found_data)
        goal = ask.choose("What do you want?", GOALS, usual, option="--goal")
    if goal == COMPARE and not methods:
        methods = ask.several("Which methods?", METHODS, usual_methods(found_data))
    if rule is not None or {*ONLINE} & {goal, *methods}:
        seen, found_data = found_data, with_problems({goal, *methods}, found_data)
        for found in found_data:
            if found not in seen:
                _print_found(found, guessed=True)
    by_rule = reward_model is None and (rule is not None or scored_by_rule(goal, methods, found_data))
    found_rule = ask.rule(rule, found_data) if by_rule else None
    needed = found_rule is None and lacks_scorer(goal, methods, found_data, judged=judge_model is not None)
    scores = ask.reward_model(reward_model, needed=needed)
    found_judge = None if judge_model is None else look_at_reward_model("--judge-model", judge_model)
    wanted = Wanted(goal, methods, found_model, tuple(found_data), scores, found_rule, judge, found_judge)
    if machine is None:
        target = ask.machine(target, lambda text: parse_machine(text, folder), machine_text(target))
    print(f"goal     {goal}: {GOALS[goal]}" + (f" ({', '.join(methods)})" if goal == COMPARE else ""))
    if found_rule is not None:
        print(f"rule     {found_rule['type']}: {RULES[found_rule['type']]}")
        for line in missing_package(found_rule) or ():
            print(f"         {line}")
    print(f"machine  {machine_text(target)}")
    _print_written(folder, write_starter(folder, recipe, wanted, target), wanted)


def _one_of(option: str, value: str, names: Sequence[str]) -> str:
    """The name that a user meant, whether written with `-` or `_`."""
    from align.config.names import stage_type_of, unknown_stage_type

    name = value.strip().lower().replace("-", "_")
    begun = [known for known in names if name in known.split("_")]
    if name not in names and len(begun) == 1:
        return begun[0]
    if name not in names:
        kind = stage_type_of(name, names)
        from align.stages.registry import STAGES

        text = f"did you mean '{kind}'?" if kind else unknown_stage_type(name, list(names)).partition("; ")[2]
        if not kind and (stage := stage_type_of(name, STAGES)):
            hint = f"`align docs {stage}` shows how its stage is written. init writes {', '.join(names)}."
            raise RecipeError(f"{option} {value}: init writes no recipe with {stage}", hint=hint)
        raise RecipeError(f"{option} {value}: unknown name; {text}", hint=f"One of {', '.join(names)}.")
    return name


def _print_found(found: FoundData, *, guessed: bool) -> None:
    print(f"data     {found.summary}")
    if found.columns and guessed:
        mapped_to = ", ".join(f"{field} is {column!r}" for field, column in found.columns.items())
        print(f"         read so: {mapped_to}; please check")


def _print_written(folder: Path, written: Written, wanted: Wanted) -> None:
    peft, reason = written.choice
    if reason:
        print(f"trains   {'all weights' if peft is None else f'an adapter ({peft.method})'}: {reason}")
    if written.judge:
        print(f"judge    {written.judge}")
    for path in written.unused:
        print(f"unused   {path}: the goal {wanted.goal} does not need it")
    if wanted.model.needs_template:
        print("chat     the model has no chat template; the recipe gives it ChatML: chat: {template: chatml}")
    print(f"\nWrote {written.recipe}" + (f" and {written.held_out}" if written.held_out else "") + ". Next:\n")
    place = f'"{folder}"' if " " in str(folder) else str(folder)
    print(f"  align plan {place}   # what will run, and what would not work; nothing is started")
    print(f"  align run {place}")


class _Questions:
    """Asks for what no option said; without a terminal, or with --yes, takes what is usual.

    Args:
        missing: options without which nothing can be written, and that were not given.
    Raises:
        RecipeError: if some are missing and nobody can be asked.
    """

    def __init__(self, *, yes: bool, missing: Sequence[str]) -> None:
        self._can_ask = sys.stdin.isatty() and not yes
        self._yes = yes
        if missing and not self._can_ask:
            raise RecipeError(
                f"{' and '.join(missing)}: missing, and " + ("--yes asks nothing" if yes else "there is no terminal to ask on"),
                hint="For example: align init mine --model Qwen/Qwen3-0.6B --data pairs.jsonl --goal dpo",
            )

    def model(self, given: str | None, *, fetch: bool) -> FoundModel:
        from align.pipeline.starter.model import look_at_model

        if given is not None:
            found = look_at_model(given, fetch=fetch)
        else:
            found = self._until_right(
                "Model (a folder, or a hub id as owner/name)", lambda text: look_at_model(text, fetch=fetch)
            )
        if found.folder is None and self._can_ask and self._confirm("Fetch its configuration from the hub (no weights)?"):
            found = look_at_model(found.written, fetch=True)
        return found

    def reward_model(self, given: str | None, *, needed: bool) -> FoundModel | None:
        from align.pipeline.starter.model import look_at_reward_model

        if given is not None:
            return look_at_reward_model("--reward-model", given)
        if not needed or not self._can_ask:
            return None
        question = "Reward model that scores answers (a folder, or a hub id)"
        return self._until_right(question, lambda text: look_at_reward_model("reward model", text))

    def rule(self, given: str | None, data: Sequence[FoundData]) -> dict[str, Any]:
        """The rule that checks answers, with its fields."""
        from align.pipeline.starter.choices import RULES
        from align.pipeline.starter.rule import make_rule, problems_in, usual_rule

        problems = problems_in(data)
        while given is None and self._can_ask:
            name = self.choose("When is an answer right?", RULES, usual_rule(problems))
            try:
                return make_rule(name, problems)
            except RecipeError as error:
                self._say(error.render())
        return make_rule(given or usual_rule(problems), problems)

    def machine(self, here: Machine, read: Callable[[str], Machine], shown: str) -> Machine:
        """This machine, unless the user names another."""
        if not self._can_ask:
            return here
        return self._until_right(f"Train on this machine ({shown})? Or GiB of another GPU's memory", read, "auto")

    def data(self, given: Sequence[str] | None, columns: Mapping[str, str]) -> list[FoundData]:
        """Every file, with what was found in it printed."""
        found = [self._look(path, columns) for path in given or ()]
        if given:
            return found
        while not found or self._confirm("Another file?"):
            found.append(self._until_right("Data (a file, a folder or a glob)", lambda path: self._look(path, columns)))
        return found

    def _look(self, path: str, columns: Mapping[str, str]) -> FoundData:
        from align.cli.data_validate import RowProgress
        from align.pipeline.starter.data import look_at_data

        progress = RowProgress()
        try:
            found = look_at_data(path, columns, on_progress=progress)
        except DataError as error:
            if not self._can_ask or columns or (mapped := self._map_columns(path, error)) is None:
                raise
            found = look_at_data(path, mapped[1], mapped[0])
        finally:
            progress.end()
        _print_found(found, guessed=not columns)
        if found.bad_rows:
            print(f"         {found.bad_share} cannot be used and are left out, such as {found.first_problem}")
        return found

    def _map_columns(self, path: str, error: DataError) -> tuple[DataKind[Any], dict[str, str]] | None:
        """Which column is what, by questions; None where there are no columns."""
        from align.pipeline.starter.data import first_rows
        from align.rows import INSTRUCTIONS, PREFERENCES, PROMPTS

        rows = first_rows(path, Path(path).expanduser())
        if not rows:
            return None
        print(error.message, file=sys.stderr)
        kinds = {kind.name: kind for kind in (PREFERENCES, INSTRUCTIONS, PROMPTS)}
        names = {str(column): "" for column in rows[0]}
        what = {
            PREFERENCES.name: "two answers, one of them better",
            INSTRUCTIONS.name: "a prompt and its answer",
            PROMPTS.name: "a prompt",
        }
        kind = kinds[self.choose("What does a row hold?", what, PREFERENCES.name)]
        fields = ("prompt", *kind.completions)
        return kind, {field: self.choose(f"Which column is the {field}?", names, next(iter(names))) for field in fields}

    def choose(self, question: str, choices: Mapping[str, str], usual: str, *, option: str | None = None) -> str:
        """One of the choices, by number or name.

        Raises:
            RecipeError: if `option` is what would have said it, and nobody can be asked.
        """
        if not self._can_ask:
            if option is not None and not self._yes:
                raise RecipeError(
                    f"{option}: missing; with these rows it is usually {usual}", hint=f"Add {option} {usual}, or --yes."
                )
            return usual
        self._say(question)
        for number, (name, meaning) in enumerate(choices.items(), start=1):
            self._say(f"  {number:>2}  {name:<19} {meaning}".rstrip())
        names = list(choices)

        def pick(text: str) -> str:
            return names[int(text) - 1] if text.isdigit() and 0 < int(text) <= len(names) else _one_of_exactly(text, names)

        return self._until_right("Number or name", pick, usual)

    def several(self, question: str, choices: Sequence[str], usual: Sequence[str]) -> tuple[str, ...]:
        if not self._can_ask:
            return tuple(usual)
        self._say(f"{question} {', '.join(choices)}")
        return self._until_right(
            "Names, separated by spaces",
            lambda text: tuple(dict.fromkeys(_one_of("method", one, choices) for one in text.replace(",", " ").split())),
            " ".join(usual),
        )

    def _confirm(self, question: str) -> bool:
        return self._until_right(
            f"{question} y or n", lambda text: {"y": True, "yes": True, "n": False, "no": False}[text.lower()], "n"
        )

    def _until_right(self, question: str, read: Callable[[str], T], usual: str | None = None) -> T:
        """Ask again until `read` takes the answer; its error is shown."""
        while True:
            text = self._read(question, usual)
            try:
                return read(text)
            except AlignError as error:
                self._say(error.render())
            except (KeyError, IndexError):
                self._say(f"{text!r} is no answer here.")

    def _read(self, question: str, usual: str | None) -> str:
        sys.stderr.write(f"{question}{'' if usual is None else f' [{usual}]'}: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise RecipeError("the input ended before all questions were answered", hint="Nothing was written.")
        return line.strip() or usual or ""

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr)


def _one_of_exactly(text: str, names: Sequence[str]) -> str:
    return text if text in names else _one_of("answer", text, names)
