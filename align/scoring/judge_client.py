"""Questions to a judge's endpoint: sent by a few threads, repeated where that may help, answered from disk where it can be.

The key stands in one header and nowhere else: no message, log or file has it. Redirects are not followed, so that neither texts
nor key go to a place that the user did not allow.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.judge import Judge
from align.errors import AlignError, EnvironmentProblem, RecipeError, StageError
from align.scoring.judge_answers import FOLDER_NAME, AnswerFile, JudgeAnswer
from align.scoring.judge_limit import Budget, TokenBucket, backoff_seconds, retry_after_seconds
from align.scoring.judge_prompt import ChatMessages
from align.store.fingerprint import canonical_json, fingerprint

if TYPE_CHECKING:
    import httpx

POLL_SECONDS = 0.2
QUESTIONS_AHEAD = 4
"""Questions that are ready per thread."""
MAX_REPLY_BYTES = 4 << 20
LONGEST_RETRY_AFTER_SECONDS = 600.0
SHOWN_CHARACTERS = 200
REPEATABLE = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may be different the next time."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What a body that is not the JSON it should be can raise."""
KEPT = "Run the same command again; what was answered is kept and is not asked again."


class BudgetUsedUp(Exception):
    """No request is left of the budget."""


class _Closing(Exception):
    """The work was given up while a thread waited."""


@dataclass(frozen=True)
class _Failure:
    """Why a request gave no answer but may the next time."""

    reason: str
    wait_seconds: float | None = None
    """What the endpoint asks for."""


