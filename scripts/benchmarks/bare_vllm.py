#!/usr/bin/env python3
"""What generation costs with vLLM and nothing else: the quickstart's prompts and settings, all requests in one call.

    .venv/bin/python scripts/benchmarks/bare_vllm.py MODEL_FOLDER

Prints one JSON line; the start of the engine is not counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"


def main() -> int:
    from ruamel.yaml import YAML
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    settings = YAML(typ="safe").load(QUICKSTART / "recipe.yaml")["stages"]["candidates"]
    model = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = (QUICKSTART / "data" / "prompts.jsonl").read_text().splitlines()
    messages = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    prompts = [
        {"prompt_token_ids": list(tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=True)["input_ids"])}
        for m in messages
    ]
    limit = settings["max_prompt_tokens"] + settings["max_completion_tokens"]
    # Without chunked prefill, because vLLM 0.32 cannot seed requests on a CPU with it.
    llm = LLM(
        model, dtype="float32", max_model_len=limit, max_num_seqs=256, enforce_eager=True, disable_log_stats=True,
        enable_chunked_prefill=False, max_num_batched_tokens=8192,
    )  # fmt: skip
    parameters = [
        SamplingParams(n=settings["num_candidates"], temperature=1.0, max_tokens=settings["max_completion_tokens"], seed=index)
        for index in range(len(prompts))
    ]
    started = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - started
    tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    print(json.dumps({"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
