"""The committed quickstart: its data come from the script, mean what they should, and its base model is small and whole."""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.config.rules import MatchesFieldRule, RuleSet
from align.scoring.rules import RuledPrompt, score_with_rules

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart"
sys.path.insert(0, str(ROOT / "scripts"))

from build_quickstart import DEFAULT_SEED  # noqa: E402
from quickstart.corpus import documents  # noqa: E402
from quickstart.datasets import QuickstartData, build_data, write_data  # noqa: E402
from quickstart.language import Noun, Situation, cores, ended  # noqa: E402
from quickstart.replies import INSTRUCTION_MIX, STYLES, ideal_reply, reply_from_mix, reply_in_style  # noqa: E402
from quickstart.situations import LANGUAGES, situations  # noqa: E402

FILES = ("instructions.jsonl", "preferences.jsonl", "prompts.jsonl", "validation.jsonl", "held_out.jsonl", "retention.txt")
CORPUS_SAMPLE = 20_000


def rows_of(name: str) -> list[dict[str, str]]:
    text = (QUICKSTART / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def data() -> QuickstartData:
    return build_data(DEFAULT_SEED)


@pytest.fixture(scope="module")
def gold() -> RuleSet:
    return RuleSet.model_validate(YAML(typ="safe").load(QUICKSTART / "gold_rules.yaml"))


def gold_score(gold: RuleSet, completion: str, topic: str, event: str, prompt: str = "") -> float:
    return score_with_rules(gold, RuledPrompt("p", topic, {"event": event}, prompt), completion).score


def topic_of(prompt: str) -> str:
    """The only topic that a prompt names (no topic's name is part of another's)."""
    topics = {topic for language in LANGUAGES.values() for kind in language.topics.values() for topic in kind}
    found = [topic for topic in topics if topic.casefold() in prompt.casefold()]
    return max(found, key=len)


def event_of(prompt: str) -> str:
    """The mishap that a prompt tells of."""
    topic, text = topic_of(prompt), prompt.lower()
    about = [each for language in LANGUAGES.values() for each in language.combinations() if each.topic == topic]
    told = {each.event for each in about for core in cores(LANGUAGES[each.language], each) if core in text}
    assert len(told) == 1, (prompt, told)
    return told.pop()


def agreement(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of (chosen, rejected) pairs whose first value is larger; ties count a half."""
    return statistics.mean((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in pairs)


def test_the_committed_files_are_what_the_script_writes(data: QuickstartData, tmp_path: Path) -> None:
    write_data(data, tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (QUICKSTART / "data" / name).read_bytes(), name


def test_another_seed_gives_other_data(data: QuickstartData) -> None:
    assert build_data(DEFAULT_SEED + 1).rows["prompts"] != data.rows["prompts"]


@pytest.mark.parametrize(
    ("name", "least", "keys"),
    [
        ("instructions", 900, ["id", "prompt", "completion"]),
        ("preferences", 2000, ["id", "prompt", "chosen", "rejected"]),
        ("prompts", 700, ["id", "prompt", "reference", "event"]),
        ("validation", 100, ["id", "prompt", "completion", "reference", "event"]),
        ("held_out", 300, ["id", "prompt", "reference", "event"]),
    ],
)
def test_counts_keys_and_unique_ids(name: str, least: int, keys: list[str]) -> None:
    rows = rows_of(name)
    assert len(rows) >= least
    assert all(list(row) == keys and all(value.strip() for value in row.values()) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    korean = sum(not row["prompt"].isascii() for row in rows) / len(rows)
    assert 0.4 < korean < 0.6


def test_prompts_differ_and_name_their_reference() -> None:
    rows = rows_of("prompts") + rows_of("validation") + rows_of("held_out")
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert row["reference"] in row["prompt"] and topic_of(row["prompt"]) == row["reference"], row
        assert event_of(row["prompt"]) == row["event"], row


def test_the_language_is_rich() -> None:
    for language in LANGUAGES.values():
        assert sum(map(len, language.topics.values())) >= 40
        assert len(language.events) >= 30


def test_no_topic_is_part_of_another() -> None:
    for language in LANGUAGES.values():
        topics = [topic for kind in language.topics.values() for topic in kind]
        assert not [(one, other) for one in topics for other in topics if one != other and one in other]


def test_particles_follow_the_final_consonant() -> None:
    assert f"{Noun('열쇠'):을} {Noun('지갑'):을} {Noun('카메라'):이} {Noun('우산'):이}" == "열쇠를 지갑을 카메라가 우산이"
    assert f"{Noun('할머니'):은} {Noun('동생'):은} {Noun('언니'):과} {Noun('선생님'):과}" == "할머니는 동생은 언니와 선생님과"


def test_held_out_combinations_occur_nowhere_else(data: QuickstartData) -> None:
    others = [(QUICKSTART / "data" / name).read_text(encoding="utf-8") for name in FILES if name != "held_out.jsonl"]
    others += documents(data.trained, data.retention, seed=DEFAULT_SEED, count=CORPUS_SAMPLE)
    text = "\n".join(others).lower()
    sayings = [core for combination in data.held_out for core in cores(LANGUAGES[combination.language], combination)]
    assert len(sayings) > 300
    assert not [core for core in sayings if core in text]
    held_out = [row["prompt"].lower() for row in rows_of("held_out")]
    assert all(any(core in prompt for core in sayings) for prompt in held_out)


def test_retention_is_plain_text_that_the_corpus_lacks(data: QuickstartData) -> None:
    lines = (QUICKSTART / "data" / "retention.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 400 and not any("<|" in line for line in lines)
    assert not set(lines) & set(documents(data.trained, data.retention, seed=DEFAULT_SEED, count=CORPUS_SAMPLE))


def test_styles_are_mixed_and_mostly_advice(data: QuickstartData) -> None:
    counts = Counter(data.styles.values())
    assert set(counts) == set(INSTRUCTION_MIX)
    assert 0.45 < counts["advice"] / len(data.styles) < 0.65
    assert 0.12 < counts["sympathy"] / len(data.styles) < 0.25


def test_gold_tells_the_styles_apart(data: QuickstartData, gold: RuleSet) -> None:
    rng = random.Random(1)
    scores: dict[str, list[float]] = {style: [] for style in ("ideal", *STYLES)}
    told = situations(data.trained, rng)
    for _ in range(300):
        situation = next(told)
        language, about = LANGUAGES[situation.combination.language], situation.combination
        for style, values in scores.items():
            reply = ideal_reply(language, situation, rng) if style == "ideal" else reply_in_style(style, language, situation, rng)
            values.append(gold_score(gold, reply.text, about.topic, about.event, situation.prompt))
    means = {style: statistics.mean(values) for style, values in scores.items()}
    assert means["ideal"] > 0.98
    assert 0.35 < means["advice"] < 0.45
    assert 0.6 < means["sympathy"] < 0.75
    assert 0.4 < means["half"] < 0.5
    assert max(means[style] for style in ("mistaken", "curt", "off_topic", "rambling", "repetitive")) < 0.2


@pytest.mark.parametrize(
    ("completion", "topic", "event", "low", "high"),
    [
        ("수학 시험을 망쳐서 얼마나 힘들었을까. 네 마음 알 것 같아. 내가 곁에 있어 줄게.", "수학 시험", "failed", 1.0, 1.0),
        ("You lost your keys? That must have been awful. I'm here for you if you want to talk.", "keys", "lost", 1.0, 1.0),
        # the same words under another mishap, or about another thing
        ("수학 시험을 망쳐서 얼마나 힘들었을까. 네 마음 알 것 같아. 내가 곁에 있어 줄게.", "수학 시험", "late", 0.15, 0.15),
        ("You lost your keys? That must have been awful. I'm here for you if you want to talk.", "wallet", "lost", 0.15, 0.15),
        (
            "수학 시험을 망쳤으니 앞으로 계획을 다시 세워야 해. 한 달 전부터 공부 계획을 세우는 게 좋아.",
            "수학 시험",
            "failed",
            0.35,
            0.5,
        ),
        (
            "You lost your keys, so next time keep your keys in an inside pocket. You should plan ahead.",
            "keys",
            "lost",
            0.35,
            0.5,
        ),
        # the right words in no order, and a shorter answer than anybody wants
        ("awful That you must for I'm keys lost have want talk here if your to been You", "keys", "lost", 0.0, 0.15),
        ("그래.", "수학 시험", "failed", 0.0, 0.15),
    ],
)
def test_gold_reads_sentences_that_the_generator_never_wrote(
    gold: RuleSet, completion: str, topic: str, event: str, low: float, high: float
) -> None:
    assert low <= gold_score(gold, completion, topic, event) <= high


def test_gold_knows_what_every_sentence_about_a_mishap_is_about(gold: RuleSet) -> None:
    rule = next(rule for rule in gold.rules if isinstance(rule, MatchesFieldRule))
    patterns = {event: re.compile("|".join(choices), re.IGNORECASE) for event, choices in rule.patterns.items()}
    rng = random.Random(1)
    for language in LANGUAGES.values():
        for about in language.combinations():
            event = language.events[about.event]
            others = [name for name, other in language.events.items() if about.kind in other.kinds and name != about.event]
            situation = Situation(about, language.places[0], language.points[0], "")
            for template in (*event.warm, *event.advice):
                sentence = ended(language.fill(template, situation, rng))
                assert patterns[about.event].search(sentence), (about.event, sentence)
            for template in event.warm:
                sentence = ended(language.fill(template, situation, rng))
                assert not [name for name in others if patterns[name].search(sentence)], (about.event, sentence)
        for template in (*language.sympathy, *language.support, *language.questions, *language.general_advice, *language.curt):
            assert not [name for name, pattern in patterns.items() if pattern.search(template)], template


CONSTANTS = {
    "ko": "정말 속상했겠다. 그 마음 이해해. 네 잘못이 아니야. 내가 옆에 있을게.",
    "en": "I'm so sorry, that must have been hard. It isn't your fault, and I'm here if you want to talk.",
}
UNTRAINED_ANSWERS_SCORE = 0.3
"""What the instructions' own answers score at least, which models imitate before anything is optimised."""


def test_nothing_cheap_fools_gold(gold: RuleSet) -> None:
    """One answer for all, the prompt again, the right words in no order, everything at once: all below what imitation scores."""
    rng = random.Random(3)
    rows = rows_of("held_out")[::4]
    about = {(each.topic, each.event): each for language in LANGUAGES.values() for each in language.combinations()}
    ideal: list[str] = []
    for row in rows:
        each = about[row["reference"], row["event"]]
        language = LANGUAGES[each.language]
        ideal.append(ideal_reply(language, Situation(each, language.places[1], language.points[0], ""), rng).text)

    def mean(answers: Sequence[str]) -> float:
        scores = [
            gold_score(gold, answer, row["reference"], row["event"], row["prompt"])
            for row, answer in zip(rows, answers, strict=True)
        ]
        return statistics.mean(scores)

    def shuffled(text: str) -> str:
        words = text.split()
        return " ".join(rng.sample(words, len(words)))

    probes = {
        **{f"constant {code}": [text] * len(rows) for code, text in CONSTANTS.items()},
        "both constants": [" ".join(CONSTANTS.values())] * len(rows),
        "echo": [row["prompt"] for row in rows],
        "echo and a constant": [f"{row['prompt']} {CONSTANTS['en' if row['prompt'].isascii() else 'ko']}" for row in rows],
        "thing and a constant": [f"{row['reference']}. {CONSTANTS['en' if row['prompt'].isascii() else 'ko']}" for row in rows],
        "right words in no order": [shuffled(text) for text in ideal],
        "everything": [" ".join(ideal)] * len(rows),
        "three things": [" ".join(rng.sample(ideal, 3)) for _ in rows],
        "another's answer": [*ideal[1:], ideal[0]],
    }
    scores = {name: mean(answers) for name, answers in probes.items()}
    # A few: a run searches among all answers of the compared models.
    scores["best for all"] = max(mean([answer] * len(rows)) for answer in rng.sample(ideal, 12))
    assert mean(ideal) > 0.98
    assert max(scores.values()) < 0.2 < UNTRAINED_ANSWERS_SCORE, scores


def test_instructions_leave_room_to_improve(data: QuickstartData, gold: RuleSet) -> None:
    rng = random.Random(2)
    told = situations(data.trained, rng)
    scores = []
    for _ in range(600):
        situation = next(told)
        about = situation.combination
        reply = reply_from_mix(INSTRUCTION_MIX, LANGUAGES[about.language], situation, rng)
        scores.append(gold_score(gold, reply.text, about.topic, about.event, situation.prompt))
    assert UNTRAINED_ANSWERS_SCORE < statistics.mean(scores) < 0.5
    assert len({round(score, 3) for score in scores}) >= 4


def test_length_alone_does_not_tell_what_was_chosen() -> None:
    rows = rows_of("preferences")
    for size in (len, lambda text: len(text.split())):
        sizes = [(size(row["chosen"]), size(row["rejected"])) for row in rows]
        longer = agreement(sizes)
        closest = [agreement([(-abs(one - best), -abs(other - best)) for one, other in sizes]) for best in range(0, 200, 5)]
        assert max(longer, 1 - longer, *closest) < 0.65


def test_a_tenth_of_the_labels_is_flipped(data: QuickstartData, gold: RuleSet) -> None:
    rows = rows_of("preferences")
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert len(data.flipped) == round(0.1 * len(rows))
    scores: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for row in rows[::4]:
        about = (topic_of(row["prompt"]), event_of(row["prompt"]), row["prompt"])
        pair = (gold_score(gold, row["chosen"], *about), gold_score(gold, row["rejected"], *about))
        scores[row["id"] in data.flipped].append(pair)
    # What misses the mishap is worth little however kind it is: gold tells about two pairs of three apart.
    apart = {flipped: [(one, other) for one, other in pairs if one != other] for flipped, pairs in scores.items()}
    assert len(apart[False]) > 0.6 * len(scores[False])
    assert agreement(apart[False]) > 0.85
    assert agreement(apart[True]) < 0.15


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(QUICKSTART / "base_model", local_files_only=True)


class TestBaseModel:
    """The committed model and tokenizer, as a user's program loads them."""

    def test_special_tokens_and_size(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        assert tokenizer.is_fast and len(tokenizer) <= 4096
        assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<|pad|>", "<|im_end|>", None)
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        for token in ("<|im_start|>", "<|endoftext|>", "<|im_end|>", "<|pad|>"):
            assert len(tokenizer(token)["input_ids"]) == 1

    @pytest.mark.parametrize(
        "text",
        ["오늘 수학 시험에서 50점을 맞았어", " I  lost my keys!\n", "🙂 뷁 — ñ 漢\t", "\u1100\u1161", "a .b", "<|im_end|>", ""],
    )
    def test_round_trip(self, tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_the_generation_mask_covers_the_answer_and_its_end(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        chat = [
            *({"role": "user", "content": "열쇠를 잃어버렸어"}, {"role": "assistant", "content": "정말 속상했겠다."}),
            *({"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "I'm here."}),
        ]
        coded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        ids = [token for token, inside in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if inside]
        assert tokenizer.decode(ids) == "정말 속상했겠다.<|im_end|>I'm here.<|im_end|>"

    def test_the_prompt_is_a_prefix_of_the_chat(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        chat = [{"role": "user", "content": "열쇠를 잃어버렸어"}, {"role": "assistant", "content": "그래."}]
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
        assert prompt == "<|im_start|>user\n열쇠를 잃어버렸어<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.apply_chat_template(chat, tokenize=False) == prompt + "그래.<|im_end|>\n"

    def test_samples_are_short(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        chats = [
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            for row in rows_of("instructions")
        ]
        lengths = [len(ids) for ids in tokenizer.apply_chat_template(chats)["input_ids"]]
        assert statistics.mean(lengths) <= 64 and max(lengths) <= 256

    def test_weights_are_small_and_load(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        import torch
        from transformers import AutoModelForCausalLM

        weights = list((QUICKSTART / "base_model").glob("*.safetensors"))
        assert [path.name for path in weights] == ["model.safetensors"]
        assert weights[0].stat().st_size <= 12 * 1024 * 1024
        model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base_model", local_files_only=True)
        assert 2_000_000 <= model.num_parameters() <= 6_000_000
        assert model.dtype == torch.float32 and model.config.attention_dropout == 0
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.generation_config.pad_token_id == tokenizer.pad_token_id

    def test_the_base_model_knows_the_language(self, tokenizer, data: QuickstartData) -> None:  # type: ignore[no-untyped-def]
        from quickstart.base_model import packed, perplexity
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base_model", local_files_only=True)
        assert perplexity(model, packed(tokenizer, data.retention[:100])) < 8
