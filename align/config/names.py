"""Which name was meant: misspelt ones, those of other tools, and those that belong elsewhere in a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel

from align.config.other_tools import Word, all_words, plain, words_for
from align.config.reference import FieldPath
from align.config.shape import is_model, members

LISTED_CHARACTERS = 110
"""A list of names in a message is cut near this length."""
ALL_CHARACTERS = 400
"""The same for a list that should be whole: five lines of a terminal."""
LOCAL_FOLDERS = (
    "data",
    "models",
    "model",
    "datasets",
    "dataset",
    "runs",
    "recipes",
    "outputs",
    "output",
    "checkpoints",
    "inputs",
)
"""Names of folders that nobody on the hub has."""
MISSPELT = 0.75
"""Names at least this alike are one name, misspelt."""
LITTLE = 0.4
"""Names less alike than this have nothing to do with each other."""
NOTHING: Mapping[str, FieldPath] = MappingProxyType({})
LONGEST_NAME = 200
"""No name is as long; comparing texts of a megabyte takes minutes."""
NOT_FAR = 0.6
"""Names at least this alike may be: better a guess than none."""


def show_path(path: FieldPath) -> str:
    """A path as people write it: `stages.compare.models.0`."""
    return ".".join(str(part) for part in path)


def nearest(given: str, known: Iterable[str], *, likeness: float = NOT_FAR) -> str | None:
    """The known name that was most likely meant, or None."""
    if len(given) > LONGEST_NAME:
        return None
    # difflib takes letters in another case, and - and _, for different letters.
    by_style = {plain(name): name for name in known}
    near = difflib.get_close_matches(plain(given), by_style, n=1, cutoff=likeness)
    return by_style[near[0]] if near else None


def by_likeness(given: str, known: Iterable[str]) -> list[str]:
    """Names in the order in which they may have been meant."""
    return sorted(known, key=lambda name: -_likeness(plain(given[:LONGEST_NAME]), plain(name)))


def _likeness(given: str, name: str) -> float:
    """0, or from LITTLE to 1: how alike the letters are, or how many words they share, whatever is more."""
    words, others = given.split("_"), name.split("_")
    shared = [max(_ratio(word, other) for other in others) for word in words]
    likeness = max(_ratio(given, name), sum(share for share in shared if share > MISSPELT) / max(len(words), len(others)))
    # Names that share a few letters by chance keep their order.
    return likeness if likeness >= LITTLE else 0.0


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def listing(names: Iterable[str], *, limit: int = LISTED_CHARACTERS) -> str:
    """Names joined by commas, cut where they would become too long."""
    shown = ""
    for name in names:
        if len(shown) + len(name) > limit:
            return f"{shown}, …"
        shown += f", {name}" if shown else name
    return shown


def one_of(names: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def unknown(given: str, known: Sequence[str], *, what: str = "key") -> str:
    """The message for a name that does not exist."""
    near = nearest(given, known)
    if near is not None:
        return f"unknown {what}; did you mean '{near}'?"
    return (
        f"unknown {what}; valid: {listing(by_likeness(given, known), limit=ALL_CHARACTERS)}"
        if known
        else (f"unknown {what}; there is none to name")
    )


def unknown_stage_type(given: str, known: Sequence[str]) -> str:
    """The message for a type of stage that does not exist, which may be one of another tool."""
    for word in words_for("stages", given):
        near = [name for name in word.here if name in known]
        if word.missing:
            return f"unknown stage type; {word.note.replace('$', given)}"
        if near:
            return f"unknown stage type; did you mean '{near[0]}'?{f' {word.note}' if word.note else ''}"
    return unknown(given, known, what="stage type")


def stage_type_of(name: str, known: Iterable[str]) -> str | None:
    """The type of stage that a name is, perhaps in another tool's words."""
    words = [target for word in words_for("stages", name) if not word.missing for target in word.here]
    return next((kind for kind in (name, *words) if kind in known), None)


@dataclass(frozen=True)
class Place:
    """The section of a document in which a key stands, for what the key may mean there or elsewhere."""

    path: FieldPath = ()
    """Path of the section, from the top of the document."""
    extra_keys: Sequence[str] = ()
    """Keys that it has besides the fields of its model; they are listed first."""
    hidden_keys: Sequence[str] = ()
    """Fields that are not to be written."""
    inner: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    """Sections in it, beyond those that its model's fields hold."""
    elsewhere: Callable[[], Mapping[str, type[BaseModel]]] = dict
    """Other sections of a recipe, by what they are: `sft`, `inputs of models`. Called last, since it loads every stage."""
    outer: type[BaseModel] | None = None
    """Model of the section around it."""


NO_PLACE = Place()


