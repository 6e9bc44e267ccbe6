"""The rules that read one answer: numeric, choice, expression. Every case was worked by hand."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.rules import RuleSet
from align.errors import DataError, StageError
from align.scoring import rules as scoring
from align.scoring.choice import choice_of
from align.scoring.expression import Value, evaluate, reaches
from align.scoring.numbers import last_number
from align.scoring.rules import RuledPrompt, score_with_rules

HASHES = {"type": "numeric_answer", "pattern": r"####\s*(.+)"}
BOXED = {"type": "numeric_answer", "pattern": r"\\boxed\{((?:[^{}]|\{(?1)\})*)\}"}


def passes(rule: dict[str, Any], completion: str, reference: str | None = None, **fields: str) -> bool:
    rules = RuleSet.model_validate({"rules": [{"name": "answer", **rule}]})
    return score_with_rules(rules, RuledPrompt("p-1", reference, fields), completion).score == 1.0


NUMBERS_THAT_PASS = [
    ("So 3 + 4 = 7.", "7"),
    ("It is 72", "48/2 = <<48/2=24>>24 and 48+24 = 72\n#### 72"),
    ("It costs $1,234.", "#### 1,234"),
    ("1234567 won", "1,234,567"),
    ("₩5,000", "5000"),
    ("5,000원입니다.", "5000"),
    ("USD5", "5"),
    ("\\$18 a day", "18"),
    ("답은 사과 12개야", "12"),
    ("3만 5천 원", "35000"),
    ("1억 2천만 명", "120000000"),
    ("2천5백만", "25,000,000"),
    ("3.5만", "35,000"),
    ("케이크 3조각", "3"),
    ("50%", "50"),
    ("100 %", "100 percent"),
    ("1/2", "0.5"),
    ("5 / 2 cups", "2.5"),
    ("3 1/2 cups", "3.5"),
    ("2½", "5/2"),
    (r"$\frac{3}{4}$", "0.75"),
    (r"-\dfrac{1}{3}", "-1/3"),
    ("1.5e3", "1500"),
    ("1.5E+3", "1500"),
    ("1.5 × 10^3 m", "1500"),
    (r"2 \times 10^{-2}", "0.02"),
    ("3 × 10⁸ m/s", "300,000,000"),
    ("5 million", "5,000,000"),
    ("$2.5K", "2500"),
    ("3 dozen eggs", "36"),
    ("The answer is -5", "-5.0"),
    ("The answer is −5", "-5"),
    ("-$5", "$-5"),
    ("from 9-5", "5"),
    ("about .50", "0.5"),
    ("3.14.", "3.14"),
    ("12 cm2", "12"),
    ("5 m^2", "5"),
    ("first 3, then 4, so [3, 4]", "4"),
    ("**42**", "42"),
    (r"\boxed{1{,}234}", "1234"),
    ("* 5\n* 6", "6"),
]
NUMBERS_THAT_FAIL = [
    ("It is 7, not 8", "7"),
    ("no number", "12"),
    ("", "12"),
    ("twelve", "12"),
    ("The answer is -5", "5"),
    ("-$5", "5"),
    ("5", "-5"),
    ("5 million", "5"),
    ("2 dozen", "2"),
    ("2.5K", "2.5"),
    ("3만", "3"),
    ("3만 5천", "5000"),
    ("3만 5천", "5"),
    ("2천만", "2000"),
    ("50%", "0.5"),
    ("1/2", "2"),
    ("1/2", "1"),
    ("3 1/2", "0.5"),
    (r"\frac{1}{2}", "2"),
    ("1/0", "0"),
    ("1.5e3", "3"),
    ("1.5 × 10^3", "3"),
    ("10⁶", "10"),
    ("2^10", "10"),
    ("2**10", "1024"),
    ("9**9**9", "9"),
    ("70 + 2", "2"),
    ("70 + 2", "72"),
    ("12 - 5", "5"),
    ("3 x 4", "4"),
    ("10:30", "30"),
    ("2024/5/6", "6"),
    ("version 1.2.3", "3"),
    ("1,2", "2"),
    ("12,34", "34"),
    ("1 000", "0"),
    ("H2O", "2"),
    ("5 m^2", "2"),
    ("12 cm2", "2"),
    ("3.14", "3.1400001"),
    ("9" * 200, "9"),
    ("1e999", "1"),
    ("0.30000000000000004", "0.3"),
]


@pytest.mark.parametrize(("completion", "reference"), NUMBERS_THAT_PASS)
def test_numbers_that_are_equal(completion: str, reference: str) -> None:
    assert passes({"type": "numeric_answer"}, completion, reference)


@pytest.mark.parametrize(("completion", "reference"), NUMBERS_THAT_FAIL)
def test_numbers_that_are_not_equal(completion: str, reference: str) -> None:
    assert not passes({"type": "numeric_answer"}, completion, reference)


@pytest.mark.parametrize(
    ("rule", "completion", "expected"),
    [
        (HASHES, "3 + 4 = 7\n#### 7", True),
        (HASHES, "#### 8\nNo:\n#### 7\nThat took 2 steps.", True),
        (HASHES, "#### 7 apples, and that is 7", True),
        (HASHES, "#### 7 or 8", False),
        (HASHES, "#### 8 or 7", False),
        (HASHES, "The answer is 7", False),
        (BOXED, r"So \boxed{7} in 3 steps", True),
        (BOXED, r"So \boxed{\frac{14}{2}} in 3 steps", True),
        (BOXED, r"So \boxed{\frac{7}{2}} = 7", False),
        ({"type": "numeric_answer", "tolerance": 0.1}, "7.1", True),
        ({"type": "numeric_answer", "tolerance": 0.1}, "6.9", True),
        ({"type": "numeric_answer", "tolerance": 0.1}, "7.1000001", False),
    ],
)
def test_where_the_number_stands_and_how_near_it_is(rule: dict[str, Any], completion: str, expected: bool) -> None:
    assert passes(rule, completion, "7") is expected


@given(st.fractions(max_denominator=10**6), st.sampled_from(["The answer is {}.", "답은 {}입니다", "**{}**", "x = {}"]))
def test_any_fraction_is_read_back(number: Fraction, frame: str) -> None:
    assert last_number(frame.format(number)) == number


LETTERS = {"type": "choice_answer", "choices": ["A", "B", "C", "D", "E"]}
CIRCLES = {"type": "choice_answer", "choices": ["①", "②", "③", "④", "⑤"]}
CHOICES_OF_B = [
    "B", "b", "(B)", "(b)", "b)", "B.", "B!", "[B]", "**B**", " B\n", '"B"', "B번", "B번입니다.",
    "B) because A is wrong", "B. Paris",
    "B: Paris", "(B) Paris", "The answer is (B).", "The answer is B", "The correct answer is: B", "Answer: B", "Answer: (b)",
    "answer = B", "Final answer: **B**.", "The answer is\nB", "The best option is B.", "The correct choice would be B.",
    "The answer is option B.", "I choose B.", "I'd go with B", "I pick (B), not A.", "B is correct.",
    "Option B is correct; A is not.",
    "(B) is the right answer", "B is the best answer because C is wrong.", r"\boxed{B}", r"So $\boxed{\text{B}}$.", "#### B",
    "정답은 B입니다", "정답: B", "답은 (B)이다.", "B가 정답입니다.", "B가 맞습니다", "A) Rome\nB) Paris\nThe answer is B.",
    "A is too small. C is too large.\nB", "The answer is B. So B is correct.", "The answer is B, not C.",
]  # fmt: skip
NO_CHOICES_OF_B = [
    "", "A", "C) because B is wrong", "The answer is A.", "정답은 C입니다", "no idea", "Be careful", "Bananas",
    "a big B-tree", "B2",
    "A, B", "A/B", "A or B", "A B C D E", "The answer is A or B.", "The answer is B or C", "The answer is (B) and (C).",
    "The answer is B, C", "정답은 B와 C입니다", "정답은 B 또는 C입니다", "The answer is A. The answer is B.", "B\nC",
    "A) Rome\nB) Paris\nC) Bern", "The answer is not B.", "The answer isn't B.", "I don't think the answer is B.",
    "If the answer is B, then 1 = 2.", "The wrong answer is B.", "An incorrect option is B", "오답은 B입니다",
    "정답은 B가 아닙니다",
    "정답은 B가 아니라 C입니다", "B가 맞지 않습니다", "B가 정답이 아닙니다", "Option B is incorrect.", "B is wrong",
    "(B) is wrong.",
    "B) incorrect", "(B)는 틀렸습니다", "B is not correct", "Is the answer B?", "Could the answer be B?",
    "The answer is B?", "B?",
    "B) Paris. But the answer is C.", "the answer is beautiful", "Vitamin B", "Plan B was good", "\\boxed{A} or \\boxed{B}",
]  # fmt: skip


@pytest.mark.parametrize("completion", CHOICES_OF_B)
def test_the_option_is_chosen(completion: str) -> None:
    assert passes(LETTERS, completion, "B")


@pytest.mark.parametrize("completion", NO_CHOICES_OF_B)
def test_the_option_is_not_chosen(completion: str) -> None:
    assert not passes(LETTERS, completion, "B")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("③", True), ("3", True), ("(3)", True), ("3번", True), ("정답은 3번입니다", True), ("답은 ③ 서울이다.", True),
        ("정답: 3", True), ("1. Count.\n2. Add.\nThe answer is 3", True), ("3.5", False),
        ("The answer is 3.5", False), ("13", False),
        ("-3", False), ("3. Count.", False), ("①, ③", False), ("정답은 ④", False), ("1. Count.\n2. Add.\n3. Stop.", False),
    ],
)  # fmt: skip
def test_numbered_options(completion: str, expected: bool) -> None:
    assert passes(CIRCLES, completion, "③") is expected
    assert passes({**CIRCLES, "choices": ["1", "2", "3", "4", "5"]}, completion, "(3) 서울") is expected


def test_where_the_option_stands() -> None:
    rule = {**LETTERS, "pattern": "<answer>(.*?)</answer>"}
    assert passes(rule, "A is close. <answer>B</answer>", "B")
    assert not passes(rule, "<answer>A or B</answer>", "B")
    assert not passes(rule, "The answer is B", "B")


@pytest.mark.parametrize("choices", [["A"], ["A", "A"], ["①", "1"], ["(A)", "(B)"], ["a", "b"], ["가", "나"], ["A", ""]])
def test_labels_that_cannot_be_read_are_refused(choices: list[str]) -> None:
    with pytest.raises(ValidationError):
        RuleSet.model_validate({"rules": [{**LETTERS, "name": "answer", "choices": choices}]})


COUNTDOWN = {"type": "expression", "numbers": "numbers"}
WAYS_TO_56 = [
    "(3+5)*7", "(5+3)*7", "7*(3+5)", "7 * (5 + 3)", "((3+5))*7", "(((3+5)*7))", "(3 + 5) * 7 = 56",
    "56 = (3+5)*7", "The answer is (3+5)*7", "The answer is (3+5)*7.", "Answer: (3+5)*7", "Answer = (3+5)*7", "x = (3+5)*7",
    "`(3+5)*7`", "**(3+5)*7**", "**Answer:** (3+5)*7", "$(3+5)*7$", r"$(3+5)\times 7$", r"\((3+5) \cdot 7\)", "(3+5)×7",
    "(3+5)x7", "(3 + 5) x 7 = 56", "(3+5)·7 = 56", "- (3+5)*7", "* (3+5)*7", "1. (3+5)*7", "답은 (3+5)*7입니다.",
    "답: (3+5)*7 = 56",
    "(3+5)*7이다", "I try 3*5+7 = 22.\nThat is too small.\n(3+5)*7 = 56", "3 + 5 = 8, so:\n7*(3+5)", "(3+5)*7\n\n", "  (3+5)*7  ",
    "(3+5)*7 = 56.0", "(3+5)*7!", "Use 3, 5 and 7: (3+5)*7", "So (3+5)*7 = 56.", "56=7*(5+3)", "(3+5)*(7)", r"\left(3+5\right)*7",
    "(3 +5)* 7", "Try: (5 + 3) * 7",
]  # fmt: skip
NO_WAYS_TO_56 = [
    "", "56", "56 = 56", "no idea", "3*5*7", "3+5+7", "(3+5)*7 = 57", "57 = (3+5)*7", "(3+5)*7 = 8*7", "(3+5)*7 = 8*7 = 56",
    "7*8", "7*8 = 56", "35+21", "(3+5)*7*1", "(3+5)*7+0", "(3+5)*7+3-3", "(3+5)*(7+5-5)", "(5+5-2)*7", "(3+5)7", "3+5*7",
    "(3+5)*7)", "((3+5)*7", "(3+5)**7", "9**9**9", "(3+5)//7*56", "-(3+5)*-7", "+(3+5)*7", "(3+5)*7%99", "1.5+(3+5)*7",
    "x(3+5)*7", "abs(3+5)*7", "__import__('os').system('ls')", "(lambda: 56)()", "7/(3-3)", "7/(5-5)+56", "(3+5)*7 or so",
    "(3+5)*7 is 56, I think", "(3+5)*7\nI give up.", "(3+5)*7, (3+5)*8", "3 5 7", "(03+5)*7", "1e1*5+6", "(3+5)*7 != 57",
    "= 56", "(" * 200 + "56" + ")" * 200, "28*2 = 56", "5 6",
]  # fmt: skip


@pytest.mark.parametrize("completion", WAYS_TO_56)
def test_expressions_that_reach_the_target(completion: str) -> None:
    assert passes(COUNTDOWN, completion, "56", numbers="3 5 7")


@pytest.mark.parametrize("completion", NO_WAYS_TO_56)
def test_expressions_that_do_not(completion: str) -> None:
    assert not passes(COUNTDOWN, completion, "56", numbers="3 5 7")


@pytest.mark.parametrize(
    ("rule", "completion", "numbers", "expected"),
    [
        ({}, "5*7", "3, 5, 7", False),
        ({"use": "at_most_once"}, "5*7", "3, 5, 7", True),
        ({"use": "at_most_once"}, "5*7", "[5, 7]", True),
        ({"use": "at_most_once"}, "5*7*3/3", "3 5 7", False),
        ({"use": "at_most_once"}, "35", "35", True),
        ({}, "7*(2+3)", "2 3 7", True),
        ({}, "1/(3/(35*3))", "1 3 3 35", True),
        ({"pattern": "<answer>(.*?)</answer>"}, "2+3 is 5. <answer>7*(2+3)</answer> Done.", "2 3 7", True),
        ({"pattern": "<answer>(.*?)</answer>"}, "7*(2+3)", "2 3 7", False),
    ],
)
def test_which_numbers_and_where(rule: dict[str, Any], completion: str, numbers: str, expected: bool) -> None:
    assert passes({**COUNTDOWN, "target": "goal", **rule}, completion, numbers=numbers, goal="35") is expected


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(lambda number: (str(number), Fraction(number), (number,))),
    lambda parts: st.tuples(parts, st.sampled_from("+-*"), parts).map(
        lambda three: (
            f"({three[0][0]}{three[1]}{three[2][0]})",
            {"+": three[0][1] + three[2][1], "-": three[0][1] - three[2][1], "*": three[0][1] * three[2][1]}[three[1]],
            (*three[0][2], *three[2][2]),
        )
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_an_expression_is_worth_what_it_was_built_from(built: tuple[str, Fraction, tuple[int, ...]]) -> None:
    text, value, numbers = built
    assert evaluate(text) == Value(value, numbers)
    assert reaches(f"So {text}", numbers[::-1], value)
    assert not reaches(text, numbers, value + 1)
    assert not reaches(text, (*numbers, 1), value)
    assert reaches(text, (*numbers, 1), value, "at_most_once")


@given(st.text(alphabet="0123456789+-*/() =.x^e", max_size=40))
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert evaluate(text) is None or evaluate(f"({text})") is not None
    assert isinstance(reaches(text, [1, 2], Fraction(3)), bool)
    assert last_number(text) is None or isinstance(last_number(text), Fraction)


@pytest.mark.parametrize(
    ("rule", "reference", "fields", "lack"),
    [
        (LETTERS, "Paris", {}, "none of A, B, C, D, E in `reference`"),
        (LETTERS, None, {}, "no `reference`"),
        (COUNTDOWN, "56", {}, "no such column: 'numbers'"),
        (COUNTDOWN, "56", {"numbers": "3.5 7"}, "'3.5 7' as 'numbers'"),
        (COUNTDOWN, None, {"numbers": "3 5"}, "no number in `reference`"),
        ({**COUNTDOWN, "target": "goal"}, "56", {"numbers": "3 5"}, "no number in column 'goal'"),
        ({"type": "numeric_answer"}, "10:30", {}, "no number in `reference`"),
    ],
)
def test_a_prompt_that_cannot_be_judged_is_named(
    rule: dict[str, Any], reference: str | None, fields: dict[str, str], lack: str
) -> None:
    with pytest.raises(DataError, match=lack):
        passes(rule, "56", reference, **fields)


@pytest.mark.parametrize(
    "unit",
    ["9", "1,", "1 ", "-", "1/", "1만", "^", "1 1/", "$", "-$", "\\frac{", " ", "\n", "(", "1+", "A,", "A\n", "A) ",
    "the answer is ",
     "not answer is A ", "\\boxed", "\\text {", "if ", "가", "B가 "],
)  # fmt: skip
def test_hostile_completions_take_no_time(unit: str) -> None:
    for length in (20_000, 1_000_000):
        text = (unit * (length // len(unit) + 1))[:length]
        started = time.process_time()
        passes({"type": "numeric_answer"}, text, "1")
        passes(LETTERS, text, "A")
        passes(COUNTDOWN, text, "1", numbers="1")
        assert time.process_time() - started < 2


def test_a_hostile_pattern_of_an_answer_cannot_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PATTERN_TIMEOUT_S", 0.05)
    with pytest.raises(StageError, match="took more than"):
        passes({"type": "numeric_answer", "pattern": r"^(a|aa)+$"}, "a" * 60 + "b", "1")


def test_labels_are_returned_as_given() -> None:
    assert choice_of("1번", ["①", "②"]) == "①"
