"""Replies of every style, with what the imagined human notices about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quickstart.language import Language, Situation, ended

SENSIBLE_CHARACTERS = {"ko": (18, 90), "en": (45, 200)}
"""Language → the shortest and longest reply that the human does not mind."""

APT_ADVICE_SHARE = 0.6
"""Share of the advice that is about the very mishap."""

# The imagined assistant of instructions.jsonl and of the pre-training corpus: mostly advice.
INSTRUCTION_MIX = {
    "advice": 0.56,
    "sympathy": 0.17,
    "half": 0.08,
    "off_topic": 0.06,
    "curt": 0.05,
    "rambling": 0.04,
    "repetitive": 0.04,
}


@dataclass(frozen=True)
class Reply:
    """A reply and its features; no file holds them."""

    text: str
    style: str
    sympathy: int
    """Sentences of sympathy, beyond offers of support."""
    support: bool
    lectures: int
    """Sentences of explanation, blame or advice."""
    names_topic: bool
    names_event: bool
    """Whether a sentence fits what happened, and could not stand under every other mishap."""
    mistaken: bool
    """Whether it speaks of a mishap that the user did not have."""
    repeats: bool
    length_sensible: bool


class Writer:
    """Writes one reply sentence by sentence and keeps count of what the sentences do."""

    def __init__(self, language: Language, situation: Situation, rng: random.Random) -> None:
        self.language, self.situation, self.rng = language, situation, rng
        self.event = language.events[situation.combination.event]
        self.kind = situation.combination.kind
        self.sentences: list[str] = []
        self.said: set[str] = set()
        self.sympathies = self.lectures = 0
        self.supports = self.names_event = self.mistaken = self.repeats = False

    def say(self, *choices: str, head: str = "") -> None:
        """One sentence from the choices, one that was not said yet if there is one."""
        template = self.rng.choice([choice for choice in choices if choice not in self.said] or choices)
        self.said.add(template)
        self.sentences.append(ended(self.language.fill(f"{head} {self._varied(template)}", self.situation, self.rng)))

    def _varied(self, template: str) -> str:
        """With another ending of the same meaning (Korean)."""
        for ending, others in self.language.endings.items():
            if template.endswith(ending):
                return template.removesuffix(ending) + self.rng.choice(others)
        return template

    def sympathy(self) -> None:
        self.say(*self.language.sympathy)
        self.sympathies += 1

    def warm(self) -> None:
        self.say(*self.event.warm)
        self.sympathies += 1
        self.names_event = True

    def mistaken_warm(self) -> None:
        """Kind words about the right thing and another mishap of its kind."""
        others = [event for event in self.language.events.values() if self.kind in event.kinds and event is not self.event]
        self.say(*self.rng.choice(others).warm)
        self.sympathies += 1
        self.mistaken = True

    def support(self) -> None:
        self.say(*self.language.support)
        self.supports = True

    def question(self) -> None:
        self.say(*self.language.questions)

    def cause(self) -> None:
        self.say(*self.language.causes[self.kind])
        self.lectures += 1

    def blame(self) -> None:
        self.say(*self.language.blame)
        self.lectures += 1

    def advice(self, bridge: str = "") -> None:
        if self.rng.random() < APT_ADVICE_SHARE:
            self.apt_advice(bridge)
            return
        language = self.language
        self._advise(self.rng.choices((language.kind_advice[self.kind], language.general_advice), weights=(1, 3))[0], bridge)

    def apt_advice(self, bridge: str = "") -> None:
        """Advice on this mishap."""
        self._advise(self.event.advice, bridge)
        self.names_event = True

    def _advise(self, choices: Sequence[str], bridge: str) -> None:
        self.say(*choices, head=f"{bridge} {self.rng.choice(self.language.advice_heads)}")
        self.lectures += 1

    def perhaps(self, probability: float, *writes: Callable[[], None]) -> None:
        if self.rng.random() < probability:
            for write in writes:
                write()

    def finished(self, style: str) -> Reply:
        text = " ".join(self.sentences)
        shortest, longest = SENSIBLE_CHARACTERS[self.language.code]
        return Reply(
            text=text,
            style=style,
            sympathy=self.sympathies,
            support=self.supports,
            lectures=self.lectures,
            names_topic=self.situation.combination.topic.casefold() in text.casefold(),
            names_event=self.names_event,
            mistaken=self.mistaken,
            repeats=self.repeats,
            length_sensible=shortest <= len(text) <= longest,
        )


def _advice(writer: Writer) -> None:
    opening = writer.rng.random()
    if opening < 0.25:
        writer.cause()
    elif opening < 0.75:
        writer.blame()
    writer.advice()
    writer.perhaps(0.6, writer.advice)


def _sympathy(writer: Writer) -> None:
    """Warm, but often without a word about the user's own trouble or without an offer to be there."""
    shape = writer.rng.random()
    if shape < 0.30:
        first_two = [writer.sympathy, writer.warm]
        writer.rng.shuffle(first_two)
        writer.perhaps(1, *first_two, writer.support)
    elif shape < 0.50:
        writer.perhaps(1, writer.warm, writer.support)
    elif shape < 0.65:
        writer.perhaps(1, writer.sympathy, writer.warm)
        writer.perhaps(0.4, writer.question)
    else:
        writer.perhaps(1, writer.sympathy, writer.support)
        writer.perhaps(0.5, writer.support)


