"""The way to a judge's endpoint: repeats, limits, refusals, and a key that is nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.config.judge import Judge
from align.errors import EnvironmentProblem, Interrupted, RecipeError, StageError
from align.scoring import judge_client
from align.scoring.judge_answers import JudgeAnswer
from align.scoring.judge_client import JudgeClient
from align.scoring.judge_limit import RateLimit, backoff_seconds, retry_after_seconds
from align.scoring.judge_prompt import ChatMessages, comparison_messages
from align.testing.judge import SILENT, FakeJudge, fake_judge

KEY = "sk-very-secret-93"


def client_of(server: FakeJudge, folder: Path, *, environment: dict[str, str] | None = None, **settings: Any) -> JudgeClient:
    judge = Judge(base_url=settings.pop("base_url", server.base_url), model="m", **settings)
    return JudgeClient("j", judge, store_root=folder, environment=environment or {})


def questions(count: int) -> list[ChatMessages]:
    return [comparison_messages([], "a" * (number + 1), "b", criteria="c") for number in range(count)]


def ask(client: JudgeClient, asked: Sequence[ChatMessages], tick: Any = lambda: None) -> dict[int, JudgeAnswer]:
    found: dict[int, JudgeAnswer] = {}
    client.ask_all(asked, on_answer=lambda number, answer, known: found.__setitem__(number, answer), tick=tick)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between requests, which are noted instead of made."""
    noted: list[float] = []
    monkeypatch.setattr(JudgeClient, "_pause", lambda self, seconds: noted.append(seconds))
    return noted


def test_what_may_pass_is_asked_again_with_growing_waits(tmp_path: Path, waits: list[float]) -> None:
    usage = '{"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": Infinity}}'
    with fake_judge(failures=[500, 429, "<html>busy</html>", '{"choices": []}', "[" * 100_000, usage]) as server:
        assert ask(client_of(server, tmp_path), questions(1))[0].text.endswith("Verdict: tie")
        assert len(server.requests) == 7
    between = [seconds for seconds in waits if seconds]
    assert [0.25 * 2**n <= seconds <= 0.5 * 2**n for n, seconds in enumerate(between)] == [True] * 6


def test_retry_after_is_honoured(tmp_path: Path, waits: list[float]) -> None:
    with fake_judge(failures=[(429, {"Retry-After": "7"}), (503, {"Retry-After": "0"})]) as server:
        ask(client_of(server, tmp_path), questions(1))
    assert waits[:4] == [0, 7.0, 0, pytest.approx(0.75, abs=0.25)]  # never sooner than without it
    with (
        fake_judge(failures=[(429, {"Retry-After": "86400"})]) as server,
        pytest.raises(StageError, match="asks to wait 86400 s"),
    ):
        ask(client_of(server, tmp_path / "other"), questions(1))


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_seconds("Sun, 06 Nov 1994 08:49:37 GMT", now=lambda: 784111767.0) == 10.0
    assert [retry_after_seconds(header) for header in (None, "soon", "nan", "inf")] == [0.0] * 4
    assert retry_after_seconds("-3") == 0.0


def test_waits_double_up_to_a_minute() -> None:
    assert 0.25 <= backoff_seconds(0) <= 0.5
    assert 30 <= backoff_seconds(40) <= 60


def test_a_silent_endpoint_is_given_up_after_the_retries(tmp_path: Path, waits: list[float]) -> None:
    with fake_judge(failures=[SILENT, SILENT], silence_seconds=0.4) as server:
        client = client_of(server, tmp_path, retries=1, timeout_seconds=0.1)
        with pytest.raises(StageError, match=r"gives no answer within 0\.1 s, 2 times in a row"):
            ask(client, questions(1))
        assert client.requests_sent == 2


