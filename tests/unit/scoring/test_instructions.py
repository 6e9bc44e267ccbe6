"""IFEval's instructions, worked by hand: what follows each passes, and what nearly follows it fails, in Korean as in English."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align.config.rules import RuleSet
from align.errors import DataError
from align.scoring.instructions import CHECKS, LEFT_OUT
from align.scoring.rules import RuledPrompt, score_with_rules

WORDS, OFTEN, LETTER = "keywords:existence", "keywords:frequency", "keywords:letter_frequency"
FORBIDDEN, LENGTH = "keywords:forbidden_words", "length_constraints:number_words"
PARTS, FIRST = "length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word"
PLACES, POSTSCRIPT = "detectable_content:number_placeholders", "detectable_content:postscript"
BULLETS, CHOSEN = "detectable_format:number_bullet_lists", "detectable_format:constrained_response"
STARS, SECTIONS = "detectable_format:number_highlighted_sections", "detectable_format:multiple_sections"
JSON, TITLE = "detectable_format:json_format", "detectable_format:title"
LANGUAGE = "language:response_language"
TWO, REPEAT = "combination:two_responses", "combination:repeat_prompt"
END, QUOTED = "startend:end_checker", "startend:quotation"
UPPER, LOWER, COMMA = "change_case:english_capital", "change_case:english_lowercase", "punctuation:no_comma"

Case = tuple[str, dict[str, Any], str, str]
CASES: list[Case] = [  # instruction, arguments, a completion that follows it, one that does not
    (WORDS, {"keywords": ["mom", "Mother"]}, "Mom is my mother.", "Mom is my parent."),
    (WORDS, {"keywords": ["위로", "친구"]}, "친구를 위로했다.", "친구를 도왔다."),
    (WORDS, {"keywords": ["a.c"]}, "It is a.c here.", "It is abc here."),
    (FORBIDDEN, {"forbidden_words": ["rock"]}, "The rocket is here.", "It can ROCK!"),
    (FORBIDDEN, {"forbidden_words": ["field", "thanks"]}, "Many fields, thankless.", "No field."),
    (FORBIDDEN, {"forbidden_words": ["바위"]}, "돌이 많다.", "바위는 크다."),
    (FORBIDDEN, {"forbidden_words": ["위"]}, "바위는 크다.", "산 위에 있다."),
    (OFTEN, {"keyword": "war", "relation": "at least", "frequency": 2}, "War after war.", "One war."),
    (OFTEN, {"keyword": "war", "relation": "less than", "frequency": 2}, "One war.", "War after war."),
    (OFTEN, {"keyword": "봄", "relation": "at least", "frequency": 2}, "봄이 오면 봄꽃이 핀다.", "봄이 온다."),
    (LETTER, {"letter": "o", "let_relation": "at least", "let_frequency": 3}, "Oh, moon.", "Oh, one."),
    (LETTER, {"letter": "#", "let_relation": "less than", "let_frequency": 2}, "# Title", "# One\n# Two"),
    (LENGTH, {"relation": "at least", "num_words": 3}, "one two-three", "one two"),
    (LENGTH, {"relation": "less than", "num_words": 3}, "하나, 둘.", "하나, 둘, 셋."),
    (LENGTH, {"relation": "at least", "num_words": 3.0}, "나는 오늘 갔다", "나는 갔다"),
    (PARTS, {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    (PARTS, {"num_paragraphs": 2}, "***\n하나.\n***\n둘.\n***", "하나.\n***\n***\n둘."),
    (FIRST, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"}, "A.\n\nweekend, ho!", "Weekend.\n\nA."),
    (FIRST, {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "주말"}, '"주말" 계획.\n\n\n\n끝.', "주말 계획."),
    (PLACES, {"num_placeholders": 2}, "[name] lives in [도시].", "[name] lives in [\n]."),
    (POSTSCRIPT, {"postscript_marker": "P.S."}, "Bye.\nP. S. Call me.", "Bye.\nPS Call me."),
    (POSTSCRIPT, {"postscript_marker": "P.P.S"}, "안녕.\np.p.s 전화해.", "안녕.\nP.S. 전화해."),
    (POSTSCRIPT, {"postscript_marker": "추신"}, "안녕.\n추신: 전화해.", "안녕. 전화해."),
    (BULLETS, {"num_bullets": 2}, "List:\n* one\n- two", "List:\n* one\n- two\n- three"),
    (BULLETS, {"num_bullets": 1}, "**굵게**\n- 하나", "**굵게**\n1. 하나"),
    (CHOSEN, {}, "Well. My answer is no. Sorry.", "My answer is: no."),
    (STARS, {"num_highlights": 2}, "*one* and **two**", "*one* and **two"),
    (STARS, {"num_highlights": 1}, "*강조*는 여기.", "** ** 그리고 * *"),
    (SECTIONS, {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\nA\nSECTION2\nB", "SECTION 1\nA\nSection 2\nB"),
    (JSON, {}, '```json\n{"이름": "민지"}\n```', "```json\n{'name': 'Ada'}\n```"),
    (JSON, {}, "[1, 2]", 'Here: {"a": 1}'),
    (TITLE, {}, "<<봄>>\n시", "<< >>\npoem"),
    (TITLE, {}, "text <<A title>>", "<A title>"),
    (TWO, {}, "하나.\n******\n둘.", "하나.\n******\n하나."),
    (TWO, {}, "******A******B", "A******B******C"),
    (REPEAT, {"prompt_to_repeat": "Write a poem."}, "write a poem. Roses.", "Roses. Write a poem."),
    (REPEAT, {"prompt_to_repeat": "시를 써 줘."}, " 시를 써 줘.\n봄", "시를 써줘.\n봄"),
    (END, {"end_phrase": "Anything else?"}, 'Done. "anything else?"', "Anything else? Bye."),
    (END, {"end_phrase": "더 도울까요?"}, "끝. 더 도울까요? ", "더 도울까요? 네."),
    (QUOTED, {}, ' "안녕" ', "“안녕”"),
    (QUOTED, {}, '"A "quoted" day"', '"'),
    (UPPER, {}, "ALL RIGHT, 3 TIMES!", "ALL RIGHt"),
    (UPPER, {}, "CAFÉ", "안녕하세요 A"),
    (LOWER, {}, "all right, 3 times!", "all Right"),
    (LOWER, {}, "it's ok", "좋아 ok"),
    (UPPER, {}, "THE WEATHER IS NICE AND WE WALK.", "DAS WETTER IST SCHÖN UND WIR GEHEN HEUTE SPAZIEREN."),
    (LANGUAGE, {"language": "ko"}, "OK, 오늘은 정말 힘들었겠구나.", "Today was hard. 네."),
    (
        LANGUAGE,
        {"language": "de"},
        "Das Wetter ist heute schön, und wir gehen spazieren.",
        "The weather is nice today, so we go out.",
    ),
    (COMMA, {}, "No such thing; see.", "Yes, one."),
    (COMMA, {}, "쉼표가 없다.", "봄，여름"),
]


def score(kinds: Any, given: Any, completion: str, **rule: Any) -> float:
    rules = RuleSet.model_validate({"rules": [{"name": "obeyed", "type": "instructions", **rule}]})
    fields = {"instruction_id_list": json.dumps(kinds), "kwargs": json.dumps(given)}
    return score_with_rules(rules, RuledPrompt("p-1", fields=fields), completion).score


@pytest.mark.parametrize(("kind", "arguments", "follows", "fails"), CASES)
def test_each_instruction(kind: str, arguments: dict[str, Any], follows: str, fails: str) -> None:
    assert score([kind], [arguments], follows) == 1
    assert score([kind], [arguments], fails) == 0


def test_every_kind_is_among_the_cases() -> None:
    assert {case[0] for case in CASES} == set(CHECKS)
    assert len(CASES) >= 40
    assert len(CHECKS) + len(LEFT_OUT) == 25


def test_all_instructions_of_a_prompt_count_and_nothing_follows_none() -> None:
    ids, arguments = [COMMA, LENGTH], [{}, {"relation": "less than", "num_words": 3}]
    assert score(ids, arguments, "two words") == 1
    assert score(ids, arguments, "three words here") == score(ids, arguments, "two, words") == score(ids, arguments, " ") == 0
    assert score([COMMA], [None], "x" * 50_001) == 0
    assert score(COMMA, {}, "one instruction that is no list") == 1


def test_loose_accuracy_forgives_a_first_line_a_last_line_and_asterisks() -> None:
    for completion in ("Sure, here:\nIt is red.", "It is red.\nWell, bye.", "Sure, so:\nRed.\nBye, you."):
        assert score([COMMA], [{}], completion) == 0
        assert score([COMMA], [{}], completion, loose=True) == 1
    assert score([QUOTED], [{}], '**"Red."**', loose=True) == 1
    assert score([COMMA], [{}], "A,\nb,\nc,", loose=True) == 0


@pytest.mark.parametrize(
    ("ids", "arguments", "problem"),
    [
        (["length_constraints:number_sentences"], [{}], "not checked here: it needs a model that finds sentences"),
        (["language:response_language"], [{"language": "tlh"}], "'tlh' as 'language' .*, where one of af am ar"),
        (["keywords:all"], [{}], "the unknown instruction 'keywords:all'; known: change_case:english_capital,"),
        ([COMMA, JSON], [{}], "2 instructions, but arguments for 1"),
        ([], [], "no instruction"),
        (
            [LENGTH],
            [{"relation": "at most", "num_words": 3}],
            "'at most' as 'relation' .*, where at least or less than is expected",
        ),
        ([LENGTH], [{"relation": "at least"}], "'None' as 'num_words' .*, where a whole number is expected"),
        ([WORDS], [{"keywords": [""]}], "where a list of texts is expected"),
        ([COMMA], ["x"], "'x' as arguments of 'punctuation:no_comma', where a mapping is expected"),
    ],
)
def test_rows_that_cannot_be_checked_are_errors(ids: Any, arguments: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        score(ids, arguments, "text")
    with pytest.raises(DataError, match="no such column: 'rules'"):
        score([COMMA], [{}], "text", ids="rules")
