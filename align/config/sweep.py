"""Writes out `sweep`: trials of a stage with other settings, and a stage that keeps the best under the swept stage's name.

It comes before `rounds` and `seeds`, and makes entries of `stages` as a person would write them. A stage that no setting of a
trial reaches is shared by the trials; one that several trials need in the same way is one stage.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from align.config.base import Problem, StrictModel, execution_fields
from align.config.entry import FILLED, is_rounds
from align.config.expand import kind_of_entry, references_of
from align.config.explain import kind_phrase, problems_of, show_value
from align.config.form import NODE_NAME, Sweep
from align.config.graph import StageTypeLike
from align.config.names import Place, listing, nearest, unknown, unknown_key
from align.config.reference import FieldPath
from align.config.shape import below, fitting_model, follow
from align.config.trials import (
    MAX_TRIALS,
    RANGES,
    Choices,
    Sweeps,
    Trial,
    as_list,
    as_text,
    by_value,
    drawn,
    grid,
    grid_size,
    label,
    values_meant,
)

CHOICE_STAGE = "select_model"
SECTION = "sweep"
FILLED_BY_SWEEP = ("stage", "models")
"""Fields of the choice that the form fills in."""
Written = tuple[str, ...]
"""The keys under `fields` that lead to the values of one field."""


def spread_sweeps(
    sweeps: Mapping[str, Any],
    stages: Mapping[str, Any],
    inputs: Sequence[str],
    stage_types: Mapping[str, StageTypeLike],
    *,
    seed: int,
) -> Sweeps:
    """Write out every sweep.

    Args:
        sweeps: the entries of `sweep` as they were written, by the name of the stage.
        stages: the entries of `stages` as they were written.
        inputs: names that are taken already.
        seed: the recipe's.
    """
    result = Sweeps(dict(stages))
    if not sweeps:
        return result
    for name, form in sweeps.items():
        _Sweeper(name, form, stages, set(sweeps), {*stages, *inputs}, stage_types, seed, result).write()
    _refuse_trials_in_comparisons(stages, stage_types, result)
    _drop_replaced(result, stage_types)
    return result


class _Sweeper:
    """Writes out one sweep, or reports what is wrong with it and leaves its stage as it is."""

    def __init__(
        self,
        target: str,
        form: Any,
        stages: Mapping[str, Any],
        targets: set[str],
        taken: set[str],
        stage_types: Mapping[str, StageTypeLike],
        seed: int,
        result: Sweeps,
    ) -> None:
        self._target, self._form, self._stages, self._targets = target, form, stages, targets
        self._taken, self._types, self._seed, self._result = taken, stage_types, seed, result
        self._path: FieldPath = (SECTION, target)
        self._written: dict[str, FieldPath] = {}
        """Place of the values by field."""

    def write(self) -> None:
        before = len(self._result.problems)
        if not self._check_form() or len(self._result.problems) > before:
            return
        fields = dict(self._fields())
        if len(self._result.problems) > before:
            return
        trials = self._settings(fields)
        if len(self._result.problems) == before:
            self._write_out(fields, trials)

    def _say(self, path: FieldPath, text: str, *, at_key: bool = False) -> None:
        self._result.problems.append(Problem((*self._path, *path), text, at_key=at_key))

    def _check_form(self) -> bool:
        name, form = self._target, self._form
        if name not in self._stages:
            text = f"{unknown(name, list(self._stages), what='stage')}; a sweep has the name of the stage whose model it chooses"
            self._say((), text, at_key=True)
            return False
        entry = self._stages[name]
        if not isinstance(entry, dict) or not NODE_NAME.fullmatch(name):
            return False  # reported where it stands
        if (kind := kind_of_entry(entry, self._types)) not in ("model", ""):
            self._say((), f"'{name}' makes {kind_phrase(kind)}; only a stage that makes a model can be swept", at_key=True)
        if not isinstance(form, dict):
            self._say((), f"expected a mapping with fields, prompts and scorer, got {show_value(form)}")
            return False
        try:
            Sweep.model_validate({key: form[key] for key in Sweep.model_fields if key in form})
        except ValidationError as error:
            for problem in problems_of(error, Sweep, form, Place(self._path)):
                self._result.problems.append(problem._replace(path=(*self._path, *problem.path)))
        if "seeds" in form:
            self._say(("seeds",), f"give them to the stage: stages.{name}.seeds", at_key=True)
        for key in FILLED_BY_SWEEP:
            if key in form:
                self._say((key,), "a sweep fills this in; remove it", at_key=True)
        return True

    def _fields(self) -> Iterator[tuple[str, Choices]]:
        """Every field with its values, in the order of the file."""
        for written, value in _flat(self._form["fields"]):
            name, path = ".".join(written), ("fields", *written)
            if name in self._written:
                self._say(path, f"'{name}' is here twice", at_key=True)
                continue
            self._written[name] = (*self._path, *path)
            stage, *inner = name.split(".")
            entry = self._stages.get(stage)
            if stage not in self._stages or not inner:
                self._say(path, self._no_field(name), at_key=True)
            elif isinstance(entry, dict) and (choices := self._choices(path, entry, tuple(inner), value)):
                yield name, choices

    def _no_field(self, name: str) -> str:
        meant = f"{self._target}.{name}"
        block = self._config_of(self._stages[self._target], ())
        if block and name.partition(".")[0] in block[0].model_fields:
            return f"expected STAGE.FIELD; did you mean '{meant}'?"
        first, _, rest = name.partition(".")
        near = nearest(first, self._stages)
        hint = f"; did you mean '{near}.{rest}'?" if near and rest else f", such as {self._target}.learning_rate"
        return f"expected STAGE.FIELD with a stage of this recipe{hint}"

    def _config_of(self, entry: Mapping[str, Any], path: FieldPath) -> tuple[type[StrictModel], FieldPath, Any] | None:
        """The configuration that a field of an entry belongs to, the field's path in it, and the value around it."""
        if is_rounds(entry) and path and path[0] in FILLED and path[0] in self._types:
            return self._types[str(path[0])].config_type, path[1:], entry.get(str(path[0]))
        stage = entry.get("stage")
        return (self._types[stage].config_type, path, entry) if isinstance(stage, str) and stage in self._types else None

    def _choices(self, path: FieldPath, entry: Mapping[str, Any], inner: FieldPath, value: Any) -> Choices | None:
        if inner[-1] in ("seed", "seeds", "stage"):
            what = "the type of a stage" if inner[-1] == "stage" else "a seed, which is no setting: give the stage seeds"
            self._say(path, f"this is {what}", at_key=True)
            return None
        whole = False
        if found := self._config_of(entry, inner):
            config_type, inside, around = found
            if refusal := _refused(config_type, inside, around):
                self._say(path, refusal, at_key=True)
                return None
            alternatives = follow((config_type,), around, inside)[0]
            whole = int in alternatives and float not in alternatives
        if isinstance(value, dict) and (meant := values_meant(value)):
            self._say(path, f"expected a list of values, or a range; write {meant}")
        elif isinstance(value, dict) and value:
            return self._range(path, value, whole=whole)
        elif not isinstance(value, list):
            self._say(
                path, f"expected a list of values, or {{log_uniform: [LOW, HIGH]}}, got {show_value(value)}{as_list(value)}"
            )
        elif not value:
            self._say(path, "expected at least one value, got an empty list")
        elif twice := next((index for index, item in enumerate(value) if as_text(item) in map(as_text, value[:index])), 0):
            self._say((*path, twice), f"{as_text(value[twice])} is here twice")
        else:
            return Choices(value)
        return None

    def _range(self, path: FieldPath, value: Mapping[str, Any], *, whole: bool) -> Choices | None:
        ((kind, ends),) = value.items()
        numbers = isinstance(ends, list) and all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
        if not numbers or len(ends) != 2 or not ends[0] < ends[1]:
            self._say((*path, kind), f"expected two numbers, the lower first, got {as_text(ends)}")
        elif kind == "log_uniform" and ends[0] <= 0:
            self._say((*path, kind, 0), f"must be more than 0 for log_uniform, got {as_text(ends[0])}")
        elif self._form.get("trials") is None:
            self._say(path, "a range has no end of values; write trials beside fields: how many to draw")
        else:
            return Choices(kind=kind, low=ends[0], high=ends[1], whole=whole)
        return None

    def _settings(self, fields: Mapping[str, Choices]) -> list[dict[str, Any]]:
        size, wanted = grid_size(fields), self._form.get("trials")
        seed = self._form.get("seed", self._seed)
        if wanted is None:
            if size is not None and size > MAX_TRIALS:
                text = f"these values have {size} combinations, more than {MAX_TRIALS}; write trials: how many of them to draw"
                self._say(("fields",), text)
                return []
            return list(grid(fields))
        if not isinstance(seed, int):
            return []  # the choice reports its seed
        # The whole grid needs no draw.
        if size == wanted and not any(choices.kind for choices in fields.values()):
            return list(grid(fields))
        found = [] if size is not None and size < wanted else drawn(fields, wanted, seed)
        if len(found) < wanted:
            self._say(("trials",), f"there are only {size or len(found)} different trials, got {wanted}")
        return found

    def _write_out(self, fields: Mapping[str, Choices], settings: Sequence[dict[str, Any]]) -> None:
        made: dict[str, Any] = {}
        trials: dict[str, Trial] = {}
        names: dict[tuple[str, str], str] = {}
        """Name of a copy, by stage and by the settings that reach it."""
        reached: set[str] = set()
        copied: set[str] = set()
        for number, chosen in enumerate(settings, start=1):
            entries = self._with_settings(chosen)
            needs = _needs(self._target, entries, self._types)
            reached |= {name for name in chosen if name.partition(".")[0] in needs}
            affected = _affected(needs, {name.partition(".")[0] for name in chosen})
            copied |= affected
            own: dict[str, str] = {}
            for stage in affected:
                relevant = {name: value for name, value in chosen.items() if name.partition(".")[0] in needs[stage]}
                fresh = f"{self._target}-trial-{number}" + ("" if stage == self._target else f"-{stage}")
                own[stage] = names.setdefault((stage, as_text(relevant)), fresh)
            for stage in affected:
                if own[stage] not in made:
                    made[own[stage]] = self._copy(own[stage], stage, entries[stage], own, chosen, fields)
            name = own.get(self._target, "")
            trials.setdefault(name, Trial(name, label(chosen, self._target), chosen))
        if self._refuse(fields, reached, copied, made):
            return
        # By value, so that the choice does not run again where only the order of the settings changes.
        in_order = sorted(trials.values(), key=lambda trial: by_value(trial.settings))
        choice = {key: value for key, value in self._form.items() if key not in Sweep.model_fields}
        made[self._target] = {"stage": CHOICE_STAGE, "models": {trial.label: trial.name for trial in in_order}, **choice}
        self._result.origins[("stages", self._target)] = self._path
        self._result.trials[self._target] = list(trials.values())
        self._result.copied |= copied - {self._target}
        self._put(made)

    def _with_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        entries = dict(self._stages)
        for name, value in settings.items():
            stage, *inner = name.split(".")
            if entries[stage] is self._stages[stage]:
                entries[stage] = copy.deepcopy(entries[stage])
            _put_in(entries[stage], inner, value)
        return entries

    def _copy(
        self,
        name: str,
        stage: str,
        entry: dict[str, Any],
        own: Mapping[str, str],
        settings: Mapping[str, Any],
        fields: Mapping[str, Choices],
    ) -> dict[str, Any]:
        """A stage of a trial, which names the stages of its trial."""
        new, origins = copy.deepcopy(entry), self._result.origins
        for path, reference in references_of(entry, self._types):
            if reference in own:
                _put_in(new, path, own[reference])
        base: FieldPath = ("stages", name)
        origins[base] = ("stages", stage)
        for field_name, value in settings.items():
            first, *inner = field_name.split(".")
            if first == stage:
                index = [place for place, one in enumerate(fields[field_name].values) if as_text(one) == as_text(value)]
                origins[(*base, *inner)] = (*self._written[field_name], *index)
        return new

    def _refuse(self, fields: Mapping[str, Choices], reached: set[str], copied: set[str], made: Mapping[str, Any]) -> bool:
        before = len(self._result.problems)
        path = self._path
        for name in fields:
            if name not in reached:
                needs = [stage for stage in _needs(self._target, self._stages, self._types) if stage != self._target]
                others = f"; fields of these stages can be: {listing([self._target, *needs])}"
                text = f"'{self._target}' does not need '{name.partition('.')[0]}', so this changes nothing of it{others}"
                self._result.problems.append(Problem(self._written[name], text, at_key=True))
        for other in sorted((copied & self._targets) - {self._target}):
            text = f"every trial would need a sweep of '{other}' of its own; put the fields of both into one of them"
            self._result.problems.append(Problem(path, text, at_key=True))
        for name in made:
            if name in self._taken:
                text = f"this makes a stage called '{name}', and that name is in use; rename one"
                self._result.problems.append(Problem(path, text, at_key=True))
            elif not NODE_NAME.fullmatch(name):
                text = f"this makes a stage called '{name}', and names have at most 64 characters; shorten it"
                self._result.problems.append(Problem(path, text, at_key=True))
                break
        return len(self._result.problems) > before

    def _put(self, made: Mapping[str, Any]) -> None:
        """Put the trials in the place of the swept stage."""
        stages: dict[str, Any] = {}
        for name, entry in self._result.stages.items():
            stages |= made if name == self._target else {name: entry}
        self._result.stages = stages


