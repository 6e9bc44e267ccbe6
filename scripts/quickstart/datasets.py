"""The quickstart's data files: instructions, preferences, prompts, validation and held-out prompts, retention text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quickstart.corpus import plain_document
from quickstart.language import Combination, Situation
from quickstart.replies import INSTRUCTION_MIX, Reply, reply_from_mix
from quickstart.situations import LANGUAGES, ByLanguage, situations, split_combinations

COUNTS = {"instructions": 1800, "preferences": 4200, "prompts": 720, "validation": 120, "held_out": 320, "retention": 400}
PREFERENCE_MIX = {
    "advice": 0.26,
    "sympathy": 0.38,
    "half": 0.12,
    "mistaken": 0.05,
    "off_topic": 0.06,
    "curt": 0.04,
    "rambling": 0.04,
    "repetitive": 0.05,
}
UTILITY_NOISE = 0.5
"""Standard deviation of the human's mood, in the unit of `utility`."""
TELLING_DIFFERENCE = 0.5
"""Pairs closer than this in utility are seldom shown to the human: they say little."""
CLOSE_PAIRS_KEPT = 0.25
FLIPPED_SHARE = 0.10
"""Share of preferences whose labels are exchanged: clicks on the wrong side."""

Row = dict[str, str]


@dataclass
class QuickstartData:
    """The rows of every file, and what a test wants to know about them."""

    rows: dict[str, list[Row]]
    """File name without its ending → rows."""
    retention: list[str]
    held_out: frozenset[Combination]
    flipped: frozenset[str]
    """Ids of the preferences with exchanged labels."""
    trained: ByLanguage = field(default_factory=dict)
    """Language → the combinations that everything but held_out.jsonl uses."""
    styles: dict[str, str] = field(default_factory=dict)
    """Instruction id → style."""


def build_data(seed: int) -> QuickstartData:
    """All the data files, the same for the same seed."""
    trained, held_out = split_combinations(seed)

    def rng_for(part: str) -> random.Random:
        return random.Random(f"{seed}-{part}")

    instructions, styles = _instructions(trained, rng_for("instructions"))
    preferences, flipped = _preferences(trained, rng_for("preferences"))
    prompts = _prompts("prompt", COUNTS["prompts"], trained, rng_for("prompts"))
    rows = {
        "instructions": instructions,
        "preferences": preferences,
        "prompts": prompts,
        "validation": _validation(trained, rng_for("validation"), {row["prompt"] for row in instructions + prompts}),
        "held_out": _prompts("held-out", COUNTS["held_out"], held_out, rng_for("held_out")),
    }
    retention_rng = rng_for("retention")
    retention = _unique(COUNTS["retention"], situations(trained, retention_rng), lambda told: plain_document(told, retention_rng))
    held = frozenset(combination for part in held_out.values() for combination in part)
    return QuickstartData(rows, retention, held, flipped, trained, styles)


def _unique(count: int, told: Iterator[Situation], write: Callable[[Situation], str]) -> list[str]:
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[write(next(told))] = None
    return list(texts)


def _instructions(trained: ByLanguage, rng: random.Random) -> tuple[list[Row], dict[str, str]]:
    rows: list[Row] = []
    styles: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for situation in situations(trained, rng):
        reply = reply_from_mix(INSTRUCTION_MIX, LANGUAGES[situation.combination.language], situation, rng)
        if (situation.prompt, reply.text) in seen:
            continue
        seen.add((situation.prompt, reply.text))
        rows.append({"id": f"inst-{len(rows) + 1:05d}", "prompt": situation.prompt, "completion": reply.text})
        styles[rows[-1]["id"]] = reply.style
        if len(rows) == COUNTS["instructions"]:
            break
    return rows, styles


def _validation(trained: ByLanguage, rng: random.Random, seen: set[str]) -> list[Row]:
    """Prompts that no other file has, each with its topic and a completion as the instructions have them."""
    rows: dict[str, Row] = {}
    for situation in situations(trained, rng):
        if situation.prompt in seen or situation.prompt in rows:
            continue
        reply = reply_from_mix(INSTRUCTION_MIX, LANGUAGES[situation.combination.language], situation, rng)
        rows[situation.prompt] = {
            "id": f"valid-{len(rows) + 1:04d}",
            "prompt": situation.prompt,
            "completion": reply.text,
            **_about(situation),
        }
        if len(rows) == COUNTS["validation"]:
            break
    return list(rows.values())


def utility(reply: Reply) -> float:
    """How much the imagined human likes a reply, before the mood of the moment: to be understood comes first, then kindness."""
    score = 1.0 * (reply.sympathy >= 1) + 0.5 * (reply.sympathy >= 2) + 0.5 * reply.support
    score += 0.5 * reply.names_topic + 4.0 * reply.names_event - 3.0 * reply.mistaken
    score -= (0.0, 0.8, 1.2, 1.2)[min(reply.lectures, 3)]
    score -= 2.0 * reply.repeats
    score -= 1.2 * (not reply.length_sensible)
    score -= 1.5 * (reply.style in ("off_topic", "rambling"))
    return score


def _preferences(trained: ByLanguage, rng: random.Random) -> tuple[list[Row], frozenset[str]]:
    """Pairs of replies to one prompt as the human ranks them, and the ids whose labels were exchanged afterwards."""
    rows: list[Row] = []
    for situation in situations(trained, rng):
        language = LANGUAGES[situation.combination.language]
        pair = [reply_from_mix(PREFERENCE_MIX, language, situation, rng) for _ in range(2)]
        utilities = [utility(reply) for reply in pair]
        close = abs(utilities[0] - utilities[1]) < TELLING_DIFFERENCE
        if pair[0].text == pair[1].text or (close and rng.random() >= CLOSE_PAIRS_KEPT):
            continue
        liked = [value + rng.gauss(0, UTILITY_NOISE) for value in utilities]
        better = 0 if liked[0] >= liked[1] else 1
        chosen, rejected = pair[better], pair[1 - better]
        identity = f"pref-{len(rows) + 1:05d}"
        rows.append({"id": identity, "prompt": situation.prompt, "chosen": chosen.text, "rejected": rejected.text})
        if len(rows) == COUNTS["preferences"]:
            break
    flipped = frozenset(row["id"] for row in rng.sample(rows, round(FLIPPED_SHARE * len(rows))))
    return [_exchanged(row) if row["id"] in flipped else row for row in rows], flipped


def _exchanged(row: Row) -> Row:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def _prompts(prefix: str, count: int, combinations: ByLanguage, rng: random.Random) -> list[Row]:
    """Rows of prompts that differ from one another."""
    rows: dict[str, Row] = {}
    for situation in situations(combinations, rng):
        identity = f"{prefix}-{len(rows) + 1:04d}"
        rows.setdefault(situation.prompt, {"id": identity, "prompt": situation.prompt, **_about(situation)})
        if len(rows) == count:
            break
    return list(rows.values())


def _about(situation: Situation) -> Row:
    """What rules may read: the thing, and what happened to it."""
    return {"reference": situation.combination.topic, "event": situation.combination.event}


def write_data(data: QuickstartData, directory: Path) -> None:
    """Write every data file, always with the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in data.rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    (directory / "retention.txt").write_text("".join(f"{line}\n" for line in data.retention), encoding="utf-8", newline="\n")
