"""The report in a real browser: what the script shows, accessibility, size and speed. Needs Debian's chromium, else skipped."""

from __future__ import annotations

import csv
import io
import statistics
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from align.records import Message, ScoredCandidate
from align.report.curves import training_curves
from align.report.html import write_report
from align.report.results import Results
from align.report.view import score_text
from align.visible import visible

Rows = dict[str, list[ScoredCandidate]]
pytestmark = pytest.mark.slow
MAX_BYTES = 5_000_000
MAX_SECONDS = 1.0
COMPLAINTS: list[str] = []
"""Errors, console messages and requests of the pages of a test; an exception in Playwright's callbacks would end its process."""
HOSTILE = '=HYPERLINK("x")\u202e<b>\x1b\u200b\u2028</script>\U000e0041 \ud83d 끝'


@pytest.fixture(scope="module")
def compared(make_results: Any, make_candidate: Any) -> tuple[Results, Rows]:
    """Three models on forty prompts of two languages, with ties, a missing score, halves of an eighth and hostile texts."""
    random = np.random.default_rng(3)
    answers: Rows = {"sft": [], "dpo": [], "orpo-짧은": []}
    for number in range(40):
        prompt = f"카메라를 {number}번 놓고 왔어." if number % 2 else f"This morning my camera number {number} was lost again."
        for name, rows in answers.items():
            gold = None if (name, number) == ("dpo", 5) else float(random.integers(0, 9)) / 8
            text = f"정말 속상하겠다, {name} {number}." if number % 2 else f"That must hurt, {name} {number}."
            row = make_candidate(f"p-{number:02d}", scores={"rm": float(random.normal()), "gold": gold}, completion=text)
            update: dict[str, Any] = {"prompt": [Message(role="user", content=prompt)], "reference": f"topic {number % 3}"}
            if number == 7:
                update |= {"completion": HOSTILE, "finish_reason": "length"}
            rows.append(row.model_copy(update=update))
    return make_results(answers, recipe="browser"), answers


@pytest.fixture(scope="module")
def report(compared: tuple[Results, Rows], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    recipe = {"name": "browser", "note": "a line that is wider than the page " * 9}
    write_report(path, results=compared[0], answers=compared[1], curves={}, stages=[], recipe=recipe, primary_scorer="gold")
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    page = opened(browser, report)
    yield page
    page.close()


def opened(browser: Browser, path: Path, **options: Any) -> Page:
    """The page, which must ask for nothing and log no error (a script that its policy refuses would be one)."""
    page = browser.new_page(**options)
    page.on("pageerror", lambda error: COMPLAINTS.append(str(error)))
    page.on("console", lambda message: COMPLAINTS.append(message.text))
    page.on("request", lambda request: None if request.url.startswith(("file:", "blob:")) else COMPLAINTS.append(request.url))
    page.goto(path.as_uri())
    return page


@pytest.fixture(autouse=True)
def no_complaints() -> Iterator[None]:
    COMPLAINTS.clear()
    yield
    assert COMPLAINTS == []


def shown(page: Page) -> list[str]:
    return page.locator("#v-list h3.id").all_inner_texts()


def search(page: Page, text: str) -> None:
    page.fill("#v-search", text)
    page.wait_for_timeout(200)


def test_all_prompts_are_reached_by_pages(page: Page) -> None:
    seen = shown(page)
    assert page.locator("#v-list .answer").count() == 10 * 3
    while page.get_attribute("#v-next", "aria-disabled") == "false":
        page.click("#v-next")
        seen += shown(page)
    assert seen == [f"p-{number:02d}" for number in range(40)]


def test_wins_are_those_of_the_results(page: Page, compared: tuple[Results, Rows]) -> None:
    results, answers = compared
    page.select_option("#v-model", label="orpo-짧은")
    for scorer in results.scorers:
        page.select_option("#v-scorer", label=scorer)
        pairs = [
            (row.scores[scorer], other.scores[scorer]) for row, other in zip(answers["orpo-짧은"], answers["sft"], strict=True)
        ]
        won, tied = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)  # type: ignore[operator]
        assert f"On {scorer}, orpo-짧은 against sft: {won} won, {tied} tied, {40 - won - tied} lost." in page.inner_text(
            "#v-status"
        )
        if results.ranking[scorer].prompts == 40:
            rate = results.models["orpo-짧은"].win_rate
            assert rate is not None
            assert (won + tied / 2) / 40 == pytest.approx(rate[scorer].mean)


