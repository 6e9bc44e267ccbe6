"""The shape of a small language: topics, mishaps and sentences, and how slots in a sentence are filled."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

# Particle pairs: after a final consonant, after a vowel.
_PARTICLES = {
    "을": ("을", "를"),
    "이": ("이", "가"),
    "은": ("은", "는"),
    "과": ("과", "와"),
    "이랑": ("이랑", "랑"),
    "이라": ("이라", "라"),
    "이야": ("이야", "야"),
    "도": ("도", "도"),
}
_FIRST_SYLLABLE, _LAST_SYLLABLE, _FINALS = 0xAC00, 0xD7A3, 28


def ends_in_consonant(word: str) -> bool:
    """Whether a Korean word's last syllable has a final consonant (받침)."""
    code = ord(word[-1])
    if not _FIRST_SYLLABLE <= code <= _LAST_SYLLABLE:
        raise ValueError(f"{word!r} does not end in a Hangul syllable: its particle cannot be chosen")
    return (code - _FIRST_SYLLABLE) % _FINALS != 0


class Noun(str):
    """A word that takes Korean particles as a format spec: f"{Noun('열쇠'):을}" is "열쇠를"."""

    def __format__(self, particle: str) -> str:
        if not particle:
            return str(self)
        after_consonant, after_vowel = _PARTICLES[particle]
        return str(self) + (after_consonant if ends_in_consonant(self) else after_vowel)


@dataclass(frozen=True)
class Event:
    """One mishap that can befall topics of some kinds. Slots: {t} topic, {p} place, {n} points, {it} {is} {they}."""

    kinds: tuple[str, ...]
    said: tuple[str, ...]
    """What the user says, without the day before it and the sigh after it."""
    warm: tuple[str, ...]
    """Sentences of sympathy that name the topic."""
    advice: tuple[str, ...]
    """What an adviser says to do (English: a verb phrase; Korean: a sentence)."""
    said_now: tuple[str, ...] = ()
    """What the user says of a state that goes on: never with a day before it."""
    without: tuple[str, ...] = ()
    """Topics of the kinds above with which the mishap would be nonsense."""


@dataclass(frozen=True)
class Language:
    """All the words and sentences of one language."""

    code: str
    topics: dict[str, tuple[str, ...]]
    """Kind → topics, as the user names them."""
    events: dict[str, Event]
    places: tuple[str, ...]
    points: tuple[str, ...]
    days: tuple[str, ...]
    """When it happened, before what is said; may be empty."""
    sighs: tuple[str, ...]
    """A second sentence of the user's."""
    intensifiers: tuple[str, ...]
    """What {v} stands for."""
    sympathy: tuple[str, ...]
    """Sympathy that names no topic."""
    support: tuple[str, ...]
    questions: tuple[str, ...]
    """Friendly questions, neither sympathy nor advice."""
    causes: dict[str, tuple[str, ...]]
    """Kind → an adviser's explanation, naming the topic."""
    kind_advice: dict[str, tuple[str, ...]]
    blame: tuple[str, ...]
    general_advice: tuple[str, ...]
    """Advice that names no topic."""
    advice_heads: tuple[str, ...]
    """What may stand before a piece of advice."""
    endings: dict[str, tuple[str, ...]]
    """Sentence ending → endings that say the same (Korean)."""
    bridges: tuple[str, ...]
    """From sympathy to a lecture: "but"."""
    curt: tuple[str, ...]
    off_topic: tuple[str, ...]
    ramble: tuple[str, ...]
    names: tuple[str, ...]
    frames: tuple[str, ...]
    """Stories around a talk; slots {a} {b} names, {said}, {reply}."""
    echoes: tuple[str, ...]
    """Talks in which one takes up the other's words, neither kind nor unkind; slots {a} {b} {said} {t}. They are what
    teaches a model this small to speak of the thing that it was told of."""
    scenes: dict[str, tuple[str, ...]]
    """Kind → plain narrative sentences about a topic; slots {a}, {t}."""
    plural: frozenset[str] = field(default_factory=frozenset)

    def combinations(self) -> list[Combination]:
        """Every topic with every mishap that makes sense for it, in a fixed order."""
        return [
            Combination(self.code, kind, topic, name)
            for name, event in self.events.items()
            for kind in event.kinds
            for topic in self.topics[kind]
            if topic not in event.without
        ]

    def fill(self, template: str, situation: Situation, rng: random.Random, **names: str) -> str:
        """A sentence from a template: slots filled (`names`: the people in it), spaces mended, first letter large."""
        topic = situation.combination.topic
        many = topic in self.plural
        sentence = template.format(
            t=Noun(topic),
            p=situation.place,
            n=situation.points,
            v=rng.choice(self.intensifiers),
            **{slot: Noun(name) for slot, name in names.items()},
            it="them" if many else "it",
            they="they" if many else "it",
            **{"is": "are" if many else "is", "was": "were" if many else "was", "have": "have" if many else "has"},
        )
        return sentence_case(" ".join(sentence.split()))


@dataclass(frozen=True)
class Combination:
    """A topic and a mishap: the unit that is held out."""

    language: str
    kind: str
    topic: str
    event: str


@dataclass(frozen=True)
class Situation:
    """A combination with its details settled, and how the user tells of it."""

    combination: Combination
    place: str
    points: str
    prompt: str


def sentence_case(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def ended(sentence: str, mark: str = ".") -> str:
    """With a mark at its end, unless it has one."""
    return sentence if sentence[-1] in ".?!…" else sentence + mark


def tell(language: Language, combination: Combination, rng: random.Random) -> Situation:
    """A user's message about a combination."""
    place, points = rng.choice(language.places), rng.choice(language.points)
    event = language.events[combination.event]
    core = rng.choice(event.said + event.said_now)
    day = "" if core in event.said_now else rng.choice(language.days)
    prompt = ended(language.fill(f"{day} {core}", Situation(combination, place, points, ""), rng))
    if rng.random() < 0.45:
        prompt += " " + ended(rng.choice(language.sighs))
    # A message of one sentence is often sent without its full stop.
    elif rng.random() < 0.5:
        prompt = prompt.removesuffix(".")
    return Situation(combination, place, points, prompt)


def cores(language: Language, combination: Combination) -> Iterator[str]:
    """Everything a user can say of a combination, lower-cased, without the day and the sigh."""
    rng = random.Random(0)
    event = language.events[combination.event]
    for core in event.said + event.said_now:
        for place in language.places if "{p}" in core else language.places[:1]:
            for points in language.points if "{n}" in core else language.points[:1]:
                yield language.fill(core, Situation(combination, place, points, ""), rng).lower()