class Meant(NamedTuple):
    """What is said about an unknown key."""

    text: str
    key: str | None = None
    """The key of the same section that was meant."""


class _Unknown(NamedTuple):
    """An unknown key, and what it may stand for."""

    given: str
    section: Mapping[str, Any]
    """The mapping that has it."""
    known: Sequence[str]
    """Keys that the section can have."""
    inner: Mapping[str, FieldPath]
    """Keys of the sections inside it."""
    words: Sequence[Word]
    """What the key is in other tools."""


def unknown_key(
    given: str, section: Mapping[str, Any], known: Sequence[str], place: Place, model: type[BaseModel] | None
) -> Meant:
    """What an unknown key was meant to be.

    Args:
        given: the key.
        section: the mapping that has it.
        known: keys that the section can have.
        place: where the section is.
        model: the section's model.
    """
    inner = dict(_inner_keys(model, place))
    words = words_for("keys", given)
    is_nothing_here = bool(words) and not any(word.here for word in words)
    misspelt = None if is_nothing_here else nearest(given, known, likeness=MISSPELT)
    if not words and not misspelt and (other := nearest(given, all_words("keys"), likeness=0.85)):
        # A misspelt word of another tool.
        words = words_for("keys", other)
    key = _Unknown(given, section, known, inner, words)
    return (
        _same_style(given, known)
        or _section_of_other_tool(key, model)
        or _other_word(key, place)
        or (Meant(f"unknown key; did you mean '{misspelt}'?", misspelt) if misspelt else None)
        or _other_section(given, section, inner, words, place)
        or _no_such_key(given, known, inner, words, place)
    )


def _same_style(given: str, known: Sequence[str]) -> Meant | None:
    same = next((name for name in known if plain(name) == plain(given)), None)
    return Meant(f"unknown key; did you mean '{same}'?", same) if same else None


def _section_of_other_tool(key: _Unknown, model: type[BaseModel] | None) -> Meant | None:
    """For a mapping, such as `adam: {lr: 5e-7}`: its keys that are keys of this section, under their names here."""
    value = key.section.get(key.given)
    own = [target for word in key.words for target in word.here if target in key.known or target in key.inner]
    if not isinstance(value, dict) or model is None or any(_takes_mapping(model, target) for target in own):
        return None
    found = {target: inside for target, inside in keys_inside(value, key.known, key.inner).items() if target not in own}
    return Meant(f"unknown key; did you mean '{next(iter(found))}'? Write {as_written(found)} in its place.") if found else None


def as_written(values: Mapping[str, Any]) -> str:
    """Keys and plain values as a recipe has them; those with a dot stand in a mapping."""
    plain_values = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    parts = [f"{key}: {value}" for key, value in plain_values.items() if "." not in key]
    for outer in dict.fromkeys(key.partition(".")[0] for key in plain_values if "." in key):
        inside = {key.partition(".")[2]: value for key, value in plain_values.items() if key.startswith(f"{outer}.")}
        inside = ({"method": "lora"} if outer == "peft" else {}) | inside
        parts.append(f"{outer}: {{{', '.join(f'{key}: {value}' for key, value in inside.items())}}}")
    return ", ".join(parts)


def keys_inside(value: Mapping[str, Any], known: Sequence[str], inner: Mapping[str, FieldPath] = NOTHING) -> dict[str, Any]:
    """The plain values in a mapping, at any depth, by the keys here that they are for."""
    found: dict[str, Any] = {}
    for key, inside in value.items():
        if isinstance(inside, dict):
            found |= {target: given for target, given in keys_inside(inside, known, inner).items() if target not in found}
        elif not isinstance(inside, list):
            words = [(target, word) for word in words_for("keys", str(key)) if not word.missing for target in word.here]
            if key in known or key in inner:
                found.setdefault(str(key) if key in known else show_path(inner[key]), inside)
            elif match := next(((to, word) for to, word in words if to in known or to.rpartition(".")[2] in inner), None):
                target, word = match
                found.setdefault(target, word.value_for(str(key), inside) or inside)
    return found


def _takes_mapping(model: type[BaseModel], key: str) -> bool:
    info = model.model_fields.get(key)
    origins: list[Any] = [get_origin(part) for part in members(info.annotation)] if info else []
    return dict in origins or (info is not None and any(map(is_model, members(info.annotation))))


def _other_word(key: _Unknown, place: Place) -> Meant | None:
    """What another tool's word is in this section or in one inside it."""
    for word in key.words:
        for target in _in_order_for(word.here, key.section.get(key.given)):
            if place.path:
                target = target.removeprefix(f"{place.path[-1]}.")
            if target in key.known:
                return _say(key.given, key.section, target, word, None)
            if path := key.inner.get(target.rpartition(".")[2]):
                return _say(key.given, key.section, target, word, (*place.path, *path))
    return None


