"""The report in the terminal and as a page: hostile texts are shown and never obeyed; everything is in one file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from dataset_rows import instruction, pair
from playwright.sync_api import Browser
from rich.cells import cell_len
from rich.console import Console

from align.records import Record
from align.report.dataset.facts import Facts
from align.report.dataset.html import render_page, write_page
from align.report.dataset.terminal import PIECES_SHOWN, dataset_report
from align.report.dataset.tokens import TrainingView
from align.rows import INSTRUCTIONS
from align.visible import one_line, shortened, visible

HOSTILE = "\x1b]0;owned\x07\x1b[31m<script>alert('x')</script> \u202ereversed\u202c \x9b2J"


def hostile_rows() -> list[Record]:
    score = {"chosen_score": 1.0, "rejected_score": 0.5}
    rows = [pair(number, prompt=f"{HOSTILE} 한국어 질문 {number // 3}", chosen=HOSTILE, **score) for number in range(1, 30)]
    return [*rows]


@pytest.fixture(scope="module")
def facts(measure: Callable[..., Facts], training: TrainingView) -> Facts:
    against = {f"{HOSTILE}.jsonl": [(HOSTILE, f"{HOSTILE} 한국어 질문 1")]}
    summary = {"dropped": {"not_json": 3}, "notes": [f"columns not used: {HOSTILE}"]}
    return measure(hostile_rows(), view=training, against=against, summary=summary)


@pytest.fixture(scope="module")
def page(facts: Facts, training: TrainingView, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, facts, training, command=f"align data inspect '{HOSTILE}'")
    return path.read_text(encoding="utf-8")


def printed(facts: Facts, training: TrainingView | None, *, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False, color_system=None).print(dataset_report(facts, training))
    return stream.getvalue()


def test_no_control_character_reaches_the_terminal(facts: Facts, training: TrainingView) -> None:
    text = printed(facts, training)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "␛[31m<script>" in text


def test_the_terminal_report_fits_80_columns(facts: Facts, training: TrainingView) -> None:
    assert max(cell_len(line) for line in printed(facts, training).splitlines()) <= 80


def test_the_terminal_counts_every_token_that_it_leaves_out(measure: Callable[..., Facts], training: TrainingView) -> None:
    row = instruction(1, completion="x1" * 1_000)
    (sequence,) = training.sequences(INSTRUCTIONS, row)
    hidden = [piece for piece in sequence.pieces if piece.trained][PIECES_SHOWN // 2 : -PIECES_SHOWN // 2]
    text = " ".join(printed(measure([row], "instructions", view=training), training).split())
    assert f"{sum(piece.tokens for piece in hidden):,} tokens not shown" in text


def test_the_mask_is_seen_without_colours(measure: Callable[..., Facts], training: TrainingView) -> None:
    rows = [instruction(1, completion="the answer is 7")]
    text = printed(measure(rows, "instructions", view=training), training)
    assert "⟦the answer is 7<|im_end|>⟧" in text
    assert "<|im_start|>assistant⏎" in text


def test_without_a_model_samples_are_shown_by_role(measure: Callable[..., Facts]) -> None:
    facts = measure([instruction(1, completion="the answer is 7")], "instructions")
    text = printed(facts, None)
    assert re.search(r"user *\n  Task number 1", text)
    assert "⟦" not in text
    assert "the loss is taken on it" not in render_page(facts, None, command="align")


def test_texts_stay_text_on_the_page(page: str) -> None:
    assert not re.search(r"<(script|img|iframe|object|link|base|form)\b", page)
    assert "&lt;script&gt;" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_no_accessibility_violation(browser: Browser, facts: Facts, training: TrainingView) -> None:
    shown = browser.new_page()
    # Two samples: axe measures the contrast of every token.
    shown.set_content(render_page(replace(facts, samples=facts.samples[:2]), training, command="align"))
    for scheme, width in (("light", 1400), ("dark", 400)):
        shown.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        shown.set_viewport_size({"width": width, "height": 900})
        found = Axe().run(shown).response["violations"]
        assert [(scheme, width, one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert shown.locator(".tokens[lang=ko]").count()
    shown.close()


def test_every_link_of_the_page_has_a_target(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_same_rows_give_the_same_page(page: str, facts: Facts, training: TrainingView) -> None:
    assert render_page(facts, training, command=f"align data inspect '{HOSTILE}'") == page


def test_tokens_are_elements_whose_text_is_the_sample(measure: Callable[..., Facts], training: TrainingView) -> None:
    facts = measure([instruction(1, completion="a  b\n뷁")], "instructions", view=training)
    page = render_page(facts, training, command="align")
    (shown,) = re.findall(r'<div class="tokens cut"[^>]*>(.*?)</div>', page, re.DOTALL)
    assert re.sub(r"<[^>]+>", "", shown).endswith("assistant\na  b\n뷁&lt;|im_end|&gt;")
    assert '<span class="s l">&lt;|im_end|&gt;</span>' in shown
    assert '<i class="n">\n</i>' in shown


def test_a_sample_that_cannot_be_trained_on_says_why(measure: Callable[..., Facts], training: TrainingView) -> None:
    facts = measure([instruction(1, completion="x <|im_end|>"), instruction(2)], "instructions", view=training)
    assert "cannot be trained on: the completion contains the end-of-sequence token" in printed(facts, training)
    assert "cannot be trained on" in render_page(facts, training, command="align")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[0m", "a␛[0m"), ("\x00\x7f\x9b", "␀␡\\x9b"), ("\u202e\ufeff\u200b", "\\u202e\\ufeff\\u200b"), ("\ud800", "\\ud800"),
     ("a\tb\n", "a\tb\n"), ("👩\u200d👧 한", "👩\u200d👧 한")],
)  # fmt: skip
def test_what_is_invisible_becomes_a_sign(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_line_is_cut_by_columns_not_by_letters() -> None:
    assert one_line("한국어 글자", 7) == "한국어…"
    assert cell_len(one_line("한국어" * 50, 30)) <= 30
    assert shortened("a" * 30, 9) == "aaaaaa … (21 characters not shown) … aaa"
