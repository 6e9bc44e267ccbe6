"""Overlap of rows with evaluation prompts."""

from __future__ import annotations

import pytest

from align.data.quality.overlap import EvaluationIndex, Overlap

SUM = "A train travels 360 miles in 3 hours. At the same rate, how far does it go in 5 hours?"  # 20 words, 13 runs of eight
KOREAN = "서울에서 부산까지 기차로 가는 가장 빠른 방법을 알려 주세요."  # 25 letters, 6 runs of 20
HEAD = "Please answer the following question about the text below in one word: "


def test_a_copy_is_found_in_any_dress() -> None:
    index = EvaluationIndex([("sum", SUM)])
    found = index.overlap(f"Solve this!\n\n{SUM.upper().replace(' ', '  ')} Thanks.")
    assert found == Overlap("sum", "a train travels 360 miles in 3 hours", 1.0)


def test_share_counts_the_prompts_ngrams_that_are_there() -> None:
    """The first 11 of 20 words: 4 of 13 n-grams. The first 10: 3 of 13, which is too little."""
    index = EvaluationIndex([("sum", SUM)])
    found = index.overlap("A train travels 360 miles in 3 hours. At the same weight")
    assert found is not None and found.share == pytest.approx(4 / 13)
    assert index.overlap("A train travels 360 miles in 3 hours. At the end") is None


def test_a_shared_frame_is_no_overlap() -> None:
    """13 words of 13 + 20 are the same: 6 of 26 n-grams, however many prompts have them."""
    tail = " ".join(f"word{number}" for number in range(20))
    index = EvaluationIndex([("a", HEAD + tail), ("b", HEAD + tail[::-1])])
    assert index.overlap(HEAD + "Who wrote it?") is None
    assert EvaluationIndex([("a", HEAD + tail)], min_share=0.0).overlap(HEAD + "Who wrote it?") is not None


def test_the_largest_share_wins_and_then_the_first() -> None:
    index = EvaluationIndex([("half", SUM + " " + SUM.replace("train", "car").replace("far", "long")), ("a", SUM), ("b", SUM)])
    found = index.overlap(SUM)
    assert found is not None and (found.prompt_id, found.share) == ("a", 1.0)


def test_short_prompts_are_found_whole_and_very_short_ones_only_alone() -> None:
    index = EvaluationIndex([("four", "Tell me a joke!"), ("one", "Why?")])
    assert index.overlap("Hello. Tell me a JOKE, please") == Overlap("four", "tell me a joke", 1.0)
    assert index.overlap("Tell me a long joke") is None
    assert index.overlap("I do not know why") is None
    assert index.overlap("why") == Overlap("one", "why", 1.0)
    assert index.overlap("I do not know", "Why?") == Overlap("one", "why", 1.0)


def test_korean_is_compared_without_its_spaces() -> None:
    index = EvaluationIndex([("기차", KOREAN), ("밥", "밥 먹었어?")])
    found = index.overlap("질문: " + KOREAN.replace("알려 주세요", "알려주세요"))
    assert found == Overlap("기차", "서울에서부산까지기차로가는가장빠른방법을", 1.0)
    assert index.overlap("서울에서 부산까지 버스로 가는 가장 느린 방법") is None
    assert index.overlap("밥 먹었어") is not None
    assert index.overlap("아침에 밥 먹었어") is None


def test_chinese_and_japanese_have_no_words() -> None:
    index = EvaluationIndex(
        [
            ("zh", "请用三句话介绍一下北京的历史和文化，不要使用任何数字。"),
            ("ja", "東京から京都まで一番早く行く方法を教えてください。"),
        ]
    )
    assert index.overlap("你好。请用三句话介绍一下北京的历史和文化,不要使用任何数字!") is not None
    assert index.overlap("東京から京都まで一番早く行く方法を教えてくれ!") is not None
    assert index.overlap("请用两句话介绍一下上海的天气。") is None


def test_texts_without_words_overlap_nothing() -> None:
    index = EvaluationIndex([("blank", " …\n"), ("sum", SUM)])
    assert [index.overlap(text) for text in ("", "…", "\ud800")] == [None] * 3
    assert index.overlap() is None
    assert EvaluationIndex([]).overlap(SUM) is None


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="ngram_words >= 4"):
        EvaluationIndex([], ngram_words=3)
    with pytest.raises(ValueError, match="min_share"):
        EvaluationIndex([], min_share=1.5)
