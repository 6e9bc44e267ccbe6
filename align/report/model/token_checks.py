"""Checks of the tokenizer: its special tokens, and whether texts survive encoding and decoding."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from align.data.model_checks import special_tokens
from align.data.template import ChatFormat
from align.models.facts import ModelFacts
from align.report.model.check import ModelCheck, listed
from align.report.model.guard import GuardedTokenizer

TEXTS = {
    "English": "The quick brown fox, 12.5 % (see p. 3)!",
    "Korean": "안녕하세요, 오늘 날씨가 어때요?",
    "Korean, decomposed (NFD)": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "Chinese and Japanese": "今日は天気がいいですね。你好。",
    "emoji": "👍🏽 👨‍👩‍👧 🇰🇷",
    "spaces and tabs": "  two  spaces\tand a tab ",
    "line ends": "\nfirst\n\n\nsecond\n",
    "code": "def f(x):\n    return {'a': [x ** 2]}\n",
}
"""Texts that every byte-level tokenizer reproduces, by what they test."""
SPEED_SECONDS = 0.2


def check_end_of_sequence(tokenizer: GuardedTokenizer) -> ModelCheck:
    """Whether there is an end-of-sequence token, and its text becomes that one token."""
    name = "end_of_sequence"
    if tokenizer.eos_token_id is None:
        return ModelCheck(name, "info", "the tokenizer has none; a completion ends with the token that the template writes")
    ids = _ids(tokenizer, str(tokenizer.eos_token))
    if ids != [tokenizer.eos_token_id]:
        found = f"{tokenizer.eos_token!r} is token {tokenizer.eos_token_id}, but as text it becomes {ids}"
        return ModelCheck(name, "problem", found, "Make it a special token: tokenizer.add_special_tokens({'eos_token': …}).")
    return ModelCheck(name, "ok", f"{tokenizer.eos_token!r}, token {tokenizer.eos_token_id}")


def check_padding(chat_format: ChatFormat, num_tokens: int) -> ModelCheck:
    """Which token fills rows, and whether it is inside the vocabulary.

    Args:
        num_tokens: size of the vocabulary with added tokens.
    """
    tokenizer: Any = chat_format.tokenizer
    own, pad = tokenizer.pad_token_id, chat_format.pad_token_id
    if not 0 <= pad < num_tokens:
        found = f"{tokenizer.pad_token!r} is token {pad}, but the vocabulary has {num_tokens:,} tokens"
        return ModelCheck("padding", "problem", found, "Set pad_token to a token of the vocabulary.")
    if own == pad:
        return ModelCheck("padding", "ok", _named(tokenizer, [pad]))
    why = "the tokenizer has none" if own is None else f"the tokenizer's is {_named(tokenizer, [own])}, which ends a completion"
    return ModelCheck("padding", "info", f"{why}; align fills rows with {_named(tokenizer, [pad])}")


def check_stopping(chat_format: ChatFormat, facts: ModelFacts) -> ModelCheck:
    """Whether the files that servers read name the token that ends a completion."""
    tokenizer: Any = chat_format.tokenizer
    end, stops = chat_format.end_token_id, chat_format.stop_token_ids
    file, ids = next(iter(facts.end_token_ids.items()), ("", []))
    if end not in ids:
        named = f"{file} names {_named(tokenizer, ids)}" if ids else "neither generation_config.json nor config.json names one"
        found = f"a completion ends with {_named(tokenizer, [end])}, but {named}"
        advice = f"align stops at {_named(tokenizer, list(stops))}, and writes them into what it trains and exports."
        return ModelCheck("stopping", "info", found, advice)
    return ModelCheck("stopping", "ok", f"align and servers stop at {_named(tokenizer, list(stops))}")


def check_round_trip(chat_format: ChatFormat) -> ModelCheck:
    """Whether texts come back from tokens as they are."""
    changed: list[str] = []
    lost: list[str] = []
    for language, text in TEXTS.items():
        back = _decoded(chat_format, text)
        if back == text:
            continue
        (changed if chat_format.same_text(back, text) else lost).append(language)
    if "English" in lost:
        found = f"{TEXTS['English']!r} comes back as {_decoded(chat_format, TEXTS['English'])!r}"
        return ModelCheck("round_trip", "problem", found, "The tokenizer's files do not fit together; get the model again.")
    if not lost and not changed:
        return ModelCheck("round_trip", "ok", f"{len(TEXTS)} texts ({listed(list(TEXTS), 3)}) come back as they are")
    parts = [f"do not come back: {', '.join(lost)}"] if lost else []
    parts += [f"come back normalised: {', '.join(changed)}"] if changed else []
    advice = "Rows with such texts cannot be trained on with this model." if lost else ""
    return ModelCheck("round_trip", "info", "; ".join(parts), advice)


def check_control_tokens(tokenizer: GuardedTokenizer) -> ModelCheck:
    """Which texts become control tokens when a user writes them."""
    numbers = tokenizer.get_vocab()
    control = [token for token in special_tokens(tokenizer) if numbers.get(token) in _ids(tokenizer, f"a {token} b")]
    if not control:
        return ModelCheck("control_tokens", "ok", "no text of a user becomes a control token")
    return ModelCheck(
        "control_tokens",
        "info",
        f"become control tokens in a user's text: {listed(control)}",
        "`align data validate FILE --model MODEL` finds rows that have them.",
    )


def check_vocabulary(tokenizer: GuardedTokenizer, facts: ModelFacts) -> ModelCheck:
    """Whether every token has a row in the embedding table, and config.json says its size."""
    new = facts.chat_settings.add_tokens or []
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if token not in new}
    # Not the number of tokens: ids may have gaps.
    highest = max(vocabulary.values(), default=-1)
    # The tensor's own size where it is known; config.json can be wrong.
    table, rows = facts.embedding or ("config.json's vocab_size", facts.vocab_size)
    if rows is None:
        return ModelCheck("vocabulary", "info", f"{len(vocabulary):,} tokens; no tensor or setting says how many rows there are")
    if highest >= rows:
        beyond = sorted((token for token, number in vocabulary.items() if number >= rows), key=vocabulary.__getitem__)
        found = f"{listed(beyond)}: no row in {table}, which has {rows:,} ({highest + 1:,} are needed)"
        advice = "The tokenizer is not this model's, or tokens were added without model.resize_token_embeddings()."
        return ModelCheck("vocabulary", "problem", found, advice)
    if facts.embedding is not None and facts.vocab_size is not None and rows != facts.vocab_size:
        found = f"{table} has {rows:,} rows, but config.json's vocab_size is {facts.vocab_size:,}"
        return ModelCheck("vocabulary", "problem", found, "config.json is not that of the weights; get the model again.")
    spare = rows - highest - 1
    unused = f"; {spare:,} rows are spare" if spare else ""
    added = f"; a run adds {', '.join(new)}, with a row for each" if new else ""
    return ModelCheck("vocabulary", "ok", f"{len(vocabulary):,} tokens, {rows:,} rows in {table}{unused}{added}")


def check_head(facts: ModelFacts) -> ModelCheck:
    """Whether a language model has the head that it needs."""
    if not facts.is_language_model:
        return ModelCheck("head", "info", "a reward model: its head gives a score")
    if facts.embedding is None:
        return ModelCheck("head", "info", "align does not know the names of these tensors")
    if facts.tied:
        return ModelCheck("head", "ok", f"tied to {facts.embedding[0]}")
    if not facts.has_head:
        found = "config.json says that the head is a tensor of its own, but there is none"
        return ModelCheck("head", "problem", found, "Set tie_word_embeddings: true if it was trained so, or get the model again.")
    return ModelCheck("head", "ok", "a tensor of its own")


def check_weights(facts: ModelFacts) -> ModelCheck:
    """Whether the weights have as many layers, and as wide ones, as config.json says."""
    advice = "config.json is not that of the weights, or files are missing; get the model again."
    wanted, there = facts.num_layers, facts.stored_layers
    if wanted is not None and there is not None and there < wanted:
        return ModelCheck("weights", "problem", f"config.json says {wanted:,} layers, but the weights have {there:,}", advice)
    if facts.hidden_size is not None and facts.embedding_columns not in (None, facts.hidden_size):
        found = f"config.json's hidden_size is {facts.hidden_size:,}, but the embeddings have {facts.embedding_columns:,} columns"
        return ModelCheck("weights", "problem", found, advice)
    if there is None:
        return ModelCheck("weights", "info", "align does not know the names of these layers")
    return ModelCheck("weights", "ok", f"{there:,} layers, as config.json says" if wanted == there else f"{there:,} layers")


def check_context(tokenizer: GuardedTokenizer, facts: ModelFacts) -> ModelCheck:
    """How many tokens fit, and whether tokenizer and model agree."""
    own, bound = tokenizer.model_max_length, facts.context_tokens
    if bound is None:
        return ModelCheck("context", "info", "config.json sets no bound")
    if isinstance(own, int) and own < bound:
        return ModelCheck("context", "info", f"{bound:,} tokens by config.json, {own:,} by the tokenizer; align uses the former")
    return ModelCheck("context", "ok", f"{bound:,} tokens")


def check_speed(chat_format: ChatFormat) -> ModelCheck:
    """How fast texts become tokens, on this machine now."""
    texts = list(TEXTS.values()) * 100
    # Warm up, so that what only a first call does is not counted.
    chat_format.tokenize(texts[:1])
    tokens, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SPEED_SECONDS:
        tokens += sum(map(len, chat_format.tokenize(texts)))
    return ModelCheck("speed", "info", f"{tokens / seconds:,.0f} tokens/s here")


def check_tokenizer(tokenizer: GuardedTokenizer, folder: Path) -> ModelCheck:
    """Reports the loaded tokenizer; loading it was the check."""
    size = sum(file.stat().st_size for file in folder.glob("tokenizer*.json"))
    return ModelCheck("tokenizer", "ok", f"{len(tokenizer.get_vocab()):,} tokens, {size / 1e6:.1f} MB of files")


def _ids(tokenizer: GuardedTokenizer, text: str) -> list[int]:
    return list(tokenizer([text], add_special_tokens=False)["input_ids"][0])


def _decoded(chat_format: ChatFormat, text: str) -> str:
    ids = chat_format.tokenize([text])[0]
    return str(chat_format.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _named(tokenizer: GuardedTokenizer, ids: list[int]) -> str:
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    return listed([f"{tokens.get(number, 'a token it does not have')!r} ({number})" for number in ids])