def test_search_order_and_filters(page: Page, compared: tuple[Results, Rows]) -> None:
    answers = compared[1]
    search(page, "카메라를 13번")
    assert shown(page) == ["p-13"]
    assert page.locator("#v-list .prompt mark").first.inner_text() == "카메라를"
    search(page, "카메라를 1")
    assert all(int(name[2:]) % 2 for name in shown(page))
    page.click("#v-reset")
    page.select_option("#v-model", label="dpo")
    page.select_option("#v-scorer", label="gold")
    page.select_option("#v-sort", "gain")
    gold = [np.array([row.scores["gold"] for row in answers[name]], dtype=float) for name in ("dpo", "sft")]
    assert shown(page)[0] == answers["dpo"][int(np.nanargmax(gold[0] - gold[1]))].prompt_id
    page.select_option("#v-outcome", "none")
    assert shown(page) == ["p-05"]
    page.click("#v-reset")
    page.select_option("#v-finish", "1")
    assert shown(page) == ["p-07"]
    page.click("#v-reset")
    page.get_by_label("Language").select_option(label="ko (20)")
    assert page.inner_text("#v-status").startswith("20 of 40 prompts.")
    search(page, "nothing like this")
    assert "No prompt matches" in page.inner_text("#v-list")


def test_decomposed_korean_is_found(page: Page) -> None:
    search(page, unicodedata.normalize("NFD", "카메라를 13번"))  # as macOS writes names of files
    assert shown(page) == ["p-13"]


def test_word_differences(page: Page) -> None:
    page.select_option("#v-model", label="dpo")
    page.check("#v-diff")
    first = page.locator("#v-list .prompt").nth(1)
    assert first.locator("ins").all_inner_texts() == ["dpo"]
    assert first.locator("del").all_inner_texts() == ["sft"]
    assert "정말 속상하겠다, dpo 1." in first.inner_text(), "marking changes no text"


def test_texts_are_shown_as_python_shows_them(page: Page, compared: tuple[Results, Rows]) -> None:
    search(page, "p-07")
    assert page.locator("#v-list .completion").first.text_content() == visible(HOSTILE)
    assert page.locator("#v-list .completion").first.get_attribute("lang") == "ko"
    for number in range(0, 40, 10):
        search(page, f"p-{number:02d}")
        texts = page.locator("#v-list .answer footer b").all_inner_texts()
        expected = [score_text(score) for rows in compared[1].values() for score in rows[number].scores.values()]
        assert texts == [text.replace("-", "−") for text in expected]


def downloaded(page: Page, button: str) -> list[list[str]]:
    with page.expect_download() as download:
        page.click(button)
    data = Path(download.value.path()).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf"), "Excel reads UTF-8 only with the mark"
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def test_csv_of_the_filtered_completions(page: Page, compared: tuple[Results, Rows]) -> None:
    page.select_option("#v-finish", "1")
    header, *rows = downloaded(page, "#v-csv")
    assert header[:4] == ["prompt_id", "prompt", "reference", "language"]
    assert [row[header.index("model")] for row in rows] == list(compared[1])
    for row, candidates in zip(rows, compared[1].values(), strict=True):
        # UTF-8 has no halves of surrogate pairs; everything else is as the model wrote it, behind the apostrophe.
        assert row[header.index("completion")] == "'" + HOSTILE.replace("\ud83d", "\ufffd")
        assert float(row[header.index("rm")]) == candidates[7].scores["rm"], "a negative number is no formula"


def test_csv_of_the_table(page: Page, compared: tuple[Results, Rows]) -> None:
    header, *rows = downloaded(page, "[data-table=results]")
    for row in rows:
        delta = compared[0].models[row[0]].scores["gold"].delta
        assert row[header.index("gold difference")] == ("" if delta is None else repr(delta.mean))
    assert page.locator("[data-table=fields]").count() == 1


