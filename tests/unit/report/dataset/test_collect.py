"""Numbers of a data file, worked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from dataset_rows import instruction, pair

from align.records import Prompt, TextRow
from align.report.dataset.facts import Facts
from align.report.dataset.finding import counted, findings, share_text


def test_lengths_are_of_every_text_apart(measure: Callable[..., Facts]) -> None:
    facts = measure([pair(1, prompt="a b", chosen="ccc", rejected="d e f"), pair(2, prompt="abcd", chosen="c", rejected="d")])
    assert {name: lengths.counts for name, lengths in facts.characters.items()} == {
        "prompt": {3: 1, 4: 1},
        "chosen": {3: 1, 1: 1},
        "rejected": {5: 1, 1: 1},
    }
    assert facts.words["rejected"].counts == {3: 1, 1: 1}


def test_repeated_prompts_are_counted_over_all_rows(measure: Callable[..., Facts]) -> None:
    facts = measure([pair(number, prompt=f"Question {number % 3}?") for number in range(9)], sampled_rows=2)
    assert (facts.distinct, facts.sampled) == (3, 2)


def test_scores_that_contradict_the_choice_are_counted_and_told(measure: Callable[..., Facts]) -> None:
    scores = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0)]
    rows = [pair(number, chosen_score=chosen, rejected_score=rejected) for number, (chosen, rejected) in enumerate(scores, 1)]
    facts = measure([*rows, pair(4)])
    assert facts.scores is not None
    assert (facts.scores.pairs, facts.scores.inverted) == (3, 1)
    assert (facts.scores.chosen - facts.scores.rejected).tolist() == [1.0, -1.0, 0.0]
    assert "In 1 pair (33 %) the chosen side has the lower score." in [finding.sentence for finding in findings(facts)]


def test_a_preference_for_length_is_told_with_its_direction(measure: Callable[..., Facts]) -> None:
    longer = [pair(number, chosen="word " * (3 + number % 7), rejected="no") for number in range(200)]
    told = [finding.sentence for finding in findings(measure(longer))]
    assert any(sentence.startswith("100 % of the chosen completions are the longer ones") for sentence in told)
    shorter = [pair(number, chosen="no", rejected="word " * (3 + number % 7)) for number in range(200)]
    told = [finding.sentence for finding in findings(measure(shorter))]
    assert any(sentence.startswith("100 % of the chosen completions are the shorter ones") for sentence in told)


def test_overlap_is_looked_for_in_prompt_and_completions(measure: Callable[..., Facts]) -> None:
    question = "how many apples does the old farmer sell on a rainy market day"
    rows = [pair(1, prompt=f"Tell me: {question}?"), pair(2, chosen=f"You ask {question}."), pair(3)]
    facts = measure(rows, against={"held_out.jsonl": [("e1", question), ("e2", "an entirely different question about the moon")]})
    (overlap,) = facts.overlaps
    assert (overlap.prompts, overlap.rows, overlap.prompts_found) == (2, 2, 1)
    assert {(example.row, example.prompt_text) for example in overlap.examples} == {("line 1", question), ("line 2", question)}
    assert findings(facts)[0].level == "bad"
    assert findings(facts)[0].sentence.startswith("2 rows share a long run of words with 1 of the 2 prompts of held_out.jsonl")
    assert "(67 % of the rows); 2 rows hold nearly the whole of one." in findings(facts)[0].sentence


def test_clusters_show_two_rows_that_differ(measure: Callable[..., Facts]) -> None:
    text = "Write a short story about a dragon who guards the library of the sunken city"
    facts = measure([instruction(1, prompt=text), instruction(2, prompt=text), instruction(3, prompt=text + "!")], "instructions")
    (cluster,) = facts.duplicates.largest
    assert (cluster.size, facts.duplicates.redundant) == (3, 2)
    assert [place for place, _ in cluster.examples] == ["line 1", "line 3"]


@pytest.mark.parametrize("kind", ["prompts", "text"])
def test_rows_without_completions_have_numbers_too(kind: str, measure: Callable[..., Facts]) -> None:
    rows = {
        "prompts": [Prompt(id="1", prompt=pair(1).prompt, reference="7")],
        "text": [TextRow(id="1", line=1, text="Some text of one line.")],
    }
    facts = measure(rows[kind], kind)
    assert list(facts.characters) == [facts.subject]
    assert facts.preference is None
    json.dumps(facts.as_json(), allow_nan=False)


def test_findings_come_worst_first_and_name_dropped_rows(measure: Callable[..., Facts]) -> None:
    summary = {"dropped": {"not_json": 100}, "findings": {"conflicting_pairs": 2, "conflicting:label": 1}}
    rows = [instruction(number, prompt=f"Do {number} of {number**2}") for number in range(300)]
    found = findings(measure(rows, "instructions", summary=summary))
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=["bad", "warn", "note"].index)
    assert found[0].sentence == "100 rows of 400 (25 %) cannot be used: not_json 100."
    assert any("'label'" in finding.sentence for finding in found)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.00001, "< 0.01 %"), (0.0024, "0.24 %"), (0.058, "5.8 %"), (0.0996, "10 %"),
     (0.58, "58 %"), (0.999, "> 99 %"), (0.05, "5 %")],
)  # fmt: skip
def test_shares_are_never_rounded_to_none_or_all(share: float, text: str) -> None:
    assert share_text(share) == text


def test_counts_have_their_word_in_the_right_number() -> None:
    assert (counted(1, "row"), counted(1200, "row"), counted(0, "pair")) == ("1 row", "1,200 rows", "0 pairs")
