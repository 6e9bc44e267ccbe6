"""Seeds for everything that draws at random, derived from a stage's seed."""

from __future__ import annotations

import hashlib
import json

SEED_BITS = 31
"""The widest seed that all generators here take: NumPy's old one stops at 32 bits, and engines add a candidate's number."""


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed below 2 ** 31 for what `names` say: the purpose, then what tells one draw from another (epoch, rank, prompt id).

    It is the first 31 bits of the SHA-256 of the JSON list `[seed, *names]`. Seeds of different names are unrelated, and adding
    a draw somewhere moves no other.
    """
    text = json.dumps([seed, *names], ensure_ascii=False, separators=(",", ":"))
    # A prompt id may hold half of a surrogate pair, which UTF-8 cannot.
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> (32 - SEED_BITS)
