"""What workers of scripts/benchmarks/scale.py do: a sampler without a model. Apart from the script, because workers import it."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from align.records import Candidate, Message
from align.runtime.seed import derive_seed
from align.store.shard import shard_path, write_shard

SEED = 7
COMPLETION = "A completion of some forty words stands here, so that a row has about the size of a real one. " * 3


@dataclass
class SimulatedSampler:
    """Waits as long as an engine would work, and writes a real shard. What is in it follows from its number alone."""

    folder: Path
    num_prompts: int
    shard_prompts: int
    seconds: float
    """That a shard takes on average; from 0.5 to 1.5 times as long, by its number."""
    num_workers: int
    has_begun: bool = field(default=False, init=False)

    @property
    def started(self) -> Path:
        """Has a file for each worker that the run began with."""
        return self.folder.with_name(f"{self.folder.name}-started")

    def begin_together(self) -> None:
        """Wait for the first item of all workers: how fast processes start on an overloaded machine is not the question."""
        self.started.mkdir(parents=True, exist_ok=True)
        if len(list(self.started.iterdir())) < self.num_workers:
            (self.started / f"{os.getpid()}").touch()
        while len(list(self.started.iterdir())) < self.num_workers:
            time.sleep(0.5)

    def __call__(self, index: int) -> None:
        if not self.has_begun:
            self.begin_together()
            self.has_begun = True
        first = index * self.shard_prompts
        draw = random.Random(derive_seed(SEED, "shard", str(index)))
        time.sleep(self.seconds * draw.uniform(0.5, 1.5))
        rows = [
            Candidate(
                prompt_id=f"p{number:07d}",
                candidate_index=0,
                prompt=[Message(role="user", content=f"question {number}")],
                reference=None,
                completion=COMPLETION[: draw.randrange(100, len(COMPLETION))],
                completion_token_ids=[draw.randrange(32_000) for _ in range(32)],
                completion_tokens=32,
                finish_reason="stop",
                seed=derive_seed(SEED, "sample", str(number)),
            )
            for number in range(first, min(first + self.shard_prompts, self.num_prompts))
        ]
        write_shard(shard_path(self.folder, index), rows)
