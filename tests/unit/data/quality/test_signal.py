"""Signals of quality."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from align.data.quality.signal import SIGNALS, signals

SHOWN = [
    ("blank", " \n"),
    ("very_short", "ok"),
    ("very_short", "네!"),
    ("few_letters", "|----|----|-----|------| a b c"),
    ("mostly_capitals", "THIS IS WHY I NEVER WRITE letters"),
    ("repetitive", "I like it a lot. I like it a lot. I like it a lot."),
    ("refusal", "I'm sorry, but I can't help with that."),
    ("refusal", "I cannot assist with this request."),
    ("refusal", "As an AI language model, I have no opinions."),
    ("refusal", "죄송하지만 그 질문에는 답변을 드릴 수 없습니다."),
    ("refusal", "AI 언어 모델로서 저는 의견이 없습니다."),
    ("unfinished", " ".join(f"word{number}" for number in range(40)) + " and then"),
    ("markup", "It is <b>bold</b>"),
    ("markup", "Fish &amp; chips"),
    ("template_leftover", "Fine.<|im_end|>"),
    ("template_leftover", "Fine.\n### Response: yes"),
    ("template_leftover", "Fine.\nHuman: and now?"),
    ("placeholder", "Dear [Your Name], thanks"),
    ("placeholder", "안녕하세요, {{name}}님"),
    ("mojibake", "Das fÃ¤llt schwer"),
    ("mojibake", "ì•ˆë…•í•˜ì„¸ìš”"),
    ("mojibake", "what\ufffd"),
    ("invisible", "pass\u200bword"),
    ("invisible", "\ufeffstart"),
    ("email", "write to kim.min@example.co.kr, please"),
    ("phone", "전화는 010-1234-5678 입니다"),
    ("phone", "call +82 10 1234 5678 now"),
    ("phone", "call (212) 555-0100"),
    ("link", "see https://example.org/a"),
]
CLEAN = [
    "The total is 1,234.50 dollars, 3-5 times as much as in 2019-2020.",
    "오늘은 비가 와서 집에 있었어요. 책도 읽고 차도 마셨습니다!",
    "I am sorry to hear that you feel unwell. Rest, and drink a lot of water.",
    "👨‍👩‍👧 می‌خواهم: joiners belong here",
    "if a < b and b > c: return ARRAY[2024-01-02]",
    "Â and Ã are letters of Portuguese: Ângela, São, NÃO",
    "ì, í, ë and ê are letters with accents",
    "pH, NASA and DNA are short",
]


@pytest.mark.parametrize(("name", "text"), SHOWN)
def test_signal_is_shown(name: str, text: str) -> None:
    assert [found for found, shown in signals(text).items() if shown] == [name]


@pytest.mark.parametrize("text", CLEAN)
def test_clean_texts_show_nothing(text: str) -> None:
    assert [name for name, shown in signals(text).items() if shown] == []


def test_every_signal_has_words_and_an_example() -> None:
    assert list(signals("x")) and set(signals("x")) == set(SIGNALS)
    assert set(SIGNALS) - {name for name, _ in SHOWN} == {"copies_prompt"}


def test_a_refusal_counts_only_at_the_start() -> None:
    assert not signals("The letter went on for pages. " * 7 + "I'm sorry, but I can't help with that.")["refusal"]


def test_completions_that_repeat_the_prompt() -> None:
    prompt = "How many legs has a spider?"
    assert signals("how many  legs has a spider? Eight.", prompt=prompt)["copies_prompt"]
    assert not signals("Eight.", prompt=prompt)["copies_prompt"]
    assert not signals("Why? Because.", prompt="Why?")["copies_prompt"]


def test_the_page_has_every_signal_in_the_same_words() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "quality.md").read_text(encoding="utf-8")
    for name, signal in SIGNALS.items():
        assert f"| `{name}` | {signal.sentence} | {signal.advice} |" in page


@pytest.mark.parametrize("unit", ["…", "a", " ", "<p ", "{{", "+1 ", "a@", "[your ", "Ã", "I'm sorry ", "\ud800", "가 "])
def test_long_texts_take_time_in_proportion(unit: str) -> None:
    start = time.process_time()
    signals("¿a" + unit * (100_000 // len(unit)) + "a", prompt="a")
    assert time.process_time() - start < 2.0
