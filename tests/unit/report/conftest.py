"""Made-up answers of three models to Korean and English prompts, for the tests of the report."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from align.records import Message, ScoredCandidate
from align.report.best_of import BestOfPool
from align.report.cost import Cost
from align.report.results import Results, build_results
from align.testing import scored_candidate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHIFTS = {"sft": 0.0, "rs-거절표집": 0.5, "dpo": 0.45, "ppo_long_name": 0.9}
TOPICS = ("김치찌개 끓이는 법", "서울에서 부산까지 가는 길", "photosynthesis", "한국의 사계절", "why the sky is blue")


def candidate(
    prompt_id: str, *, scores: dict[str, float | None], index: int = 0, completion: str = "a b c", finish: str = "stop"
) -> ScoredCandidate:
    """One scored candidate whose prompt follows from its id."""
    tokens = len(completion.split()) + 1
    return scored_candidate(
        scores,
        completion,
        index,
        prompt_id=prompt_id,
        prompt=f"Tell me about {prompt_id}.",
        completion_token_ids=[0] * tokens,
        completion_tokens=tokens,
        finish_reason=finish,
    )


def demo_answers(prompts: int = 60, num_candidates: int = 1, seed: int = 0) -> dict[str, list[ScoredCandidate]]:
    """Four models: two that gain on both scorers, one that gains on `rm` and loses on `gold`."""
    random = np.random.default_rng(seed)
    answers: dict[str, list[ScoredCandidate]] = {name: [] for name in SHIFTS}
    for number in range(prompts):
        difficulty = random.normal()
        for name, shift in SHIFTS.items():
            for index in range(num_candidates):
                topic = TOPICS[number % len(TOPICS)]
                words = int(random.integers(8, 30) * (1 + shift))
                rm = difficulty + 1.5 * shift + random.normal() * 0.6
                gold = 1 / (1 + math.exp(-(difficulty + (shift if shift < 0.8 else -0.6) + random.normal() * 0.5)))
                row = candidate(
                    f"prompt-{number:03d}",
                    scores={"rm": float(rm), "gold": float(gold)},
                    index=index,
                    completion=" ".join(
                        [f"{topic}에 대해 알려 드릴게요.", *(f"단어{random.integers(200)}" for _ in range(words))]
                    ),
                    finish="length" if random.random() < 0.1 + 0.3 * (shift > 0.8) else "stop",
                )
                message = Message(role="user", content=f"{topic}에 대해 설명해 주세요. ({number})")
                answers[name].append(row.model_copy(update={"prompt": [message]}))
    return answers


def demo_cost(seconds: float, *, shared_seconds: float = 0.0) -> Cost:
    """A path with every number; the operations follow from its time."""
    return Cost(
        seconds=seconds,
        own_seconds=seconds - shared_seconds,
        shared_seconds=shared_seconds,
        sampled_tokens=1200,
        trained_tokens=34000,
        scored_completions=96,
        flops=3e12 * seconds,
        memory_bytes=2**30,
        total_seconds=seconds + 60,
        total_flops=3e12 * (seconds + 60),
    )


def demo_results(answers: dict[str, list[ScoredCandidate]], resamples: int = 500) -> Results:
    """results.json of the demo, with every optional number present."""
    random = np.random.default_rng(1)
    prompt_ids = {row.prompt_id for row in answers["sft"]}
    return build_results(
        answers,
        baseline="sft",
        recipe="demo",
        command=["align", "run", "recipes/demo/recipe.yaml", "--out", "runs/demo"],
        seed=17,
        engine_name="fake",
        engine_version="1.0",
        bootstrap_resamples=resamples,
        kl_to_baseline={
            name: {prompt_id: float(random.gamma(4, shift)) for prompt_id in sorted(prompt_ids)}
            for name, shift in SHIFTS.items()
            if name != "sft"
        },
        retention_perplexity={name: 12.0 + 3 * shift for name, shift in SHIFTS.items()},
        train_seconds={"sft": 41.2, "rs-거절표집": 65.0, "dpo": 184.4, "ppo_long_name": 7300.0},
        costs={
            "sft": demo_cost(41.2),
            "rs-거절표집": demo_cost(65.0, shared_seconds=25.0),
            "dpo": demo_cost(184.4, shared_seconds=25.0),
            "ppo_long_name": demo_cost(7300.0),
        },
    )


MANY_SHIFTS = {
    "sft": 0.0, "거절-표집-미세조정": 0.3, "dpo_seed1": 0.5, "dpo_seed2": 0.6, "dpo_seed3": 0.42, "orpo": 0.35, "ppo": 0.9,
    "ppo_without_kl_penalty": 1.4, "dpo_round_2": 0.7, "selected_checkpoint": 0.1, "dpo_beta_0.5": 0.25,
}  # fmt: skip


def many_results(prompts: int = 60, resamples: int = 500) -> tuple[Results, dict[str, list[ScoredCandidate]]]:
    """Twelve rows: nine models and methods, one of them three seeds, and three of best of n; with the answers."""
    random = np.random.default_rng(7)
    answers: dict[str, list[ScoredCandidate]] = {name: [] for name in MANY_SHIFTS}
    pool: list[ScoredCandidate] = []
    for number in range(prompts):
        difficulty, topic = random.normal(), TOPICS[number % len(TOPICS)]
        for name, shift in [*MANY_SHIFTS.items(), *(("pool", 0.0) for _ in range(16))]:
            quality = random.normal() * 0.6
            rm = difficulty + 1.5 * shift + quality
            gold = 1 / (1 + math.exp(-(difficulty + (shift if shift < 0.8 else -0.5) + 0.7 * quality + random.normal() * 0.4)))
            row = candidate(
                f"prompt-{number:03d}",
                scores={"rm": float(rm), "gold": float(gold)},
                index=len([one for one in pool if one.prompt_id == f"prompt-{number:03d}"]) if name == "pool" else 0,
                completion=f"{topic}에 대해 알려 드릴게요. " + "단어 " * int(random.integers(4, 20) * (1 + shift)),
            )
            row = row.model_copy(update={"prompt": [Message(role="user", content=f"{topic}에 대해 설명해 주세요. ({number})")]})
            (pool if name == "pool" else answers[name]).append(row)
    results = build_results(
        answers,
        baseline="sft",
        recipe="many",
        command=["align", "run", "recipes/many/recipe.yaml"],
        seed=17,
        engine_name="fake",
        engine_version="1.0",
        bootstrap_resamples=resamples,
        kl_to_baseline={
            name: {f"prompt-{number:03d}": float(random.gamma(4, 2 * shift**2)) for number in range(prompts)}
            for name, shift in MANY_SHIFTS.items()
            if name != "sft"
        },
        train_seconds={name: 40.0 + 100 * shift for name, shift in MANY_SHIFTS.items()},
        costs={name: demo_cost(40.0 + 100 * shift) for name, shift in MANY_SHIFTS.items()},
        methods={"dpo": ["dpo_seed1", "dpo_seed2", "dpo_seed3"]},
        best_of=BestOfPool([1, 4, 16], "rm", pool),
    )
    return results, answers


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; tests that need it are skipped without."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    # A container's root has no user namespace for the sandbox.
    options: dict[str, Any] = {"executable_path": chromium, "args": ["--no-sandbox"]}
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as launched:
        yield launched


@pytest.fixture(scope="session")
def many() -> tuple[Results, dict[str, list[ScoredCandidate]]]:
    """`many_results`."""
    return many_results()


@pytest.fixture(scope="session")
def make_candidate() -> Callable[..., ScoredCandidate]:
    """`candidate`."""
    return candidate


@pytest.fixture(scope="session")
def make_results() -> Callable[..., Results]:
    """`build_results` with the fields that a test does not care about filled in."""

    def make(answers: dict[str, list[ScoredCandidate]], **fields: Any) -> Results:
        defaults: dict[str, Any] = {
            "baseline": "sft",
            "recipe": "test",
            "command": ["align", "run", "recipe.yaml"],
            "seed": 17,
            "engine_name": "fake",
            "engine_version": "1.0",
            "bootstrap_resamples": 500,
        }
        return build_results(answers, **(defaults | fields))

    return make


@pytest.fixture(scope="session")
def answers() -> dict[str, list[ScoredCandidate]]:
    """Sixty prompts answered by four models."""
    return demo_answers()


@pytest.fixture(scope="session")
def results(answers: dict[str, list[ScoredCandidate]]) -> Results:
    """The results of `answers`."""
    return demo_results(answers)
