"""The sampling engine alone: its rate beside bare vLLM, its log-probabilities beside the trainer's, and new weights after sleep.

Each engine is in a process of its own, since vLLM keeps what it took.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.job import in_job
from gpu_check.line import Report
from gpu_check.project import Project
from gpu_check.stages import GAP_TOLERANCE

from align.engines.protocol import GenerationRequest, SampledCompletion, SamplingSettings
from align.engines.vllm_engine import VllmEngine
from align.runtime.device import device_name
from align.runtime.gpus import visible_gpus

RATE_TOLERANCE = 0.8
"""Of bare vLLM's tokens per second."""
COUNTS = {"cuda": (256, 8, 128), "cpu": (8, 2, 8)}
"""Prompts, completions of each, and tokens of a completion."""
RUNS = 4
"""That are timed."""
CHECKED = 8
"""Completions whose log-probabilities are compared."""
OTHER_SEED = 1
DIVIDED_AMONG = 2
"""GPUs of an engine, where there are several (tensor parallelism)."""


def check_engine(project: Project, report: Report) -> None:
    """vLLM with the shape's model; see the module."""
    base, other = project.folder / "base", project.folder / "other"
    found = in_job("engine", project.folder, partial(measure, base, other, project.shape))
    if project.device == "cuda":
        bare = in_job("bare_engine", project.folder, partial(measure_bare, base))
        found["bare_tokens_per_second"] = bare["tokens_per_second"]
    report.keep("engine", found)
    ratio = found["tokens_per_second"] / found["bare_tokens_per_second"]
    rates = f"{found['tokens_per_second']:,.0f} tokens/s beside {found['bare_tokens_per_second']:,.0f}: {ratio:.2f}"
    # On a CPU the tiny model's rates are those of whatever else runs there.
    if project.device == "cuda":
        report.check("rate beside bare vLLM", ratio >= RATE_TOLERANCE, rates, f"at least {RATE_TOLERANCE}")
    else:
        report.check("rate beside bare vLLM", ratio > 0, rates, "a rate")
    _check_gaps(found, report, "log-probabilities", "the same of other weights, after sleep")
    if project.device == "cuda":
        freed = found["freed_bytes"] / 2**30
        report.check("memory that sleep frees", freed > 0, f"{freed:.2f} GiB", "more than 0")
    else:
        report.not_run("memory that sleep frees", "vLLM sleeps on a GPU only")
    what = f"log-probabilities of an engine of {DIVIDED_AMONG} GPUs"
    if len(visible_gpus()) < DIVIDED_AMONG:
        report.not_run(what, f"it needs {DIVIDED_AMONG} GPUs")
        return
    found = in_job("divided_engine", project.folder, partial(measure_divided, base, other))
    report.keep("divided_engine", found)
    _check_gaps(found, report, what, f"{what}, other weights")


def _check_gaps(found: Mapping[str, Any], report: Report, *lines: str) -> None:
    for name, what in zip(("gap", "gap_after_exchange"), lines, strict=True):
        mean, most = found[name]
        passed = mean <= GAP_TOLERANCE["mean"] and most <= GAP_TOLERANCE["max"]
        wanted = f"mean ≤ {GAP_TOLERANCE['mean']}, largest ≤ {GAP_TOLERANCE['max']} nats"
        report.check(what, passed, f"mean {mean:.1e}, largest {most:.1e} nats", wanted)


def make_requests(count: int) -> list[GenerationRequest]:
    draw = random.Random(11)
    return [GenerationRequest([draw.randrange(10, 250) for _ in range(draw.randint(8, 64))], 1000 * i) for i in range(count)]


def measure(base: Path, other: Path, shape: str) -> dict[str, Any]:
    """Figures of an engine; writes the model `other`, whose weights it gets."""
    from align.models.folder import ModelFolder
    from align.testing.shapes import shaped_causal_lm

    device = device_name()
    shaped_causal_lm(other, shape, dtype="bfloat16" if device == "cuda" else "float32", seed=OTHER_SEED)
    prompts, candidates, tokens = COUNTS[device]
    requests = make_requests(prompts)
    settings = SamplingSettings(
        temperature=1.0, top_p=1.0, top_k=None, max_completion_tokens=tokens, num_candidates=candidates, stop_token_ids=()
    )
    engine = _engine(base, tokens)

    def generate() -> int:
        return sum(len(sample.token_ids) for row in engine.generate(requests, settings) for sample in row)

    if device == "cpu":  # a second start takes as long as all else; here the engine itself is asked without align around it
        rate, bare = _rates(generate, bare_generation(engine._llm, requests, candidates, tokens))
        found: dict[str, Any] = {"tokens_per_second": rate, "bare_tokens_per_second": bare}
    else:
        found = {"tokens_per_second": _rates(generate)[0]}
    found["gap"] = _gap(engine, base, requests)
    found["freed_bytes"] = _sleep(engine)
    engine.load_weights(ModelFolder(other))
    found["gap_after_exchange"] = _gap(engine, other, requests)
    return found