def _flat(fields: Mapping[str, Any], path: Written = ()) -> Iterator[tuple[Written, Any]]:
    """Every field with its values; `dpo: {beta: […]}` is `dpo.beta: […]`."""
    for key, value in fields.items():
        is_field = isinstance(value, dict) and value and not values_meant(value)
        if is_field and not (len(value) == 1 and next(iter(value)) in RANGES):
            yield from _flat(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _refused(config_type: type[StrictModel], path: FieldPath, around: Any) -> str:
    """Why a field cannot be swept; empty if it can."""
    value: Any = around
    alternatives: Any = (config_type,)
    for key in path:
        value = value if isinstance(value, (dict, list)) else {}
        model = fitting_model(alternatives, value)
        if model is not None and str(key) not in model.model_fields:
            return unknown_key(str(key), value, list(model.model_fields), Place(), model).text
        if model is not None and issubclass(model, StrictModel) and key in execution_fields(model):
            return "this says how the work is done and changes no result, so all trials would be the same"
        alternatives = below(alternatives, value, key)
        if not alternatives:
            return "there is no such field"
        value = value.get(key) if isinstance(value, dict) else None
    return ""


def _needs(target: str, entries: Mapping[str, Any], types: Mapping[str, StageTypeLike]) -> dict[str, set[str]]:
    """Of a stage and of every stage that it needs: all stages that it needs, itself among them."""
    direct: dict[str, list[str]] = {}
    ahead = [target]
    while ahead:
        name = ahead.pop()
        if name not in direct:
            direct[name] = [ref for ref in _names_in(entries[name], types) if ref in entries]
            ahead += direct[name]
    needs = {name: {name, *others} for name, others in direct.items()}
    # As many times as the longest chain, at most; a circle, which is reported elsewhere, ends it too.
    for _ in direct:
        needs = {name: {name, *itertools.chain.from_iterable(needs[other] for other in others)} for name, others in needs.items()}
    return needs


def _affected(needs: Mapping[str, set[str]], changed: set[str]) -> set[str]:
    return {name for name, others in needs.items() if others & changed}


def _put_in(entry: Any, path: Sequence[str | int], value: Any) -> None:
    for key in path[:-1]:
        if isinstance(entry, dict) and not isinstance(entry.get(key), (dict, list)):
            entry[key] = {}
        entry = entry[key]
    entry[path[-1]] = value


def _names_in(entry: Any, types: Mapping[str, StageTypeLike]) -> list[str]:
    return [name for _, name in references_of(entry, types)] if isinstance(entry, dict) else []


def _drop_replaced(result: Sweeps, types: Mapping[str, StageTypeLike]) -> None:
    """Take out the stages that nothing but trials needs, which have copies of them."""
    dropped = result.copied & result.stages.keys()
    names = {name: set(_names_in(entry, types)) for name, entry in result.stages.items()}
    while used := dropped & set().union(*(of for name, of in names.items() if name not in dropped)):
        dropped -= used
    result.stages = {name: entry for name, entry in result.stages.items() if name not in dropped}


def _refuse_trials_in_comparisons(stages: Mapping[str, Any], types: Mapping[str, StageTypeLike], result: Sweeps) -> None:
    trials = {trial.name: swept for swept, found in result.trials.items() for trial in found}
    for name, entry in stages.items():
        if isinstance(entry, dict) and kind_of_entry(entry, types) == "comparison":
            for path, reference in references_of(entry, types):
                if reference in trials:
                    text = f"'{reference}' is a trial; only the chosen one, '{trials[reference]}', may meet held-out prompts"
                    result.problems.append(Problem(("stages", name, *path), text))
