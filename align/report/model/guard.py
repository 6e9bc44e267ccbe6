"""A limit for an untrusted tokenizer: the length of its template's output for the short conversations of the checks."""

from __future__ import annotations

from typing import Any

from align.data.tokens import Tokenizer

MAX_RENDERED_CHARACTERS = 1 << 20
"""Longest output of a template for one of the short conversations of the checks."""


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
        """
        # Jinja's sandbox limits what a template may call, not how much text a loop may build.
        text = str(
            self._tokenizer.apply_chat_template(
                conversation, tokenize=tokenize, add_generation_prompt=add_generation_prompt, **variables
            )
        )
        if len(text) > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"it writes {len(text):,} characters for a few words")
        return text