class JudgeClient:
    """One judge's endpoint.

    Args:
        name: what the scorer is called, for messages.
        store_root: where replies are kept, below `judge-answers`.
        environment: has the key, and the hosts that are allowed.
    Raises:
        RecipeError: if this judge may not be asked.
    """

    def __init__(self, name: str, judge: Judge, *, store_root: Path, environment: Mapping[str, str]) -> None:
        if refusal := judge.refusal(environment):
            raise RecipeError(f"{name}: {refusal[0]}: {refusal[1]}", hint=refusal[2])
        self._name = name
        self._judge = judge
        self._key = _usable_key(name, judge, environment)
        self._endpoint = {"url": judge.base_url.rstrip("/") + "/chat/completions", "model": judge.model}
        self._answers = AnswerFile(store_root / FOLDER_NAME / f"{fingerprint(self._endpoint)}.jsonl")
        self._bucket = TokenBucket(judge.requests_per_minute)
        self._budget = Budget(judge.max_requests)
        self._closing = threading.Event()

    @property
    def requests_sent(self) -> int:
        """Since this client was made, repeated ones included."""
        return self._budget.spent

    def known(self, messages: ChatMessages) -> JudgeAnswer | None:
        """The reply to a question that was asked before."""
        return self._answers.get(self._key_of(messages))

    def _body(self, messages: ChatMessages) -> dict[str, Any]:
        judge = self._judge
        parameters = {"temperature": judge.temperature, "max_tokens": judge.max_completion_tokens}
        return {"model": judge.model, "messages": messages, **parameters}

    def _key_of(self, messages: ChatMessages) -> str:
        question = canonical_json({"url": self._endpoint["url"], "body": self._body(messages)})
        return hashlib.sha256(question.encode()).hexdigest()

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
        self._closing.clear()
        numbered = enumerate(questions)
        under_way: dict[Future[JudgeAnswer], list[int]] = {}
        by_key: dict[str, Future[JudgeAnswer]] = {}
        with self._open() as client, ThreadPoolExecutor(self._judge.max_concurrency, thread_name_prefix="judge") as pool:
            try:
                more = True
                while more or under_way:
                    tick()
                    more = more and self._submit(numbered, pool, client, under_way, by_key, on_answer)
                    if not under_way:
                        continue
                    done, _ = wait(under_way, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        answer = future.result()
                        for position, number in enumerate(under_way.pop(future)):
                            on_answer(number, answer, position > 0)
                    by_key = {key: future for key, future in by_key.items() if future in under_way}
            finally:
                self._closing.set()
                pool.shutdown(cancel_futures=True)

    def _submit(
        self,
        numbered: Iterator[tuple[int, ChatMessages]],
        pool: ThreadPoolExecutor,
        client: httpx.Client,
        under_way: dict[Future[JudgeAnswer], list[int]],
        by_key: dict[str, Future[JudgeAnswer]],
        on_answer: Callable[[int, JudgeAnswer, bool], None],
    ) -> bool:
        """Hand questions to the threads until enough are ready, or a second is over. False when there are no more."""
        until = time.monotonic() + 1
        while len(under_way) < self._judge.max_concurrency * QUESTIONS_AHEAD and time.monotonic() < until:
            number, messages = next(numbered, (None, None))
            if number is None or messages is None:
                return False
            key = self._key_of(messages)
            if (known := self._answers.get(key)) is not None:
                on_answer(number, known, True)
            elif key in by_key:
                under_way[by_key[key]].append(number)
            else:
                by_key[key] = pool.submit(self._ask, client, key, messages)
                under_way[by_key[key]] = [number]
        return True

    def _open(self) -> httpx.Client:
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.Client(
            headers=headers,
            timeout=self._judge.timeout_seconds,
            limits=httpx.Limits(max_connections=self._judge.max_concurrency),
            follow_redirects=False,
            trust_env=not self._judge.is_local,  # a proxy cannot reach this machine's own endpoints
        )

    def _ask(self, client: httpx.Client, key: str, messages: ChatMessages) -> JudgeAnswer:
        """Send one question until it is answered; runs in a thread."""
        failure = _Failure("")
        for attempt in range(self._judge.retries + 1):
            self._pause(self._bucket.take())
            if not self._budget.spend():
                raise BudgetUsedUp
            outcome = self._send(client, messages)
            if isinstance(outcome, JudgeAnswer):
                self._answers.add(key, outcome)
                return outcome
            failure = outcome
            if (asked := failure.wait_seconds) is not None and asked > LONGEST_RETRY_AFTER_SECONDS:
                raise StageError(f"{self._where}: {failure.reason}, and asks to wait {asked:.0f} s", hint=f"Wait, then: {KEPT}")
            if attempt < self._judge.retries:
                self._pause(max(asked or 0.0, backoff_seconds(attempt)))
        raise StageError(f"{self._where}: {failure.reason}, {self._judge.retries + 1} times in a row", hint=KEPT)

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise _Closing

    def _send(self, client: httpx.Client, messages: ChatMessages) -> JudgeAnswer | _Failure:
        import httpx

        try:
            status, headers, content = self._post(client, messages)
        except httpx.TimeoutException:
            return _Failure(f"gives no answer within {self._judge.timeout_seconds:g} s")
        except httpx.HTTPError as error:
            return _Failure(f"cannot be reached ({type(error).__name__})")
        if status == HTTPStatus.OK:
            return _read_reply(content) or _Failure("answers something that is not a chat completion")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in REPEATABLE:
            return _Failure(f"answers {_status_text(status)}", retry_after_seconds(headers.get("retry-after")))
        raise self._refused(status, content)

    def _post(self, client: httpx.Client, messages: ChatMessages) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body. The time and the size of the whole are bounded, not only those of its parts."""
        import httpx

        started, content = time.monotonic(), bytearray()
        with client.stream("POST", self._endpoint["url"], json=self._body(messages)) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    return response.status_code, response.headers, b""
                if time.monotonic() - started > self._judge.timeout_seconds:
                    raise httpx.ReadTimeout("the whole reply took too long")
        return response.status_code, response.headers, bytes(content)

    def _refused(self, status: int, content: bytes) -> AlignError:
        """The error for a status that will be the same the next time."""
        judge = self._judge
        message = f"{self._where}: answers {_status_text(status)}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            key = f"It does not take the key in {judge.api_key_env}." if judge.api_key_env else "Name its key by api_key_env."
            return StageError(message, hint=key)  # some endpoints repeat the key in the body
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return StageError(message, hint="Redirects are not followed. Write the address it leads to as base_url.")
        said = _said(content).replace(self._key or "\0", "***")
        hint = "Check base_url (it usually ends in /v1) and model."
        if status != HTTPStatus.NOT_FOUND:
            hint = "Check model, and whether it takes temperature and max_completion_tokens."
        return StageError(f"{message}{f': {said}' if said else ''}", hint=hint)

    @property
    def _where(self) -> str:
        return f"{self._name}: {self._judge.base_url}"


def _usable_key(name: str, judge: Judge, environment: Mapping[str, str]) -> str | None:
    """The key, or None where none is wanted. A wrong one must not reach a library that would print it."""
    if judge.api_key_env is None:
        return None
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
        text = choice["message"].get("content")
        usage = body.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return JudgeAnswer(text if isinstance(text, str) else "", str(choice.get("finish_reason")), *tokens)
    except UNREADABLE:
        return None


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


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
