"""A client for a judge's endpoint: a few threads send the questions, retry temporary failures, and store every reply on disk.

The key is only in the request header, in no message, log or file. Redirects are not followed, so that neither texts nor key go
to a host that the user did not allow.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from align.config.judge import Judge
from align.errors import AlignError, EnvironmentProblem, RecipeError, StageError
from align.scoring.judge_answers import FOLDER_NAME, AnswerFile, JudgeAnswer
from align.scoring.judge_limit import RateLimit, backoff_seconds, retry_after_seconds
from align.scoring.judge_prompt import ChatMessages
from align.store.fingerprint import canonical_json, fingerprint

POLL_SECONDS = 0.2
QUESTIONS_AHEAD = 4
"""Questions submitted per thread: enough to keep it busy, few enough to stop soon."""
MAX_REPLY_BYTES = 4 << 20
LONGEST_RETRY_AFTER_SECONDS = 600.0
SHOWN_CHARACTERS = 200
RETRIED = frozenset({408, 409, 425, 429})
"""Statuses below 500 that are worth a retry."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""Exceptions from reading a body that is not the expected JSON."""
KEPT = "Run the same command again; what was answered is kept and is not asked again."


class BudgetUsedUp(Exception):
    """The budget allows no more requests."""


class _Closing(Exception):
    """The work was stopped while a thread waited."""


@dataclass(frozen=True)
class _Failure:
    """A failure that a retry may avoid."""

    reason: str
    wait_seconds: float = 0.0
    """Wait that the endpoint requires."""


