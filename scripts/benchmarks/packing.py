"""Seconds that packing takes, and how full its rows are, for 8,000 to a million samples.

    python scripts/benchmarks/packing.py

Lengths are drawn from a log-normal distribution (median 220 tokens, as chats have); writes scripts/benchmarks/packing.json.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from pathlib import Path
from typing import Any

from align.store.atomic import write_json
from align.training.packing import pack_first_fit

RESULT = Path(__file__).with_suffix(".json")
SAMPLES = (8_000, 64_000, 200_000, 1_000_000)
ROW_TOKENS = 2048


def measure(count: int) -> dict[str, Any]:
    generator = random.Random(count)
    lengths = [min(ROW_TOKENS, max(8, round(generator.lognormvariate(5.4, 0.8)))) for _ in range(count)]
    started = time.perf_counter()
    rows = pack_first_fit(lengths, ROW_TOKENS)
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 3), "rows": len(rows), "filled": round(sum(lengths) / (len(rows) * ROW_TOKENS), 5)}


def main() -> None:
    result = {
        "command": "python scripts/benchmarks/packing.py",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
        "row_tokens": ROW_TOKENS,
        "samples": {str(count): measure(count) for count in SAMPLES},
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
