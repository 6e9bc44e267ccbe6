"""Limits for an untrusted tokenizer: the length of its template's output, and the memory that rendering takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.data.tokens import Tokenizer

MAX_RENDERED_CHARACTERS = 1 << 20
"""Longest output of a template for one of the short conversations of the checks."""
RENDER_BYTES = 1 << 30
"""Memory that rendering may take in addition to what the process has already."""


class GuardedTokenizer:
    """A tokenizer whose template is rendered within limits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:
        return self._tokenizer(text, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool, **variables: Any) -> str:
        """As the tokenizer's own.

        Raises:
            ValueError: if the result is longer than `MAX_RENDERED_CHARACTERS`.
            MemoryError: if rendering takes more than `RENDER_BYTES`.
        """
        # Jinja's sandbox limits what a template may call, not how much text a loop may build.
        with _memory_limit(RENDER_BYTES):
            text = str(
                self._tokenizer.apply_chat_template(
                    conversation, tokenize=tokenize, add_generation_prompt=add_generation_prompt, **variables
                )
            )
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"it writes {len(text):,} characters for a few words")
        return text


@contextlib.contextmanager
def _memory_limit(extra_bytes: int) -> Iterator[None]:
    """Fail allocations that take the process more than `extra_bytes` beyond its present size; Linux only, no limit elsewhere."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    import resource

    present = int(status.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = present + extra_bytes
    # Never above a limit that holds already: the system refuses a soft limit above the hard one.
    bounds = [bound, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