def test_without_scripts_the_table_and_some_prompts_are_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#answer tbody tr").first.is_visible()
    assert page.locator("#prompts .prompt").count() == 24
    assert not page.locator("#viewer").is_visible()
    assert not page.locator("[data-table=results]").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_no_accessibility_violation(browser: Browser, report: Path, width: int, scheme: Any) -> None:
    page = opened(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.check("#v-diff")
    search(page, "ca")
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_printed_it_is_light_has_no_controls_and_no_table_is_cut_off(browser: Browser, report: Path) -> None:
    a4 = {"width": 718, "height": 1047}  # within margins of 1 cm
    page = opened(browser, report, viewport=a4, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("button:visible, input:visible, select:visible, nav:visible, summary:visible").count() == 0
    assert page.locator("#v-list .prompt:visible").count() == 10
    cut = "[...document.querySelectorAll('.card, .answers')].filter(element => element.scrollWidth > element.clientWidth + 1)"
    assert page.evaluate(f"{cut}.map(element => element.getAttribute('aria-label'))") == []
    page.close()


def test_every_control_is_reached_with_the_keyboard(page: Page) -> None:
    page.focus("#v-search")
    reached = []
    for _ in range(40):
        element = page.evaluate("[document.activeElement.id || document.activeElement.dataset.model, "
                                "getComputedStyle(document.activeElement).outlineStyle]")  # fmt: skip
        reached.append(element[0])
        assert element[1] != "none", f"{element[0]}: the focus is not visible"
        if element[0] == "v-next":
            break
        page.keyboard.press("Tab")
    ids = {
        "v-search",
        "v-model",
        "v-against",
        "v-scorer",
        "v-outcome",
        "v-sort",
        "v-finish",
        "v-field-0",
        "v-diff",
        "v-reset",
        "v-csv",
    }
    assert ids | {"0", "1", "2", "v-previous", "v-next"} <= set(reached)
    page.keyboard.press("Enter")
    assert shown(page)[0] == "p-10"


def many_answers(models: int, prompts: int, answer: Callable[[np.random.Generator, int], ScoredCandidate]) -> Rows:
    """Answers of several models to the same prompts; `answer` makes one of them, given the number of its prompt."""
    random = np.random.default_rng(0)
    answers: Rows = {f"model_{index}": [] for index in range(models)}
    for number in range(prompts):
        for rows in answers.values():
            rows.append(answer(random, number))
    return answers


def test_two_thousand_prompts_and_six_models(
    browser: Browser, make_candidate: Any, make_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of the whole page. The drawings grow with neither, so they are those of few points."""

    def answer(random: np.random.Generator, number: int) -> ScoredCandidate:
        text = " ".join(f"단어{word}" for word in random.integers(0, 500, size=12))
        scores = {"rm": float(random.normal()), "gold": float(random.random())}
        return make_candidate(f"prompt-{number:04d}", scores=scores, completion=text)  # type: ignore[no-any-return]

    answers = many_answers(6, 2000, answer)
    results = make_results(answers, baseline="model_0", bootstrap_resamples=100)
    path = tmp_path / "report.html"
    write_report(path, results=results, answers=answers, curves={}, stages=[], recipe={})
    assert path.stat().st_size <= MAX_BYTES
    _, interactive, busy = seconds_of_a_load(browser, path, "2,000 of 2,000 prompts")
    print(f"{path.stat().st_size:,} bytes, interactive after {interactive:.2f} s, {busy:.2f} s of CPU")
    assert busy <= MAX_SECONDS


KOREAN = "속상했겠다. 그 마음 충분히 이해해. 이럴 때는 잠깐 쉬었다가 차근차근 다시 해 보자. 네 잘못이 아니야."
ENGLISH = "I can imagine how sad you feel. Please don't blame yourself. Try to keep a spare key at a friend's place."


def test_a_page_as_large_as_the_quickstarts_opens_within_a_second(
    browser: Browser, make_candidate: Any, make_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """320 prompts in two languages, eight models, and a hundred drawings of their training."""

    def answer(random: np.random.Generator, number: int) -> ScoredCandidate:
        prompt = f"{'오늘 카메라를 도서관에 놓고 와 버렸어.' if number % 2 else 'I left my wallet at the bus stop.'} ({number})"
        text = " ".join(random.permutation((KOREAN if number % 2 else ENGLISH).split()))
        scores = {"rm": float(random.normal()), "gold": float(random.integers(0, 11)) / 10}
        row = make_candidate(f"held-out-{number:04d}", scores=scores, completion=text)
        update = {"prompt": [Message(role="user", content=prompt)], "reference": f"topic {number % 16}"}
        return row.model_copy(update=update)  # type: ignore[no-any-return]

    answers = many_answers(8, 320, answer)
    random = np.random.default_rng(1)
    log = [{"step": step, **{f"metric_{index}": random.normal() for index in range(12)}} for step in range(60)]
    # Drawn once for all stages: a browser has as much to do, and the test less.
    drawn = training_curves("stage", log)
    monkeypatch.setattr("align.report.html.training_curves", lambda *_, **__: drawn)
    path = tmp_path / "report.html"
    results = make_results(answers, baseline="model_0", bootstrap_resamples=100)
    write_report(path, results=results, answers=answers, curves=dict.fromkeys(answers, log), stages=[], recipe={})
    assert path.stat().st_size <= MAX_BYTES
    loads = [seconds_of_a_load(browser, path, "320 of 320 prompts") for _ in range(3)]
    wall, interactive, busy = (statistics.median(seconds) for seconds in zip(*loads, strict=True))
    print(f"{path.stat().st_size:,} bytes, loaded in {wall:.2f} s, interactive after {interactive:.2f} s, {busy:.2f} s of CPU")
    assert busy <= MAX_SECONDS


def seconds_of_a_load(browser: Browser, path: Path, status: str) -> tuple[float, float, float]:
    """Seconds until the page is loaded, until its table of completions answers, and those in which its thread computed.

    The clock of the first two runs on while other tests compute; only the last is the page's own.
    """
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    assert page.inner_text("#v-status").startswith(status)
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    interactive = page.evaluate("performance.getEntriesByName('interactive')[0].startTime / 1000")
    page.close()
    return loaded, interactive, metrics["TaskDuration"]
