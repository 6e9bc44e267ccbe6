"""Rows per second that become tokens on one core, by align and by TRL's SFTTrainer; memory of encoding and of reading.

    python scripts/benchmarks/encoding.py

Both take the same rows (a question and an answer of about 220 tokens together) and the same tokenizer, each in a process of its
own on one core, in turn; so does the tokenizer's own library on texts that are rendered already. Memory is the most that a
process had: of encoding, and of reading as `sft` does before its first step (lengths, packing) and of 2,000 rows of random places
that are built. The files of many rows repeat those of a part.
Writes scripts/benchmarks/encoding.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from align.store.atomic import write_json

RESULT = Path(__file__).with_suffix(".json")
ROWS, ROUNDS = 4_000, 2
ENCODED = (5_000, 20_000)
READ = (100_000, 1_000_000, 5_000_000)
ROW_TOKENS = 2048
TASKS = {"align": "encode", "tokenizer_alone": "encode_alone", "trl": "encode_trl"}


def make_rows(folder: Path, count: int) -> None:
    """Rows of words whose frequencies fall as those of a language, a model, and its tokenizer, which knows most of the words."""
    from align.records import Instruction, Message
    from align.store.artifact import ROWS_NAME, write_rows
    from align.testing import tiny_causal_lm
    from align.testing.tiny import tiny_tokenizer

    generator = random.Random(1)
    letters = "eeeeaaaiiooutttnnnsssrrrlllddcmpghbfyvkw"
    words = ["".join(generator.choice(letters) for _ in range(generator.randint(2, 9))) for _ in range(8_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]

    def text(median: int) -> str:
        length = max(4, round(median * generator.lognormvariate(0, 0.5)))
        return " ".join(generator.choices(words, weights, k=length)).capitalize() + "."

    def rows() -> Any:
        for number in range(count):
            prompt = [Message(role="user", content=text(40))]
            yield Instruction(id=f"r{number}", line=number + 1, prompt=prompt, completion=text(110))

    write_rows(folder / "rows" / ROWS_NAME, rows())
    tiny_causal_lm(folder / "model")
    tiny_tokenizer([text(100) for _ in range(3_000)], vocabulary=8_000).save_pretrained(folder / "model")


def encode(folder: Path, **_: Any) -> dict[str, Any]:
    from align.data.forms import COMPLETION
    from align.models.chat_format import load_format
    from align.models.folder import ModelFolder
    from align.stage import StageConfig
    from align.testing import input_artifact, stage_context
    from align.training.token_store import stored_tokens

    model = ModelFolder(folder / "model")
    chat_format, rows = load_format(model), input_artifact("rows", folder / "rows", "instructions")
    with tempfile.TemporaryDirectory() as store:
        context = stage_context(StageConfig(), Path(store) / "store" / "it", {})
        before, started = _memory("VmRSS"), time.perf_counter()
        tokens = stored_tokens(context, rows, model, chat_format, COMPLETION)
        seconds = time.perf_counter() - started
        mean = float(tokens.total.mean())
    return {"seconds": seconds, "tokens_per_row": round(mean, 1), "mib": round((_memory("VmHWM") - before) / 1024)}


def encode_alone(folder: Path, **_: Any) -> dict[str, Any]:
    """The tokenizer's own library on conversations that are rendered already: what no program that calls it can go below."""
    from align.models.chat_format import load_format
    from align.models.folder import ModelFolder
    from align.records import Instruction
    from align.store.artifact import ROWS_NAME, read_rows

    chat_format = load_format(ModelFolder(folder / "model"))
    rows = read_rows(folder / "rows" / ROWS_NAME, Instruction)
    texts = ["".join(chat_format.texts_of(row.prompt, {"completion": row.completion})) for row in rows]
    backend, started = chat_format.tokenizer.backend_tokenizer, time.perf_counter()  # type: ignore[attr-defined]
    backend.encode_batch_fast(texts, add_special_tokens=False)
    return {"seconds": time.perf_counter() - started}