def _half(writer: Writer) -> None:
    """Sympathy that turns into a lecture."""
    writer.perhaps(1, writer.sympathy if writer.rng.random() < 0.7 else writer.warm)
    writer.advice(bridge=writer.rng.choice(writer.language.bridges))
    writer.perhaps(0.6, writer.advice)


def _mistaken(writer: Writer) -> None:
    """Warm about something that did not happen."""
    writer.perhaps(0.6, writer.sympathy)
    writer.mistaken_warm()
    writer.perhaps(0.7, writer.support)


def _off_topic(writer: Writer) -> None:
    for _ in range(writer.rng.choice((2, 2, 3))):
        writer.say(*writer.language.off_topic)


def _curt(writer: Writer) -> None:
    writer.say(*writer.language.curt)
    writer.perhaps(0.15, writer.question)


def _rambling(writer: Writer) -> None:
    """Five or six sentences, most about nothing, one or two of another style among them."""
    writer.perhaps(0.35, writer.sympathy)
    for _ in range(writer.rng.choice((3, 4))):
        writer.say(*writer.language.ramble)
    writer.perhaps(0.6, writer.cause)
    writer.perhaps(0.6, writer.advice)
    writer.say(*writer.language.ramble)


def _repetitive(writer: Writer) -> None:
    """One sentence, good or bad, said three times over."""
    writer.perhaps(0.5, writer.sympathy)
    writer.rng.choice((writer.warm, writer.support, writer.advice, writer.cause))()
    writer.sentences += [writer.sentences[-1]] * writer.rng.choice((1, 2, 2))
    writer.repeats = True


STYLES: dict[str, Callable[[Writer], None]] = {
    "advice": _advice,
    "sympathy": _sympathy,
    "half": _half,
    "mistaken": _mistaken,
    "off_topic": _off_topic,
    "curt": _curt,
    "rambling": _rambling,
    "repetitive": _repetitive,
}


def reply_in_style(style: str, language: Language, situation: Situation, rng: random.Random) -> Reply:
    writer = Writer(language, situation, rng)
    STYLES[style](writer)
    return writer.finished(style)


def reply_from_mix(mix: dict[str, float], language: Language, situation: Situation, rng: random.Random) -> Reply:
    """A reply whose style is drawn with the mix's weights."""
    style = rng.choices(list(mix), weights=list(mix.values()))[0]
    return reply_in_style(style, language, situation, rng)


def apt_reply(language: Language, situation: Situation, rng: random.Random) -> Reply:
    """One or two sentences that fit this mishap and no other, kind or not."""
    writer = Writer(language, situation, rng)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((writer.warm, writer.apt_advice))()
    return writer.finished("apt")


def ideal_reply(language: Language, situation: Situation, rng: random.Random) -> Reply:
    """What the human likes best: sympathy, a word about the very trouble, an offer to be there."""
    writer = Writer(language, situation, rng)
    writer.perhaps(1, writer.sympathy, writer.warm, writer.support)
    return writer.finished("ideal")
