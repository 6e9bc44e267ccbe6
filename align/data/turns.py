"""What a chat template writes around a completion, found by rendering two short conversations."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from align.records import Message

Render = Callable[[Sequence[Message], bool], str]
"""A conversation, and whether the generation prompt follows it, to the text that the model reads."""

PROBE = "Probe"
_OTHER_PROBE = "What else?"


@dataclass(frozen=True)
class Turns:
    """The texts around a completion."""

    generation_prompt: str
    """What every prompt ends with, from the end of the last user message."""
    opening: str
    """What the template writes between the generation prompt and a completion: nothing, a space, an empty thinking block."""
    closing: str
    """What follows a completion, up to where the next turn would begin."""
    begins_with_prompt: bool
    """False if the conversation with its completion does not begin with the prompt: R1's prompt opens a thinking block that a
    finished turn does not show."""
    difference: str
    """Where the two differ, for messages; empty if they do not."""


def find_turns(render: Render) -> Turns:
    """How the template shows one question and its answer.

    Raises:
        TemplateProblem: from `render`, if the template refuses such a conversation.
        ValueError: if the template does not show the completion as it is.
    """
    question, other = (Message(role="user", content=text) for text in (PROBE, _OTHER_PROBE))
    prompt = render([question], True)
    whole = render([question, Message(role="assistant", content=PROBE)], False)
    common = len(os.path.commonprefix([prompt[::-1], render([other], True)[::-1]]))
    generation_prompt = prompt[len(prompt) - common :]
    # The question holds the same word, so the completion is its last occurrence.
    place = whole.rfind(PROBE)
    if place < 0:
        raise ValueError(f"a completion {PROBE!r} is shown as {whole[-80:]!r}")
    header, closing = whole[:place], whole[place + len(PROBE) :]
    if header.startswith(prompt):
        return Turns(generation_prompt, header[len(prompt) :], closing, True, "")
    return Turns(generation_prompt, "", closing, False, difference(prompt, header))


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens outside the learnt vocabulary, by text: control tokens and the like."""
    return {str(token): int(number) for number, token in tokenizer.added_tokens_decoder.items()}


def leading_token(text: str, tokens: Iterable[str]) -> str | None:
    """The longest of `tokens` with which the text begins, after white space; None if there is none."""
    text = text.lstrip()
    return max((token for token in tokens if token.strip() and text.startswith(token)), key=len, default=None)


def difference(expected: str, found: str) -> str:
    """The two texts around the first character at which they differ."""
    # In spite of its module, it compares strings character by character.
    index = len(os.path.commonprefix([expected, found]))
    start = max(0, index - 20)
    return f"expected {expected[start : index + 30]!r}, found {found[start : index + 30]!r}"


def with_system(messages: Sequence[Message], setting: str) -> Sequence[Message]:
    """The messages, with system messages where `chat.system` wants them."""
    if setting == "template" or all(message.role != "system" for message in messages):
        return messages
    others = [message for message in messages if message.role != "system"]
    if setting == "first_user":
        said = "\n\n".join(message.content for message in messages if message.role == "system")
        first = next((place for place, message in enumerate(others) if message.role == "user"), None)
        if first is not None:
            others[first] = Message(role="user", content=f"{said}\n\n{others[first].content}")
    return others


PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>", "[UNK]")
"""Tokens that may fill rows, the best first. Fillings are masked, and no loss is taken on them."""
ZERO_BYTE = ("<0x00>", "\u0100")
"""The byte 0 as SentencePiece and as byte-level tokenizers spell it."""
RESERVED = ("reserved", "unused", "dummy")
MEDIA = ("image", "audio", "video", "vision")
"""Models put features of pictures and sounds in place of such tokens."""


def choose_padding(tokenizer: Any, *, end: int, stops: Sequence[int], used: str) -> int | None:
    """A token to pad with: the tokenizer's own, or else one that its vocabulary reserves.

    Args:
        end: token that ends a completion, which is never chosen: a trainer that hides paddings from the loss by their id would
            hide every end.
        stops: further tokens that stop the model; chosen only where they are the tokenizer's own padding.
        used: text of the template, whose tokens are not chosen.
    Returns:
        None if nothing fits.
    """
    own = tokenizer.pad_token_id
    if own is not None and own != end:
        return int(own)
    added = dict(sorted(added_tokens(tokenizer).items(), key=lambda item: item[1]))
    free = {
        text: number
        for text, number in added.items()
        if number not in (end, *stops) and not any(word in text.lower() for word in MEDIA)
    }
    named = [free[name] for name in PAD_NAMES if name in free]
    padding = [number for text, number in free.items() if "pad" in text.lower()]
    reserved = [number for text, number in free.items() if any(word in text.lower() for word in RESERVED)]
    unwritten = [number for text, number in free.items() if text not in used]
    vocabulary = tokenizer.get_vocab()
    # GPT-2 has no control token but its end; the byte 0 is the one token that no text contains.
    zero = [vocabulary[name] for name in ZERO_BYTE if name in vocabulary]
    return next(iter([*named, *padding, *reserved, *unwritten, *zero]), None)