def encode_trl(folder: Path, **_: Any) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    lines = map(json.loads, (folder / "rows" / "rows.jsonl").open())
    rows = Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": row["completion"]}]}
            for row in ({**line, "prompt": [{k: m[k] for k in ("role", "content")} for m in line["prompt"]]} for line in lines)
        ]
    )
    seconds, prepare = 0.0, SFTTrainer._prepare_dataset

    def timed(*arguments: Any, **more: Any) -> Any:
        nonlocal seconds
        started = time.perf_counter()
        found = prepare(*arguments, **more)
        seconds += time.perf_counter() - started
        return found

    SFTTrainer._prepare_dataset = timed
    config = SFTConfig(output_dir=str(folder / "trl"), report_to="none", use_cpu=True, max_length=None, dataset_num_proc=None)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    SFTTrainer(AutoModelForCausalLM.from_pretrained(folder / "model"), config, train_dataset=rows, processing_class=tokenizer)
    return {"seconds": seconds}


def read(folder: Path, count: int) -> dict[str, Any]:
    from align.data.forms import COMPLETION
    from align.data.stored_tokens import StoredTokens
    from align.data.token_file import REFUSED, BatchWriter, PartEncoder, parts_of, schema_of
    from align.models.chat_format import load_format
    from align.models.folder import ModelFolder
    from align.records import Instruction
    from align.store.row_file import RowFile
    from align.training.packing import PackedRows, pack_rows

    path = folder / "rows" / "rows.jsonl"
    part = next(iter(parts_of(RowFile(path, Instruction))))
    work = PartEncoder(path, COMPLETION.name, part.count, lambda: load_format(ModelFolder(folder / "model")))
    encoded, target = work(part), folder / f"tokens-{count}"
    target.mkdir()
    for name, schema, content in (("rows", schema_of(COMPLETION), encoded.rows), ("refused", REFUSED, encoded.refused)):
        with (target / f"{name}.arrow").open("wb") as stream:
            writer = BatchWriter(stream, schema)
            for _ in range(-(-count // part.count)):
                writer.add(content)
            writer.close()
    before, started = _memory("VmRSS"), time.perf_counter()
    rows, _ = StoredTokens(target, COMPLETION, count).read(max_tokens=ROW_TOKENS, on_invalid="drop", where=str)
    packed = PackedRows(rows, pack_rows(rows.measures["total"].tolist(), ROW_TOKENS, None))
    seconds, generator = time.perf_counter() - started, random.Random(0)
    for _ in range(2_000):
        packed[generator.randrange(len(packed))]
    mapped = round((target / "rows.arrow").stat().st_size / 2**20)
    own, peak = _memory("RssAnon"), _memory("VmHWM")
    return {
        "rows": len(rows),
        "file_mib": mapped,
        "seconds": round(seconds, 1),
        "own_mib_before": round(before / 1024),
        "own_mib": round(own / 1024),
        "peak_mib_with_pages_of_the_file": round(peak / 1024),
    }


def _memory(name: str) -> int:
    """KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def apart(folder: Path, task: str, count: int = 0) -> dict[str, Any]:
    """The result of a task in a process of its own, on one core."""
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder), "--count", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["encode", "encode_alone", "encode_trl", "read"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    if options.task:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(globals()[options.task](options.folder, count=options.count)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder, ROWS)
        rounds = [{who: apart(folder, task) for who, task in TASKS.items()} for _ in range(ROUNDS)]
        best = {who: ROWS / min(one[who]["seconds"] for one in rounds) for who in TASKS}
        reading = [apart(folder, "read", count) for count in READ]
        encoding = {}
        for count in ENCODED:
            (folder / str(count)).mkdir()
            make_rows(folder / str(count), count)
            encoding[str(count)] = apart(folder / str(count), "encode")["mib"]
    result = {
        "command": "python scripts/benchmarks/encoding.py",
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(os.getloadavg()[0], 2)},
        "rows": ROWS,
        "tokens_per_row": rounds[0]["align"]["tokens_per_row"],
        "rows_per_second_on_one_core": {who: round(rate) for who, rate in best.items()},
        "ratio": round(best["align"] / best["trl"], 2),
        "ratio_of_the_tokenizer_alone": round(best["tokenizer_alone"] / best["trl"], 2),
        "ratio_of_each_round": [round(one["trl"]["seconds"] / one["align"]["seconds"], 2) for one in rounds],
        "mib_of_encoding_by_rows": encoding,
        "reading": reading,
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
