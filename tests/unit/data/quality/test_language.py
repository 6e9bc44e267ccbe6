"""The language of short lines."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from align.data.quality.language import language_of, language_shares

KOREAN = """\
밥 먹었어?
네
ㅋㅋㅋㅋ
안녕하세요, 반갑습니다.
오늘 날씨가 참 좋네요
Python에서 list를 sort하는 방법 알려줘
3월 1일은 무슨 날이야?
OK, 알겠어
이 문장을 영어로 번역해 줘: 나는 학생입니다
배고파
내일 회의는 몇 시에 시작하나요?
GPU 메모리가 부족해요
韓國의 역사를 설명해 주세요
서울 맛집 추천""".splitlines()
ENGLISH = """\
What is the capital of France?
Write a poem about the sea.
How do I sort a list in Python?
Please summarise the text below.
Tell me about the history of Rome
I can't help with that request.
Thank you very much for your help
The weather is nice today.
Explain gravity to a five year old
Give me three tips for staying healthy
Why is the sky blue during the day?
She has twice as many apples as Tom.
WHAT TIME DOES THE MEETING START?
Translate this sentence into Korean.
Who wrote Romeo and Juliet?
My computer won't turn on, what now?""".splitlines()


@pytest.mark.parametrize("text", KOREAN)
def test_korean_however_short(text: str) -> None:
    assert language_of(text) == "ko"


def test_english_lines_are_english_or_at_least_nothing_else() -> None:
    """16 sentences of 20 letters and more; one with two Italian names is left undecided."""
    assert Counter(map(language_of, ENGLISH)) == {"en": 15, "und": 1}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("東京の天気はどうですか", "ja"),
        ("カレー", "ja"),
        ("今天天气怎么样？", "zh"),
        ("これは日本語の文章です。", "ja"),
        ("สวัสดีครับ", "th"),
        ("Γειά σου", "el"),
        ("שלום", "he"),
        ("Wie komme ich am besten zum Bahnhof?", "de"),
        ("Quelle est la capitale de l'Allemagne ?", "fr"),
        ("¿Cuál es la capital de Alemania y cuántos habitantes tiene?", "es"),
        ("Qual è la capitale della Germania e quanti abitanti ha?", "it"),
        ("Какая столица у Германии и сколько там жителей?", "ru"),
        ("ما هي عاصمة ألمانيا وكم عدد سكانها؟", "ar"),
        ("जर्मनी की राजधानी क्या है और वहाँ कितने लोग रहते हैं?", "hi"),
        ("Thủ đô của nước Đức là gì và có bao nhiêu dân?", "vi"),
    ],
)
def test_other_languages(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize("text", ["", "  \n", "12345 + 67 = ?", "😀😀", "ok", "Hi there", "Да", "\ud800"])
def test_what_cannot_be_said_is_not_guessed(text: str) -> None:
    assert language_of(text) == "und"


def test_shares_are_sorted() -> None:
    assert language_shares(["배고파", "ok", "졸려", *ENGLISH[:1]]) == {"ko": 0.5, "en": 0.25, "und": 0.25}
    assert language_shares([]) == {}


def test_threads_agree() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(language_of, ENGLISH * 10)) == [*map(language_of, ENGLISH)] * 10
