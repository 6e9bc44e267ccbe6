"""The shape of a row of a user's file, recognised by the names of its columns.

align/rows/table.py has the shapes of every kind; docs/formats.md shows a row of each. A shape fits a row that has a value (null
is none) in each of its required columns, whatever the case of their names. Where two fit, nothing is guessed: the row is an error
that names both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from align.errors import RecipeError
from align.rows.build import Build
from align.rows.problem import FieldProblem

Names = tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """One layout of a row: which columns hold the fields of a record. Column names are in lower case."""

    name: str
    build: Build
    """Makes records from rows of this shape."""
    required: Mapping[str, Names]
    """Field → columns that may hold it."""
    optional: Mapping[str, Names] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    """Columns that must be absent: with them, the row has another shape."""
    is_converted: bool = False
    """Whether such rows are another kind's, and read as this kind only where it is asked for."""

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.required) | frozenset(self.optional)


@dataclass(frozen=True)
class Fit:
    """A shape, and the row's column for each of its fields."""

    shape: Shape
    columns: Mapping[str, str]

    def describe(self) -> str:
        """The shape and its columns, as messages show them."""
        return f"{self.shape.name} ({', '.join(self.columns.values())})"


AUXILIARY = frozenset({"id", "system", "tools", "reference", "chosen_score", "rejected_score"})
"""Fields that do not decide a row's shape: where `columns` maps one, the other fields are still recognised."""


def as_mapping(columns: Mapping[str, str]) -> str:
    """As a recipe has it."""
    return f"{{{', '.join(f'{field}: {column}' for field, column in columns.items())}}}"


class Recogniser:
    """Finds the shape of rows by their columns.

    Args:
        kind: name of the kind of rows, for messages.
        known: the shapes that its rows may have.
        columns: field → column, as the user mapped them. Once a field that is not auxiliary is mapped, the others are looked for
            under their own names only.
    Raises:
        RecipeError: if no shape has all the fields that `columns` maps.
    """

    def __init__(self, kind: str, known: Sequence[Shape], columns: Mapping[str, str]) -> None:
        mapped = columns.keys() - AUXILIARY
        shapes = [shape for shape in known if mapped <= shape.fields]
        if not shapes:
            turned = {column: field for field, column in columns.items()}
            if any(turned.keys() - AUXILIARY <= shape.fields for shape in known):
                raise RecipeError(
                    f"columns: {as_mapping(columns)} is the wrong way round; the field comes first, then the file's column",
                    hint=f"Write {as_mapping(turned)}.",
                )
            raise RecipeError(
                f"columns: no row of {kind} has {', '.join(sorted(mapped))} together",
                hint="Map the fields of one shape, such as {prompt: Q, completion: A}; `align docs formats` lists them.",
            )
        self._mapped = columns
        self._shapes = _unique(_with_columns(shape, columns, only_mapped=bool(mapped)) for shape in shapes)

    def find(self, names: Iterable[str]) -> Fit:
        """The shape of a row with values in the columns `names`.

        Where none fits, the closest one, without columns for the fields that the row lacks.

        Raises:
            FieldProblem: ambiguous_shape, if two fit.
        """
        names = list(names)
        folded: dict[str, list[str]] = {}
        for name in names:
            # A list, because `Prompt` and `prompt` may both be there; that is ambiguous and must not be decided by chance.
            folded.setdefault(str(name).lower(), []).append(name)
        fits = [fit for shape in self._shapes for fit in self._fits(shape, names, folded)]
        if len(fits) > 1:
            shown = " and ".join(fit.describe() for fit in _different(fits))
            raise FieldProblem("", "ambiguous_shape", f"can be read in two ways: {shown}; say by columns which fields are meant")
        return fits[0] if fits else self._closest(names, folded)

    def _fits(self, shape: Shape, names: list[str], folded: Mapping[str, list[str]]) -> list[Fit]:
        if shape.without & folded.keys():
            return []
        required = {name: self._columns_for(name, choices, names, folded) for name, choices in shape.required.items()}
        if not all(required.values()):
            return []
        optional = {name: self._columns_for(name, choices, names, folded) for name, choices in shape.optional.items()}
        # An optional field under its own name wins over its other names: rows that align writes have `reference`.
        optional = {name: [name] if name in found else found for name, found in optional.items() if found}
        fields = {**required, **optional}
        # Every combination of columns is a fit of its own, so that two columns for one field are found ambiguous.
        return [Fit(shape, dict(zip(fields, choice, strict=True))) for choice in itertools.product(*fields.values())]

    def _columns_for(self, name: str, choices: Names, names: list[str], folded: Mapping[str, list[str]]) -> list[str]:
        if name in self._mapped:
            # A mapped column is taken in its exact spelling.
            return [self._mapped[name]] if self._mapped[name] in names else []
        return [column for choice in choices for column in folded.get(choice, ())]

    def _closest(self, names: list[str], folded: Mapping[str, list[str]]) -> Fit:
        def present(shape: Shape) -> dict[str, str]:
            every = {name: self._columns_for(name, choices, names, folded) for name, choices in shape.required.items()}
            return {name: columns[0] for name, columns in every.items() if columns} | {
                name: self._mapped[name] for name in self._mapped if name in shape.fields
            }

        def missing(shape: Shape) -> int:
            return len(shape.required.keys() - present(shape).keys())

        def distance(shape: Shape) -> tuple[int, int]:
            # A short shape is no closer than the kind's usual one, unless the row has a field that tells them apart.
            num_present = len(shape.required) - missing(shape)
            own = present(shape).keys() - usual
            return -num_present, missing(shape) if own else 0

        usual = {name for shape in self._shapes if shape.name == self._shapes[0].name for name in shape.required}
        best = min((shape for shape in self._shapes if not shape.without & folded.keys()), key=distance)
        return Fit(best, present(best))


def _with_columns(shape: Shape, columns: Mapping[str, str], *, only_mapped: bool) -> Shape:
    """The shape with each field under its own name only, where the user has mapped the columns."""
    if not only_mapped:
        return shape
    # Other names are not tried: a column that happens to be called so would make the row ambiguous.
    required = {name: (name,) for name in shape.required}
    optional = {name: (name,) for name in shape.optional}
    return replace(shape, required=required, optional=optional, without=shape.without - set(columns.values()))


def _unique(shapes: Iterable[Shape]) -> list[Shape]:
    """Without shapes that fit only rows which an earlier shape reads from the same columns."""
    result: list[Shape] = []
    for shape in shapes:
        if not any(one.required == shape.required and one.without <= shape.without for one in result):
            result.append(shape)
    return result


def _different(fits: list[Fit]) -> list[Fit]:
    """Two of the fits, with different descriptions if there are such."""
    other = next((fit for fit in fits if fit.describe() != fits[0].describe()), fits[1])
    return [fits[0], other]
