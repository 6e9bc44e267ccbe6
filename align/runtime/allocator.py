"""glibc's allocator, which torch uses on a CPU."""

from __future__ import annotations

import ctypes
import os

M_MMAP_THRESHOLD = -3
"""glibc's malloc.h: from how many bytes on a block is a mapping of its own."""
RETURNED_BYTES = 1 << 20
VARIABLE = "MALLOC_MMAP_THRESHOLD_"
"""The same, set by the user."""


def return_freed_memory() -> None:
    """Let this process give freed blocks of 1 MiB and more back at once; a value that the user has set stays.

    glibc keeps those of up to 32 MiB. Where layers are gathered, used and dropped between activations that stay, the holes are
    about as large as all activations. It costs page faults. Does nothing with another C library.
    """
    if VARIABLE not in os.environ and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