class JudgeClient:
    """One judge's endpoint.

    Args:
        name: what the scorer is called, for messages.
        store_root: where replies are kept, below `judge-answers`.
        environment: has the key, and the hosts that are allowed.
    Raises:
        RecipeError: if this judge may not be used.
    """

    def __init__(self, name: str, judge: Judge, *, store_root: Path, environment: Mapping[str, str]) -> None:
        if refusal := judge.refusal(environment):
            raise RecipeError(f"{name}: {refusal[0]}: {refusal[1]}", hint=refusal[2])
        self._judge = judge
        self._where = f"{name}: {judge.base_url}"
        self._key = _usable_key(name, judge, environment)
        self._url = judge.base_url.rstrip("/") + "/chat/completions"
        endpoint = fingerprint({"url": self._url, "model": judge.model})
        self._answers = AnswerFile(store_root / FOLDER_NAME / f"{endpoint}.jsonl")
        self._limit = RateLimit(judge.requests_per_minute)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self.requests_sent = 0
        """Since this client was made, retries included."""

    def known(self, messages: ChatMessages) -> JudgeAnswer | None:
        """The reply to a question that was asked before."""
        return self._answers.get(self._key_of(messages))

    def _body(self, messages: ChatMessages) -> dict[str, Any]:
        judge = self._judge
        parameters = {"temperature": judge.temperature, "max_tokens": judge.max_completion_tokens}
        return {"model": judge.model, "messages": messages, **parameters}

    def _key_of(self, messages: ChatMessages) -> str:
        return hashlib.sha256(canonical_json({"url": self._url, "body": self._body(messages)}).encode()).hexdigest()

    def ask_all(
        self,
        questions: Iterable[ChatMessages],
        *,
        on_answer: Callable[[int, JudgeAnswer, bool], None],
        tick: Callable[[], None],
    ) -> None:
        """Ask every question once.

        Args:
            on_answer: called from this thread with the question's number, its answer, and whether that was known before; in any
                order.
            tick: called from this thread every fraction of a second; what it raises ends the work. Requests that are under way
                are waited for, and their replies kept.
        Raises:
            BudgetUsedUp: when the next question would need one request too many.
            StageError: when the endpoint refuses, or fails too often.
        """
        # The client may be used again after an earlier call was stopped.
        self._closing.clear()
        under_way: dict[str, tuple[Future[JudgeAnswer], list[int]]] = {}
        next_tick = 0.0

        def drain(most: int) -> None:
            """Wait until at most `most` questions are under way, and hand their answers on."""
            nonlocal next_tick
            while True:
                if (now := time.monotonic()) >= next_tick:
                    tick()
                    next_tick = now + POLL_SECONDS
                if len(under_way) <= most:
                    return
                # Woken at least every POLL_SECONDS, so that `tick` can stop the work.
                wait([future for future, _ in under_way.values()], timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for key in [key for key, (future, _) in under_way.items() if future.done()]:
                    future, numbers = under_way.pop(key)
                    for position, number in enumerate(numbers):
                        on_answer(number, future.result(), position > 0)

        with self._open() as client, ThreadPoolExecutor(self._judge.max_concurrency, thread_name_prefix="judge") as pool:
            try:
                for number, messages in enumerate(questions):
                    key = self._key_of(messages)
                    if (known := self._answers.get(key)) is not None:
                        on_answer(number, known, True)
                    # The same question is under way: both numbers get its reply, and it is paid for once.
                    elif key in under_way:
                        under_way[key][1].append(number)
                    else:
                        under_way[key] = pool.submit(self._ask, client, key, messages), [number]
                    # Room for one more, so that `questions` is drawn no further ahead than threads need.
                    drain(self._judge.max_concurrency * QUESTIONS_AHEAD - 1)
                drain(0)
            finally:
                # Threads that wait between retries stop at once; without it, leaving the pool would wait for them.
                self._closing.set()
                pool.shutdown(cancel_futures=True)

    def _open(self) -> httpx.Client:
        return httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._judge.timeout_seconds,
            limits=httpx.Limits(max_connections=self._judge.max_concurrency),
            follow_redirects=False,
            trust_env=not self._judge.is_local,  # a proxy cannot reach this machine's own endpoints
        )

    def _ask(self, client: httpx.Client, key: str, messages: ChatMessages) -> JudgeAnswer:
        """Send one question until it is answered; runs in a thread."""
        reason = ""
        for attempt in range(self._judge.retries + 1):
            # First the wait, then the budget: a request that is stopped while it waits is not counted.
            self._pause(self._limit.take())
            # Counted before it is sent, so that the threads together never exceed the budget.
            self._spend()
            outcome = self._send(client, messages)
            if isinstance(outcome, JudgeAnswer):
                # On disk before the caller sees it: a crash right after costs no second request.
                self._answers.add(key, outcome)
                return outcome
            reason = outcome.reason
            if outcome.wait_seconds > LONGEST_RETRY_AFTER_SECONDS:
                message = f"{self._where}: {reason}, and asks to wait {outcome.wait_seconds:.0f} s"
                raise StageError(message, hint=f"Wait, then: {KEPT}")
            if attempt < self._judge.retries:
                self._pause(max(outcome.wait_seconds, backoff_seconds(attempt)))
        raise StageError(f"{self._where}: {reason}, {self._judge.retries + 1} times in a row", hint=KEPT)

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise _Closing

    def _spend(self) -> None:
        """Count one more request."""
        with self._lock:
            if self._judge.max_requests is not None and self.requests_sent >= self._judge.max_requests:
                raise BudgetUsedUp
            self.requests_sent += 1

    def _send(self, client: httpx.Client, messages: ChatMessages) -> JudgeAnswer | _Failure:
        try:
            status, headers, content = self._post(client, messages)
        except httpx.TimeoutException:
            return _Failure(f"gives no answer within {self._judge.timeout_seconds:g} s")
        except httpx.HTTPError as error:
            return _Failure(f"cannot be reached ({type(error).__name__})")
        if status == HTTPStatus.OK:
            return _read_reply(content) or _Failure("answers something that is not a chat completion")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in RETRIED:
            return _Failure(f"answers {_status_text(status)}", retry_after_seconds(headers.get("retry-after")))
        raise self._refused(status, content)

    def _post(self, client: httpx.Client, messages: ChatMessages) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body. httpx bounds the wait for each piece; this bounds the time and the size of the whole."""
        started, content = time.monotonic(), bytearray()
        with client.stream("POST", self._url, json=self._body(messages)) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    return response.status_code, response.headers, b""
                if time.monotonic() - started > self._judge.timeout_seconds:
                    raise httpx.ReadTimeout("the whole reply took too long")
        return response.status_code, response.headers, bytes(content)

    def _refused(self, status: int, content: bytes) -> AlignError:
        """The error for a status that a retry would not change."""
        judge = self._judge
        message = f"{self._where}: answers {_status_text(status)}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            key = f"It does not take the key in {judge.api_key_env}." if judge.api_key_env else "Name its key by api_key_env."
            return StageError(message, hint=key)  # the body is not shown: some endpoints repeat the key in it
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return StageError(message, hint="Redirects are not followed. Write the address it leads to as base_url.")
        # Endpoints may repeat the key in a message. NUL stands for no key: replacing an empty text would change everything.
        said = _said(content).replace(self._key or "\0", "***")
        hint = "Check base_url (it usually ends in /v1) and model."
        if status != HTTPStatus.NOT_FOUND:
            hint = "Check model, and whether it takes temperature and max_completion_tokens."
        return StageError(f"{message}{f': {said}' if said else ''}", hint=hint)


def _usable_key(name: str, judge: Judge, environment: Mapping[str, str]) -> str | None:
    """The key, or None where the recipe names none. A malformed key must not reach a library that would print it."""
    if judge.api_key_env is None:
        return None
    # `refusal` has checked that the variable is set.
    key = environment[judge.api_key_env].strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EnvironmentProblem(
            f"{name}: {judge.api_key_env} holds characters that no key has", hint="Set it again, without line breaks and spaces."
        )
    return key


def _read_reply(content: bytes) -> JudgeAnswer | None:
    """The first choice of a chat completion; None where the body is something else."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        # content may be null, for example where a model refuses: a reply without a verdict.
        text = choice["message"].get("content")
        usage = body.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return JudgeAnswer(text if isinstance(text, str) else "", str(choice.get("finish_reason")), *tokens)
    except UNREADABLE:
        return None


def _status_text(status: int) -> str:
    return f"{status} {httpx.codes.get_reason_phrase(status)}".rstrip()


def _said(content: bytes) -> str:
    """The message of an error's body, on one line and shortened."""
    try:
        body = json.loads(content)
        error = body.get("error", body)
        text = error.get("message", "") if isinstance(error, dict) else str(error)
    except UNREADABLE:
        text = content.decode(errors="replace")
    text = " ".join(str(text).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
