"""Checks a model's folder, template and tokenizer. Reads only the headers of the weights.

Templates are limited: they render in transformers' immutable Jinja sandbox, within `RENDER_SECONDS` and within the memory and
length of `guard.py`. The first rendering that does not end stops the checks of the template.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config.learning_rates import METHODS, usual_rates
from align.data.plain import PlainFormat, format_of
from align.data.template import ChatFormat
from align.data.template_problems import FormatError, TemplateProblem
from align.errors import EXIT_OK, AlignError, RecipeError
from align.models.chat_format import tokenizer_of
from align.models.facts import ModelFacts, read_facts
from align.models.finite import check_finite_weights
from align.models.folder import ModelFolder
from align.models.tokenizer import OF_TOKENIZER
from align.report.model import template_checks, token_checks
from align.report.model.check import WHY, ModelCheck, State
from align.report.model.guard import GuardedTokenizer

_ORDER: tuple[State, ...] = ("problem", "info", "ok")
_FIX_TEMPLATE = "Fix chat_template.jinja of that model."
_SAFE = "safetensors of the right size, no code, nothing outside it"


@dataclass
class ModelReport:
    """The checks of one model."""

    folder: Path
    checks: list[ModelCheck] = field(default_factory=list)
    exit_code: int = EXIT_OK
    """2 if there is a problem: every stage would refuse the model or go wrong. 4 if a file is damaged."""

    @property
    def problems(self) -> list[ModelCheck]:
        return [check for check in self.checks if check.state == "problem"]

    @property
    def skipped(self) -> list[str]:
        """Checks that a problem prevented, or that do not apply to such a model."""
        made = {check.name for check in self.checks}
        return [name for name in WHY if name not in made]

    def add(self, check: ModelCheck) -> None:
        self.checks.append(check)
        if check.state == "problem":
            self.exit_code = self.exit_code or RecipeError.exit_code

    def refuse(self, name: str, error: AlignError) -> None:
        """Record an error as the problem that a check found."""
        self.exit_code = self.exit_code or error.exit_code
        found = error.message.replace(f"{self.folder}: ", "").replace(f"{self.folder}/", "")
        self.add(ModelCheck(name, "problem", found, error.hint or _FIX_TEMPLATE))

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "model": str(self.folder),
            "checks": [check.to_json() for check in self.checks],
            "skipped": self.skipped,
        }


def probe_model(folder: ModelFolder) -> ModelReport:
    """Make every check that the folder allows.

    Args:
        folder: a model's or adapter's, with config.json; need not be safe.
    """
    report = ModelReport(folder.path)
    try:
        # Before the tokenizer is loaded: it refuses code, links out of the folder and damaged files.
        facts = read_facts(folder.check())
    except AlignError as error:
        report.refuse("folder", error)
        return report
    report.add(ModelCheck("folder", "ok", _SAFE))
    try:
        check_finite_weights(folder)
        report.add(ModelCheck("numbers", "ok", "every weight is finite"))
    except AlignError as error:
        report.refuse("numbers", error)
    try:
        tokenizer = tokenizer_of(folder)
    except AlignError as error:
        found = error.message.removeprefix(f"{folder.path}: {OF_TOKENIZER} ")
        report.add(ModelCheck("tokenizer", "problem", found, "Get the model's files again, all of one version."))
        return report
    probe_loaded(report, tokenizer, facts)
    order = list(WHY)
    report.checks.sort(key=lambda check: order.index(check.name))
    return report


def probe_loaded(report: ModelReport, tokenizer: Any, facts: ModelFacts, *, timed: bool = True) -> None:
    """Add the checks of template and tokenizer to `report`.

    Args:
        timed: whether to measure the tokenizer's speed, which takes a moment.
    """
    guarded = GuardedTokenizer(tokenizer)
    report.add(token_checks.check_tokenizer(guarded, report.folder))
    report.add(token_checks.check_end_of_sequence(guarded))
    report.add(token_checks.check_control_tokens(guarded))
    report.add(token_checks.check_vocabulary(guarded, facts))
    report.add(token_checks.check_head(facts))
    report.add(token_checks.check_weights(facts))
    report.add(token_checks.check_context(guarded, facts))
    report.add(_check_learning_rates(facts))
    try:
        chat_format = format_of(
            guarded,
            facts.encoder_decoder,
            str(report.folder),
            settings=facts.chat_settings,
            stop_token_ids=facts.stop_token_ids,
        )
    except FormatError as error:
        report.refuse(error.aspect, error)
        return
    report.add(token_checks.check_padding(chat_format, len(tokenizer)))
    if facts.is_language_model:
        report.add(token_checks.check_stopping(chat_format, facts))
    report.add(token_checks.check_round_trip(chat_format))
    if timed:
        report.add(token_checks.check_speed(chat_format))
    _probe_template(report, chat_format)


def _check_learning_rates(facts: ModelFacts) -> ModelCheck:
    """What is usual for a model of this size, which a recipe's defaults do not know."""
    found = [
        f"{method} {full}, with lora {lora}"
        for method in METHODS
        if (full := usual_rates(method, facts.parameters, adapter=False))
        and (lora := usual_rates(method, facts.parameters, adapter=True))
    ]
    return ModelCheck(
        "learning_rates", "info", f"usual: {'; '.join(found)}" if found else "none are usual for a model this small"
    )


