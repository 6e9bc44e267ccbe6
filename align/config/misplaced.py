"""Keys that give a recipe its shape, under another name or in another place: each is reported once and put right.

The rest of the recipe is then checked as if they had been right, since one wrong key must not give six problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from align.config.base import Problem
from align.config.entry import is_rounds
from align.config.form import Rounds
from align.config.names import Place, nearest, unknown_key
from align.config.other_tools import plain, words_for
from align.config.reference import FieldPath
from align.config.source import Document
from align.errors import RecipeError

TOP_KEYS = ("name", "seed", "inputs", "stages", "sweep")
SECTIONS: Mapping[str, str] = {"inputs": "kind", "stages": "stage"}
"""Keys at the top whose entries are named by the recipe, and the key that says what an entry is."""
FOREIGN = 3
"""A file with this many keys of other tools at its top, and no stages, is a configuration of one of them."""


def put_right(document: Document, elsewhere: Callable[[], Mapping[str, type[BaseModel]]]) -> Iterator[Problem]:
    """Report unknown keys at the top, and entries whose `stage` or `kind` has another name; move what was meant.

    Args:
        document: a mapping.
        elsewhere: the sections of a recipe, as in `Place`.
    Raises:
        RecipeError: the document is a configuration of another tool.
    """
    top = document.value
    strangers = [key for key in top if key not in TOP_KEYS]
    if "stages" not in top and sum(any(words_for("keys", key)) for key in strangers) >= FOREIGN:
        raise RecipeError(
            f"{document.key_position((strangers[0],))}: '{strangers[0]}' and {len(strangers) - 1} more keys are of another tool",
            hint="A recipe has the keys name, inputs and stages; `align docs from-other-tools` has the key here for each.",
        )
    for key in strangers:
        path = _path_of_top(key, top[key])
        if path:
            yield Problem((key,), f"unknown key; did you mean '{'.'.join(path)}'? It has no place at the top.", at_key=True)
        else:
            meant = unknown_key(key, top, TOP_KEYS, Place(elsewhere=elsewhere), None)
            yield Problem((key,), meant.text, at_key=True)
            path = (meant.key,) if meant.key else ()
        if path:
            _move(document, (key,), path)
    for section, word in SECTIONS.items():
        entries = top.get(section)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and word not in entry and not _is_whole(section, entry) and (key := _key_for(word, entry)):
                yield Problem((section, name, key), f"unknown key; did you mean '{word}'?", at_key=True)
                document.move((section, name, key), (section, name, word))


def _path_of_top(key: str, value: Any) -> tuple[str, ...]:
    """Where a mapping at the top belongs that is a stage or an input by what it has."""
    if isinstance(value, dict):
        for section, word in SECTIONS.items():
            if word in value or (section == "stages" and "rounds" in value):
                return (section, key)
    return ()


def _move(document: Document, path: FieldPath, target: FieldPath) -> None:
    """Move a value, or the entries of a mapping into the mapping that is there already. Nothing is overwritten."""
    top = document.value
    if len(target) == 2 and target[0] not in top:
        document.put(target[:1], {}, document.value_position(path))
    there, value = top.get(target[0]), document.get(path)
    if len(target) == 2:
        if isinstance(there := top[target[0]], dict) and target[1] not in there:
            document.move(path, target)
    elif there is None and (isinstance(value, dict) or target[0] not in SECTIONS):
        document.move(path, target)
    elif isinstance(there, dict) and isinstance(value, dict):
        for name in [name for name in value if name not in there and _fits(str(target[0]), value[name])]:
            document.move((*path, name), (*target, name))


def _fits(section: str, entry: Any) -> bool:
    """Whether a value looks like an entry of a section; that of another tool's section would bring problems of its own."""
    return section not in SECTIONS or (
        isinstance(entry, dict) and bool(SECTIONS[section] in entry or "rounds" in entry or _key_for(SECTIONS[section], entry))
    )


def _is_whole(section: str, entry: Mapping[str, Any]) -> bool:
    """Whether an entry is rounds by all of its keys, and needs no `stage`. Reading the words of other tools takes longer."""
    return section == "stages" and is_rounds(entry) and entry.keys() <= Rounds.model_fields.keys()


def _key_for(word: str, entry: Mapping[str, Any]) -> str | None:
    """The key of an entry that was meant as `stage` or `kind`."""
    texts = [key for key, value in entry.items() if isinstance(value, str)]
    return nearest(word, texts, likeness=0.7) or next((key for key in texts if _means(key, word)), None)


def _means(key: str, word: str) -> bool:
    return any(word in group.here for group in words_for("keys", plain(key)))
