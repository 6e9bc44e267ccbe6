"""How advice names a setting: as a recipe has it, or as an option of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_AS_OPTIONS = ContextVar("as_options", default=False)


@contextmanager
def advise_options() -> Iterator[None]:
    """Advice in this context is for somebody who has written options and no recipe."""
    token = _AS_OPTIONS.set(True)
    try:
        yield
    finally:
        _AS_OPTIONS.reset(token)


def for_options() -> bool:
    """Whether advice is about options."""
    return _AS_OPTIONS.get()


def setting(field: str, value: str) -> str:
    """`on_invalid: drop`, or `--on-invalid drop`."""
    return f"--{field.replace('_', '-')} {value}" if for_options() else f"{field}: {value}"


def mapped_columns(mapping: Mapping[str, str]) -> str:
    """`columns: {prompt: Q}`, or `--columns prompt=Q`."""
    if for_options():
        return " ".join(f"--columns {field}={column}" for field, column in mapping.items())
    return f"columns: {{{', '.join(f'{field}: {column}' for field, column in mapping.items())}}}"
