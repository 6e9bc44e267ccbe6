"""Whether a model can be trained, sampled and scored with: what `align doctor MODEL` says of its files."""

from __future__ import annotations

from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.errors import AlignError, EnvironmentProblem
from align.models.facts import read_facts
from align.models.file_tokenizer import FileTokenizer
from align.models.files import TOKENIZER_NAME
from align.models.folder import ModelFolder
from align.models.tokenizer import differing_ids
from align.pipeline.checks.finding import Cause, Finding
from align.records import Message
from align.report.model.check import ModelCheck
from align.report.model.probe import ModelReport, probe_loaded, probe_model

CERTAIN = frozenset({"folder", "vocabulary", "head", "weights"})
"""Checks of facts that no class of tokenizer changes."""
OF_SOME_ROWS = {"system_message": "rows with a system message", "two_turns": "rows with several turns"}
"""Checks about rows that have these; a model that fails them is fine for all others."""


def check_model(name: str, where: str, folder: ModelFolder, *, scores: bool = False) -> list[Finding]:
    """What keeps a model from being used.

    Args:
        where: place of the model in its recipe.
        scores: whether it is to be a reward model.
    """
    if scores and not folder.can_score:
        text = f"{where}: {folder.path}: a language model, which gives no scores; expected a reward model"
        advice = "Train one from it with a reward_model stage, or name the folder of a reward model (it has score.weight)."
        return [Finding(name, text, advice)]
    if not (folder.path / TOKENIZER_NAME).is_file():
        return [Finding(name, "its tokenizer and chat template are not checked: not downloaded", action="note")]
    try:
        problems = problems_of(folder)
    except AlignError as error:
        return [Finding(name, f"{where}: {error.message}", error.hint or "", cause=_cause(error.exit_code))]
    return [_finding(name, where, folder, problem) for problem in problems] + check_added(name, folder)


def check_added(name: str, folder: ModelFolder) -> list[Finding]:
    """Say that a run will make a copy of the model with more tokens."""
    if not folder.new_tokens:
        return []
    listed = ", ".join(folder.new_tokens)
    text = f"its chat template needs {listed}, which its vocabulary lacks: a copy of the model gets them, with new rows"
    return [Finding(name, text, action="note")]


def problems_of(folder: ModelFolder) -> list[ModelCheck]:
    """What `align doctor` calls a problem. Most models have none, and this is known without importing transformers.

    Raises:
        RecipeError, EnvironmentProblem: if the folder is refused or damaged.
    """
    report = ModelReport(folder.path)
    facts = read_facts(folder)
    try:
        tokenizer = FileTokenizer(folder)
    except EnvironmentProblem:  # transformers has the last word here, too
        return probe_model(folder).problems
    probe_loaded(report, tokenizer, facts, timed=False)
    doubtful = [problem for problem in report.problems if problem.name not in CERTAIN]
    no_template = not tokenizer.chat_template and [problem.name for problem in doubtful] == ["template"]
    # transformers has the last word before a model is refused; without weights nothing can be loaded with it.
    again = doubtful and not no_template and not folder.is_configuration_alone
    return probe_model(folder).problems if again else report.problems


def check_teacher(
    stage: str,
    where: str,
    names: tuple[str, str],
    folders: tuple[ModelFolder, ModelFolder],
    formats: tuple[ChatFormat | None, ChatFormat | None],
) -> list[Finding]:
    """Whether a teacher can be learned from token by token, and whether it knows the student's form of a conversation.

    Args:
        where: place of the teacher in its recipe.
        names: of student and teacher in the recipe; their folders and formats follow in the same order.
    """
    try:
        vocabularies = [FileTokenizer(folder).get_vocab() for folder in folders]
    except EnvironmentProblem:  # of an input `check_model` says what is wrong
        return []
    differing = differing_ids(*vocabularies)
    if differing and not any(folder.is_configuration_alone for folder in folders):
        differing = differing_ids(*(folder.tokenizer.get_vocab() for folder in folders))  # transformers has the last word
    if differing:
        shown = f"{len(differing):,} tokens differ, such as {', '.join(map(repr, differing[:3]))}"
        text = f"{where}: '{names[1]}' has another tokenizer than '{names[0]}', which learns from it token by token: {shown}"
        advice = (
            f"Name a teacher with the tokenizer of '{names[0]}', as larger models of its family have; or let '{names[1]}' answer "
            "the prompts (generate, best_of_n) and train on its answers with sft."
        )
        return [Finding(stage, text, advice)]
    student, teacher = formats
    if student is None or teacher is None or _asked(student) == _asked(teacher):
        return []
    text = f"{where}: '{names[1]}' was made for another chat template than '{names[0]}', in whose form it will read the prompts"
    return [Finding(stage, text, f"Set chat: at '{names[0]}' to the template of '{names[1]}' if you can.", action="warn")]


def _asked(chat_format: ChatFormat) -> tuple[str, str]:
    """A prompt as the model reads it, or why its template refuses it; and what ends its completion."""
    try:
        prompt = chat_format.prompt_text([Message(role="user", content="Hello")])
    except TemplateProblem as problem:  # the rows that it refuses are found when they are encoded
        prompt = str(problem)
    return prompt, chat_format.end_token


def _finding(name: str, where: str, folder: ModelFolder, problem: ModelCheck) -> Finding:
    rows = OF_SOME_ROWS.get(problem.name)
    about = f"{rows}: " if rows else "the tokenizer " if problem.name == "tokenizer" else ""
    text = f"{where}: {folder.path}: {about}{problem.found}"
    return Finding(name, text, problem.advice, feature=problem.name if rows else "")


def _cause(exit_code: int) -> Cause:
    return "machine" if exit_code == 4 else "recipe"
