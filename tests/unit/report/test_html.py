"""report.html: one safe, self-contained file, the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from align.records import Message, ScoredCandidate
from align.report.answers import align_answers
from align.report.html import write_report
from align.report.results import Results
from align.report.view import prompt_views, score_text
from align.store.artifact import Artifact, Manifest
from align.visible import visible

pytestmark = pytest.mark.slow

ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def made_by(stage: str, **fields: Any) -> Artifact:
    """What a stage made, without its folder."""
    values: dict[str, Any] = {
        "kind": "",
        "stage_version": 1,
        "fingerprint": "abc123",
        "config": {},
        "inputs": {},
        "seed": 17,
    } | fields
    return Artifact(stage, Path(), Manifest(stage=stage, **values))


STAGES = [
    made_by("sft", seconds=41.0, rows_in=1200, rows_out=1190, dropped={"truncated": 10}),
    made_by("pairs", metrics={"score": {"mean": 0.25}, "accuracy": 0.797}, versions={"trl": "1.16.0"}),
]
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """Elements and attributes of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def with_class(self, name: str) -> int:
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.elements)


@pytest.fixture(scope="module")
def hostile(answers: dict[str, list[ScoredCandidate]]) -> dict[str, list[ScoredCandidate]]:
    """The answers, with markup in the first prompt and in its completions."""

    def poison(row: ScoredCandidate) -> ScoredCandidate:
        return row.model_copy(update={"completion": ATTACK, "prompt": [Message(role="user", content=ATTACK)]})

    return {name: [poison(rows[0]), *rows[1:]] for name, rows in answers.items()}


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory, results: Results, hostile: dict[str, list[ScoredCandidate]]) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, results, hostile)
    return path


def write(path: Path, results: Results, answers: dict[str, list[ScoredCandidate]]) -> None:
    curves = {"dpo": [{"step": step, "loss": 1.0 / step} for step in range(1, 9)]}
    write_report(path, results=results, answers=answers, curves=curves, stages=STAGES, recipe={"name": "데모", "x": "</pre>"})


def test_texts_of_models_stay_text(page_path: Path) -> None:
    text = page_path.read_text()
    tags = [tag for tag, _ in Page(text).elements]
    assert not {*tags} & {"img", "iframe", "object", "link", "base", "form"}
    assert tags.count("script") == 2  # the data and the page's own
    assert ATTACK not in text
    assert text.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 5  # without scripts: the prompt and four completions
    assert text.count(r"\u003cscript\u003ealert('x')\u003c/script\u003e") >= 5  # the same as data
    assert not any(name.startswith("on") for _, attributes in Page(text).elements for name in attributes)


def test_signs_that_hide_or_reorder_are_shown_wherever_they_are(
    tmp_path: Path, results: Results, answers: dict[str, list[ScoredCandidate]]
) -> None:
    """ESC, BEL, C1 and bidirectional characters; what Korean, Arabic, Hebrew and emoji are written with stays."""
    control, kept = "\x1b]0;x\x07\x9b\u202e\u2066\u200f\U000e0041", "한국어 👩‍👩‍👧 مرحبا بالعالم שלום می‌خواهم"

    def poison(row: ScoredCandidate) -> ScoredCandidate:
        text = control + kept
        return row.model_copy(update={"completion": text, "prompt": [Message(role="user", content=text)], "reference": text})

    hidden = {name: [poison(rows[0]), *rows[1:]] for name, rows in answers.items()}
    named = results.model_copy(update={"recipe": f"name{control}", "command": ["align", control]})
    path = tmp_path / "report.html"
    write_report(path, results=named, answers=hidden, curves={}, stages=STAGES, recipe={"x": control})
    page = path.read_bytes().decode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", page)
    assert "␛]0;x␇\\x9b\\u202e\\u2066\\u200f\\U000e0041" + kept in page
    assert f"<h1>name{visible(control)}</h1>" in page