def test_an_endpoint_that_is_not_there_is_named(tmp_path: Path, waits: list[float]) -> None:
    with fake_judge() as server:
        pass
    with pytest.raises(StageError, match=rf"j: {server.base_url}: cannot be reached \(ConnectError\), 3 times in a row"):
        ask(client_of(server, tmp_path, retries=2), questions(1))


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (401, "answers 401 Unauthorized", "It does not take the key in JUDGE_API_KEY"),
        (404, "answers 404 Not Found: status 404", "Check base_url"),
        (400, "answers 400 Bad Request: status 400", "Check model"),
        (307, "answers 307 Temporary Redirect", "Redirects are not followed"),
    ],
)
def test_what_will_not_pass_ends_at_once(tmp_path: Path, status: int, message: str, hint: str) -> None:
    with fake_judge(failures=[(status, {"Location": "http://127.0.0.1:9/"})]) as server:
        client = client_of(server, tmp_path, environment={"JUDGE_API_KEY": KEY}, api_key_env="JUDGE_API_KEY", max_concurrency=1)
        with pytest.raises(StageError, match=message) as caught:
            ask(client, questions(3))
        assert hint in str(caught.value.hint)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_key_that_the_endpoint_repeats_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JudgeClient, "_post", lambda *_: (400, {}, f'{{"error": "no such key: {KEY}"}}'.encode()))
    with fake_judge() as server:
        client = client_of(server, tmp_path, environment={"JUDGE_API_KEY": KEY}, api_key_env="JUDGE_API_KEY")
        with pytest.raises(StageError, match=r"no such key: \*\*\*"):
            ask(client, questions(1))


def test_a_broken_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    with fake_judge() as server, pytest.raises(EnvironmentProblem) as caught:
        client_of(server, tmp_path, environment={"JUDGE_API_KEY": f"{KEY}\nX: 1"}, api_key_env="JUDGE_API_KEY")
    assert KEY not in str(caught.value)


def test_a_client_for_a_host_that_is_not_allowed_is_not_made(tmp_path: Path) -> None:
    with fake_judge() as server, pytest.raises(RecipeError, match="not this machine"):
        client_of(server, tmp_path, base_url="https://api.example.com/v1")


def test_requests_are_spaced_by_the_rate_limit() -> None:
    now = 0.0
    bucket = RateLimit(30, clock=lambda: now)
    assert [bucket.take() for _ in range(3)] == [0, 2.0, 4.0]
    now = 4.0
    assert bucket.take() == 2.0
    now = 100.0
    assert [bucket.take() for _ in range(2)] == [0, 2.0]
    fast = RateLimit(180, clock=lambda: now)
    assert [fast.take() for _ in range(4)] == [0, 0, 0, pytest.approx(1 / 3)]
    assert RateLimit(None).take() == 0


def test_no_more_requests_than_allowed_are_under_way(tmp_path: Path) -> None:
    with fake_judge(delay_seconds=0.02) as server:
        assert sorted(ask(client_of(server, tmp_path, max_concurrency=3), questions(12))) == list(range(12))
        assert server.most_at_once == 3


def test_equal_questions_under_way_are_one_request(tmp_path: Path) -> None:
    with fake_judge(delay_seconds=0.02) as server:
        assert len(ask(client_of(server, tmp_path), questions(1) * 5)) == 5
        assert len(server.requests) == 1


def test_a_stop_keeps_the_replies_that_were_under_way(tmp_path: Path) -> None:
    with fake_judge(delay_seconds=0.1) as server:
        client = client_of(server, tmp_path, max_concurrency=2)

        def stop() -> None:
            if server.requests:
                raise Interrupted("stop")

        with pytest.raises(Interrupted):
            ask(client, questions(20), tick=stop)
        assert sum(client.known(question) is not None for question in questions(20)) == len(server.requests) < 20


def test_a_stop_does_not_wait_for_a_pause(tmp_path: Path) -> None:
    with fake_judge(failures=[(429, {"Retry-After": "60"})]) as server:
        started = time.monotonic()

        def stop() -> None:
            if server.requests:
                raise Interrupted("stop")

        with pytest.raises(Interrupted):
            ask(client_of(server, tmp_path), questions(1), tick=stop)
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge")]


def test_a_reply_without_end_is_cut_off(tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_client, "MAX_REPLY_BYTES", 1000)
    with (
        fake_judge(failures=["x" * 2000]) as server,
        pytest.raises(StageError, match="answers something that is not a chat completion"),
    ):
        ask(client_of(server, tmp_path, retries=0), questions(1))