def measure_divided(base: Path, other: Path) -> dict[str, Any]:
    """An engine of several GPUs; the weights of `other` reach it as files."""
    from align.models.folder import ModelFolder

    prompts, _, tokens = COUNTS[device_name()]
    requests, engine = make_requests(prompts), _engine(base, tokens, num_gpus=DIVIDED_AMONG)
    found = {"gap": _gap(engine, base, requests)}
    engine.load_weights(ModelFolder(other))
    return {**found, "gap_after_exchange": _gap(engine, other, requests)}


def _engine(base: Path, tokens: int, *, num_gpus: int = 1) -> VllmEngine:
    from align.engines.open import resolve_dtype
    from align.models.folder import ModelFolder

    return VllmEngine(
        ModelFolder(base), dtype=resolve_dtype("auto"), max_model_tokens=64 + tokens, memory_share=0.5, num_gpus=num_gpus
    )


def measure_bare(base: Path) -> dict[str, float]:
    """vLLM as it comes, but for the length of its context."""
    from vllm import LLM

    prompts, candidates, tokens = COUNTS[device_name()]
    llm = LLM(str(base), max_model_len=64 + tokens)
    return {"tokens_per_second": _rates(bare_generation(llm, make_requests(prompts), candidates, tokens))[0]}


def bare_generation(llm: Any, requests: Sequence[GenerationRequest], candidates: int, tokens: int) -> Callable[[], int]:
    """A function that samples with vLLM alone, and returns how many tokens it sampled."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
    parameters = [
        SamplingParams(n=candidates, temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=request.seed)
        for request in requests
    ]

    def generate() -> int:
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    return generate


def _rates(*generations: Callable[[], int]) -> tuple[float, ...]:
    """Tokens per second of each, the best of several runs after one to warm up.

    They take turns, so that what else the machine does slows all of them.
    """
    best = [0.0] * len(generations)
    for turn in range(1 + RUNS):
        for index, generate in enumerate(generations):
            started = time.perf_counter()
            rate = generate() / (time.perf_counter() - started)
            best[index] = max(best[index], rate if turn else 0.0)
    return tuple(best)


def _sleep(engine: Any) -> int:
    """Let the engine sleep and wake up; the bytes of the GPU that were free meanwhile and had not been before."""
    if device_name() == "cpu":  # vLLM cannot sleep there
        return 0
    import torch

    before = torch.cuda.mem_get_info()[0]
    engine.sleep()
    freed = torch.cuda.mem_get_info()[0] - before
    engine.wake_up()
    return int(freed)


def _gap(engine: Any, model: Path, requests: Sequence[GenerationRequest]) -> tuple[float, float]:
    """Mean and largest difference of the engine's log-probabilities from the trainer's, in nats a token."""
    settings = SamplingSettings(
        temperature=1.0, top_p=1.0, top_k=None, max_completion_tokens=16, num_candidates=1, stop_token_ids=(), with_logps=True
    )
    asked = requests[:CHECKED]
    samples = [row[0] for row in engine.generate(asked, settings)]
    trained = _trainer_logps(model, asked, samples)
    differences = [
        abs(sampled - own)
        for sample, logps in zip(samples, trained, strict=True)
        for sampled, own in zip(sample.logps or [], logps, strict=True)
    ]
    return statistics.fmean(differences), max(differences)


def _trainer_logps(model: Path, requests: Sequence[GenerationRequest], samples: Sequence[SampledCompletion]) -> list[list[float]]:
    import torch

    from align.models.head import last_hidden_states, target_logps
    from align.models.load import load_causal_lm
    from align.training.loop import resolve_precision

    device = device_name()
    loaded = load_causal_lm(model).to(device)
    found = []
    for request, sample in zip(requests, samples, strict=True):
        ids = torch.tensor([request.prompt_token_ids + sample.token_ids], device=device)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=resolve_precision("auto") == "bfloat16"):
            states = last_hidden_states(loaded, input_ids=ids)[0, len(request.prompt_token_ids) - 1 : -1]
            found.append(target_logps(loaded, states, ids[0, len(request.prompt_token_ids) :]).tolist())
    return found
