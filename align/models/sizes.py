"""How much goes through a model at once. Imports no torch, so that the memory estimate of a plan can read the same numbers."""

LOGITS_CHUNK_NUMBERS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits that exist at once: 64 MiB, or 0.5 GiB on a GPU, which smaller products would not keep busy."""
LOGITS_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Of those, how many have a copy at once: on a CPU as many as its cache holds."""
LARGEST_LOGITS_CHUNK = 4096
"""Tokens of a chunk, at most. On a CPU a vocabulary of up to 4,096 tokens has chunks of this size, on a GPU of up to 32,768."""
PAIR_ROW_TOKENS = {"cpu": 128, "cuda": 1024}
"""Tokens of a row that several pairs share; a longer pair gets a longer row. Longer rows need less padding, but cost more
attention, which grows with the square of a row and also computes what the mask hides."""
EPISODE_ROW_TOKENS = {"cpu": 192, "cuda": 1024}
"""The same for episodes, in online training."""
FORWARD_TOKENS = 8192
"""Tokens of a forward pass without gradients: a reference over pairs, or a reward model over held-out pairs."""
ENGINE_ROWS = 64
"""Completions that the transformers engine samples at once."""
DENSE_MASK_TOKENS = {"cpu": 32, "cuda": 4096}
"""Tokens of the longest row whose attention gets a mask of all pairs of tokens, where it could do without. With a
mask, padding is computed too."""
GRADIENTS_AT_ONCE = 1 << 24
"""Of a model that every process of an online training has whole: numbers that are copied at once to be summed over processes."""
ZERO3_NUMBERS_AT_ONCE = 1 << 25
"""Gradients that zero3 exchanges at once; parameters that it updates at once, or fetches ahead."""

TEACHER_LOGITS_SHARE = 4
"""Where a teacher's logits are computed too, a chunk is this many times smaller: see `divergence_tensors`."""


def logits_chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits exist at once, on a device of this type."""
    return max(1, min(LARGEST_LOGITS_CHUNK, LOGITS_CHUNK_NUMBERS.get(device, LOGITS_CHUNK_NUMBERS["cuda"]) // vocabulary))


def teacher_chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits, of student and teacher, exist at once, on a device of this type."""
    return max(1, logits_chunk_tokens(vocabulary, device) // TEACHER_LOGITS_SHARE)


def divergence_tensors(beta: float) -> int:
    """How many tensors of the size of its logits a chunk has at most, in the divergence from a teacher and its backward pass.

    `test_estimate_memory.py` counts them in a training.
    """
    return {0.0: 10, 1.0: 8}.get(beta, 14)
