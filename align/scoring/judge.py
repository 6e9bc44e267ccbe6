"""A judge as scorer: completions of one prompt compared two by two, in both orders.

Language models are biased by the position of an answer (Zheng et al. 2023, "Judging LLM-as-a-judge", §3.4). So every pair is
shown in both orders, and only a verdict that is the same in both counts.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.config.judge import Judge
from align.errors import StageError
from align.records import Candidate, Message
from align.scoring.judge_answers import JudgeAnswer
from align.scoring.judge_client import BudgetUsedUp, JudgeClient
from align.scoring.judge_prompt import ChatMessages, Verdict, comparison_messages, read_verdict

CUT = "length"
"""`finish_reason` of a reply that reached its token limit."""


class Comparison(NamedTuple):
    """Two different completions of one prompt."""

    prompt_id: str
    prompt: Sequence[Message]
    one: str
    other: str


@dataclass
class JudgeTally:
    """Counts of a judge's verdicts and replies; tallies can be added."""

    comparisons: int = 0
    consistent: int = 0
    """Comparisons with the same verdict in both orders."""
    ties: int = 0
    """Consistent comparisons whose verdict is a tie."""
    inconsistent: int = 0
    """Comparisons with two verdicts that contradict each other."""
    first_favoured: int = 0
    """Verdicts of inconsistent comparisons that name the completion shown first."""
    second_favoured: int = 0
    unparsable: int = 0
    """Replies without a verdict."""
    cut: int = 0
    """Unparsable replies that reached the judge's token limit."""
    requests: int = 0
    cached: int = 0
    """Questions whose reply was cached."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)

    def counts(self) -> dict[str, int]:
        return asdict(self)

    def metrics(self) -> dict[str, Any]:
        """`position_bias`: share of contradicting verdicts that name the completion shown first; 0.5 is no bias."""
        named = self.first_favoured + self.second_favoured
        return {
            "comparisons": self.comparisons,
            "consistent_share": self.consistent / self.comparisons if self.comparisons else None,
            "position_bias": self.first_favoured / named if named else None,
            "tie_share": self.ties / self.consistent if self.consistent else None,
            "unparsable_replies": self.unparsable,
            "cut_replies": self.cut,
            "requests": self.requests,
            "cached_replies": self.cached,
            "judge_prompt_tokens": self.prompt_tokens,
            "judge_completion_tokens": self.completion_tokens,
        }


Outcome = Literal["one", "other", "tie"]
_IN_ORDER: Mapping[Verdict, Outcome] = {"A": "one", "B": "other", "tie": "tie"}
_EXCHANGED: Mapping[Verdict, Outcome] = {"A": "other", "B": "one", "tie": "tie"}


def settle(in_order: Verdict | None, exchanged: Verdict | None, tally: JudgeTally) -> Outcome | None:
    """The outcome of both orders, which is counted; None if they contradict each other or one has no verdict.

    Args:
        in_order: the verdict when `one` was A. exchanged: the verdict when `other` was A.
    """
    tally.comparisons += 1
    if in_order is None or exchanged is None:
        return None
    outcome = _IN_ORDER[in_order]
    if outcome == _EXCHANGED[exchanged]:
        tally.consistent += 1
        tally.ties += outcome == "tie"
        return outcome
    tally.inconsistent += 1
    tally.first_favoured += (in_order == "A") + (exchanged == "A")
    tally.second_favoured += (in_order == "B") + (exchanged == "B")
    return None


def pairings(count: int, opponents: Literal["all"] | int) -> list[tuple[int, int]]:
    """Pairs of `count` completions to compare, each once: all pairs, or each completion with its next `opponents` in a ring."""
    # A ring with that many neighbours on both sides is all pairs.
    if opponents == "all" or 2 * opponents >= count - 1:
        return list(itertools.combinations(range(count), 2))
    return sorted(
        {(min(i, j), max(i, j)) for i in range(count) for step in range(1, opponents + 1) if (j := (i + step) % count) != i}
    )


def comparisons_of(candidates: Sequence[Candidate], opponents: Literal["all"] | int) -> Iterator[Comparison]:
    """The comparisons of every prompt. Equal texts are compared once; empty ones are left out."""
    groups: dict[str, dict[str, Candidate]] = {}
    for candidate in candidates:
        # An empty completion is not worth a request; it has no comparison and so no score.
        group = groups.setdefault(candidate.prompt_id, {})
        if candidate.completion.strip():
            group.setdefault(candidate.completion, candidate)
    for prompt_id, texts in groups.items():
        different = list(texts)
        for one, other in pairings(len(different), opponents):
            yield Comparison(prompt_id, texts[different[one]].prompt, different[one], different[other])


class PairwiseJudge:
    """A judge that scores candidates by comparing those of each prompt."""

    def __init__(self, name: str, judge: Judge, *, store_root: Path, environment: Mapping[str, str]) -> None:
        """Make a judge; nothing is sent before it scores.

        Args:
            name: of the scorer, for messages.
            store_root: where replies are kept.
            environment: has the key and the hosts that the user allows.
        """
        self._name = name
        self._judge = judge
        self._client = JudgeClient(name, judge, store_root=store_root, environment=environment)
        self._expected: Sequence[Candidate] = ()
        self._tally = JudgeTally()

    def announce(self, candidates: Sequence[Candidate]) -> str:
        """Register all candidates to come; returns a sentence on what judging them costs."""
        self._expected = candidates
        count = sum(1 for _ in comparisons_of(candidates, self._judge.opponents))
        cost = f"{count:,} comparisons, {2 * count:,} questions to {self._judge.model} at {self._judge.host}"
        return f"{self._name}: {cost}; those answered before are not asked again"

    def take_tally(self) -> dict[str, int]:
        """The counts since the last call."""
        tally, self._tally = self._tally, JudgeTally()
        return tally.counts()

    def score_candidates(
        self, candidates: Sequence[Candidate], *, report: Callable[[int], None] = lambda done: None
    ) -> list[float | None]:
        """Per candidate the mean of its consistent comparisons (better 1, tie 0.5, worse 0), in [0, 1]; None where it has none.

        Args:
            candidates: with all candidates of each prompt.
            report: called every fraction of a second with the number of candidates done, in proportion to the comparisons; what
                it raises ends the work.
        Raises:
            StageError: if the budget is used up, or the endpoint refuses or fails.
        """
        # By text, not by candidate: equal completions of a prompt are compared once and share the score.
        points: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        # By number: a comparison, and its verdicts so far by whether the order was exchanged. Only comparisons under way are
        # held, since `questions` is drawn as the client has room.
        open_comparisons: dict[int, tuple[Comparison, dict[bool, Verdict | None]]] = {}
        total = sum(1 for _ in comparisons_of(candidates, self._judge.opponents))
        sent_before, settled = self._client.requests_sent, 0

        def questions() -> Iterator[ChatMessages]:
            for number, comparison in enumerate(comparisons_of(candidates, self._judge.opponents)):
                open_comparisons[number] = comparison, {}
                yield from self._questions(comparison)

        def take(number: int, answer: JudgeAnswer, was_known: bool) -> None:
            nonlocal settled
            # Questions 2n and 2n + 1 are the two orders of comparison n, the second with the completions exchanged.
            comparison, found = open_comparisons[number // 2]
            found[bool(number % 2)] = self._count(answer, was_known)
            if len(found) < 2:
                return
            settled += 1
            del open_comparisons[number // 2]
            if outcome := settle(found[False], found[True], self._tally):
                of_one = {"one": 1.0, "tie": 0.5, "other": 0.0}[outcome]
                points[comparison.prompt_id, comparison.one].append(of_one)
                points[comparison.prompt_id, comparison.other].append(1 - of_one)

        def tick() -> None:
            report(settled * len(candidates) // max(total, 1))

        try:
            self._client.ask_all(questions(), on_answer=take, tick=tick)
        except BudgetUsedUp:
            raise self._over_budget() from None
        finally:
            # In `finally`, since requests that were sent before an error were paid for too.
            self._tally.requests += self._client.requests_sent - sent_before
        report(len(candidates))
        given = (points.get((candidate.prompt_id, candidate.completion)) for candidate in candidates)
        return [None if own is None else sum(own) / len(own) for own in given]

    def _questions(self, comparison: Comparison) -> Iterable[ChatMessages]:
        """The comparison in both orders."""
        prompt, criteria = comparison.prompt, self._judge.criteria
        yield comparison_messages(prompt, comparison.one, comparison.other, criteria=criteria)
        yield comparison_messages(prompt, comparison.other, comparison.one, criteria=criteria)

    def _count(self, answer: JudgeAnswer, was_known: bool) -> Verdict | None:
        # A cut reply may end in a verdict that it only quotes or is about to take back.
        verdict = None if answer.finish_reason == CUT else read_verdict(answer.text)
        self._tally.unparsable += verdict is None
        self._tally.cut += answer.finish_reason == CUT
        self._tally.cached += was_known
        self._tally.prompt_tokens += answer.prompt_tokens
        self._tally.completion_tokens += answer.completion_tokens
        return verdict

    def _over_budget(self) -> StageError:
        judged = total = 0
        for comparison in comparisons_of(self._expected, self._judge.opponents):
            total += 1
            judged += all(self._client.known(messages) is not None for messages in self._questions(comparison))
        return StageError(
            f"{self._name}: the budget is used up: max_requests is {self._judge.max_requests:,}, "
            f"and {judged:,} of {total:,} comparisons are judged",
            hint="Raise max_requests, or run the same command again: answers are kept, and the budget is that of one run.",
        )
