"""Build everything under recipes/quickstart that is made by a program: the data files and the base model.

The data are the same bytes for the same seed. The base model is the same on the same machine and versions.

    python scripts/build_quickstart.py                  # both, in about 20 minutes on a core; needs a C++ compiler
    python scripts/build_quickstart.py --only data      # a second
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from quickstart.corpus import documents
from quickstart.datasets import QuickstartData, build_data, write_data

DEFAULT_SEED = 17
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "recipes" / "quickstart"
CORPUS_DOCUMENTS = 200_000
TOKENIZER_DOCUMENTS = 40_000
DEFAULT_PRETRAIN_STEPS = 4_500


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def build_model(data: QuickstartData, seed: int, directory: Path, steps: int) -> None:
    """Train the tokenizer and the base model on the corpus, and write both."""
    import torch
    from quickstart import base_model

    torch.set_num_threads(1)  # the number of threads decides the order of sums, and with it the last digits
    corpus = list(documents(data.trained, data.retention, seed=seed, count=CORPUS_DOCUMENTS))
    tokenizer = base_model.train_tokenizer(corpus[:TOKENIZER_DOCUMENTS])
    windows = base_model.packed(tokenizer, corpus)
    model = base_model.new_model(tokenizer, seed)
    say(f"corpus: {len(corpus)} documents, {windows.numel()} tokens; vocabulary: {len(tokenizer)}")
    say(f"model: {model.num_parameters()} parameters; training for {steps} steps")
    loss = base_model.pretrain(model, windows, steps, seed)
    base_model.save(model, tokenizer, directory)
    retained = base_model.perplexity(model, base_model.packed(tokenizer, data.retention))
    say(f"base model: loss {loss:.3f}, perplexity {retained:.2f} on retention.txt → {directory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder that gets data/ and base_model/")
    parser.add_argument("--only", choices=("data", "model"), help="build this part only")
    parser.add_argument("--pretrain-steps", type=int, default=DEFAULT_PRETRAIN_STEPS, metavar="N")
    arguments = parser.parse_args()

    started = time.monotonic()
    data = build_data(arguments.seed)
    if arguments.only != "model":
        write_data(data, arguments.out / "data")
        say(f"data: {', '.join(f'{len(rows)} {name}' for name, rows in data.rows.items())} → {arguments.out / 'data'}")
    if arguments.only != "data":
        build_model(data, arguments.seed, arguments.out / "base_model", arguments.pretrain_steps)
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