def _probe_template(report: ModelReport, chat_format: ChatFormat) -> None:
    conversations = {} if isinstance(chat_format, PlainFormat) else _CONVERSATION_CHECKS
    for name, check in (_COMPLETION_CHECKS | conversations).items():
        try:
            report.add(check(chat_format))
        except FormatError as error:  # a rendering that did not end
            report.refuse(name, error)
            return
        except TemplateProblem as problem:
            report.add(ModelCheck(name, "problem", str(problem), _FIX_TEMPLATE))


_COMPLETION_CHECKS: dict[str, Callable[[ChatFormat], ModelCheck]] = {
    "template": template_checks.check_template,
    "date": template_checks.check_date,
    "beginning": template_checks.check_beginning,
    "end_of_turn": template_checks.check_end_of_turn,
    "one_pass": template_checks.check_one_pass,
    "completions": template_checks.check_completions,
}
_CONVERSATION_CHECKS: dict[str, Callable[[ChatFormat], ModelCheck]] = {
    "prompt_prefix": template_checks.check_prompt_prefix,
    "first_message": template_checks.check_first_message,
    "system_message": template_checks.check_system_message,
    "two_turns": template_checks.check_two_turns,
}


def lines_of(report: ModelReport, *, width: int) -> Iterator[str]:
    """The checks as lines of text, problems first. Only problems show their reason.

    Args:
        width: columns.
    """
    margin = " " * (len("problem") + 2)
    indent = margin + " " * (max(map(len, WHY)) + 2)

    def wrapped(text: str, start: str) -> list[str]:
        return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)

    yield str(report.folder)
    yield ""
    for check in sorted(report.checks, key=lambda check: _ORDER.index(check.state)):
        head = check.state.ljust(len(margin)) + check.name.ljust(len(indent) - len(margin))
        yield from wrapped(check.found, head)
        if check.state == "problem":
            yield from wrapped(WHY[check.name], indent)
        if check.advice:
            yield from wrapped(f"→ {check.advice}", indent)
    if report.skipped:
        yield from textwrap.wrap(f"Not checked: {', '.join(report.skipped)}.", width)
    yield ""
    counts = {state: sum(check.state == state for check in report.checks) for state in _ORDER}
    verdict = "This model cannot be used as it is" if report.problems else "Nothing stands in the way of using this model"
    problems = "1 problem" if counts["problem"] == 1 else f"{counts['problem']} problems"
    yield f"{verdict}: {problems}, {counts['info']} to know of, {counts['ok']} ok."