def _other_section(
    given: str, section: Mapping[str, Any], inner: Mapping[str, FieldPath], words: Sequence[Word], place: Place
) -> Meant | None:
    """Where else the key, or its name here, is one: in a section inside, around, or elsewhere."""
    if path := inner.get(plain(given)):
        return Meant(f"unknown key; did you mean '{show_path((*place.path, *path))}'?")
    examples = {target: _example(given, section, target, word) for word in words if not word.missing for target in word.here}
    targets = {plain(given): "", **examples}
    for target in targets:
        if place.outer is not None and target.partition(".")[0] in place.outer.model_fields:
            full = show_path((*place.path[:-1], target))
            return Meant(f"unknown key; did you mean '{full}'? It goes beside '{place.path[-1]}', not into it.")
    if any(word.missing for word in words):
        return None
    for target, example in targets.items():
        if having := [what for what, model in place.elsewhere().items() if target.partition(".")[0] in model.model_fields]:
            there = f": {example}" if "." in target and example else ""
            return Meant(f"unknown key; '{target}' is a key of {listing(having)}{there}")
    return None


def _no_such_key(given: str, known: Sequence[str], inner: Mapping[str, FieldPath], words: Sequence[Word], place: Place) -> Meant:
    if words:
        notes = (word.note_on(plain(given), None) for word in sorted(words, key=lambda word: not word.missing))
        note = next(filter(None, notes), "")
        return Meant(f"unknown key; there is none like it here{f'. {note}' if note else ''}")
    if near := nearest(given, known):
        return Meant(f"unknown key; did you mean '{near}'?", near)
    if near := nearest(given, inner):
        return Meant(f"unknown key; did you mean '{show_path((*place.path, *inner[near]))}'?")
    return Meant(unknown(given, known))


def _in_order_for(targets: Sequence[str], value: Any) -> Sequence[str]:
    """The names here for a word; of a path and an id on the hub, the one that the value looks like comes first."""
    if "path" not in targets or not isinstance(value, str):
        return targets
    return sorted(targets, key=lambda target: (target == "path") == looks_like_hub_id(value))


def looks_like_hub_id(text: str) -> bool:
    """Whether a text is `owner/name`, and no path that says so."""
    owner, slash, name = text.partition("/")
    is_plain = all(
        part and not part.startswith(".") and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        for part in (owner, name)
    )
    return bool(slash) and is_plain and owner not in LOCAL_FOLDERS


def _say(given: str, section: Mapping[str, Any], target: str, word: Word, path: FieldPath | None) -> Meant:
    """The message for the word of another tool, with what to write where that is not simply the other key."""
    example = _example(given, section, target, word)
    text = f"unknown key; did you mean '{target if path is None else show_path(path)}'?"
    text += f" Write {example}." if example else ""
    note = word.note_on(plain(given), target)
    return Meant(f"{text} {note}" if note else text, target if path is None else None)


def _example(given: str, section: Mapping[str, Any], target: str, word: Word) -> str:
    value, outer = section.get(given), target.partition(".")[0]
    new_value = word.value_for(plain(given), value)
    if isinstance(value, (dict, list)) or (outer != target and isinstance(section.get(outer), dict)):
        return ""
    if word.times and (part := _value_of(word.times, section)) and isinstance(value, int):
        return f"{target}: {value * part}, micro_batch_size: {part}"
    if new_value is not None:
        key = target.rpartition(".")[2]
        inside = f"method: {new_value}" if key == "method" else f"method: lora, {key}: {new_value}"
        return f"peft: {{{inside}}}" if outer == "peft" != target else f"{target}: {new_value}"
    if "$" in word.write:
        return word.write.replace("$", str(value)) if type(value) in (str, int, float) else ""
    return word.write


def _value_of(key: str, section: Mapping[str, Any]) -> int | None:
    """The whole number that a section has under a key, or under a word for it."""
    values = (
        value for name, value in section.items() if name == key or any(key in word.here for word in words_for("keys", name))
    )
    return next((value for value in values if type(value) is int), None)


def _inner_keys(model: type[BaseModel] | None, place: Place) -> Iterator[tuple[str, FieldPath]]:
    """Keys of the sections inside a section, each with its path from there; the first of a name wins."""
    sections = dict(place.inner)
    for name, info in model.model_fields.items() if model else ():
        for alternative in members(info.annotation):
            if is_model(alternative):
                for key in alternative.model_fields:
                    sections.setdefault(f"{name}.{key}", alternative)
    found: dict[str, FieldPath] = {}
    for section, inner in sections.items():
        name, dot, key = section.partition(".")
        for inner_key in (key,) if dot else inner.model_fields:
            found.setdefault(inner_key, (name, inner_key))
    yield from found.items()