def test_the_file_is_complete_in_itself(page_path: Path) -> None:
    text = page_path.read_text()
    for tag, attributes in Page(text).elements:
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith("#"), (tag, name, attributes[name])
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    policy = next(attributes["content"] for tag, attributes in Page(text).elements if attributes.get("http-equiv"))
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # No other script than this one runs, whatever gets into the page.
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_every_link_within_the_page_has_a_target(page_path: Path) -> None:
    elements = Page(page_path.read_text()).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for _, attributes in elements if attributes.get("href")}
    assert links <= {f"#{name}" for name in ids}


def test_twenty_prompts_or_more_with_every_models_answer(page_path: Path, results: Results) -> None:
    page = Page(page_path.read_text())
    assert page.with_class("prompt") >= 20
    assert page.with_class("answer") == page.with_class("prompt") * len(results.models)


def test_the_page_answers_the_question_and_says_where_it_comes_from(page_path: Path) -> None:
    text = page_path.read_text()
    assert "On rm, ppo_long_name beats sft by" in text
    assert "align run recipes/demo/recipe.yaml --out runs/demo" in text
    for fact in (
        "truncated 10",
        "score · mean",
        'title="score.mean"',
        "pairs ranked right",
        "79.7 %",
        "abc123",
        "trl 1.16.0",
        "데모",
        "41 s",
        "&lt;/pre&gt;",
    ):
        assert fact in text


def test_the_same_arguments_give_the_same_bytes(
    page_path: Path, results: Results, hostile: dict[str, Any], tmp_path: Path
) -> None:
    shuffled = {name: rows[:1] + rows[:0:-1] if name == "dpo" else rows for name, rows in hostile.items()}
    write(tmp_path / "again.html", results, shuffled)
    assert (tmp_path / "again.html").read_bytes() == page_path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_the_best_answer_is_highlighted_unless_it_is_shared(
    make_candidate: Callable[..., ScoredCandidate], make_results: Callable[..., Results]
) -> None:
    def rows(*gold: float | None) -> list[ScoredCandidate]:
        return [make_candidate(f"p{number}", scores={"gold": score}) for number, score in enumerate(gold)]

    answers = {"sft": rows(0.0, 1.0, None, 2.0), "dpo": rows(1.0, 1.0, 0.5, None)}
    views = prompt_views(make_results(answers), align_answers(answers))
    assert [[prompt.best["gold"] == name for name in prompt.answers] for prompt in views] == [
        [False, True],
        [False, False],
        [False, True],
        [True, False],
    ]
    assert score_text(views[2].answers["sft"][0].scores["gold"]) == "none"


def test_one_model_and_nothing_optional(
    make_candidate: Callable[..., ScoredCandidate], make_results: Callable[..., Results], tmp_path: Path
) -> None:
    answers = {"sft": [make_candidate("p", scores={"gold": 1.0}, completion="")]}
    write_report(tmp_path / "r.html", results=make_results(answers), answers=answers, curves={}, stages=[], recipe={})
    assert "no other model was compared" in (tmp_path / "r.html").read_text()


def test_twelve_rows_show_methods_best_of_n_and_every_seed(
    many: tuple[Results, dict[str, list[ScoredCandidate]]], tmp_path: Path
) -> None:
    results, answers = many
    curve = [{"step": epoch, "score": 0.1 * epoch, "eval_loss": 2.0 - 0.1 * epoch} for epoch in (1, 2, 3)]
    stages = [made_by("select_checkpoint", metrics={"selected_epoch": 2})]
    write_report(
        tmp_path / "r.html", results=results, answers=answers, curves={"select_checkpoint": curve}, stages=stages, recipe={}
    )
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    for name in (*results.models, "dpo_seed1", "dpo_seed2", "dpo_seed3"):
        assert name in text
    for fact in (
        "≤ 1.84",
        "3 seeds",
        "<b>9</b> methods and models",
        "Frontier of gold and KL",
        "selected: epoch 2",
        "dpo (dpo_seed1)",
    ):
        assert fact in text, fact
    # Best of n has no completions of its own; a method shows its first seed's.
    assert page.with_class("answer") == page.with_class("prompt") * len(results.trained_rows)
    assert page.with_class("hollow") >= 3 * 2
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
