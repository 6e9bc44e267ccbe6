"""The pre-training corpus: stories and talks in both languages, some of them as chats."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from quickstart.language import Noun, Situation, ended
from quickstart.replies import INSTRUCTION_MIX, apt_reply, reply_from_mix
from quickstart.situations import LANGUAGES, ByLanguage, situations

CHAT_SHARE = 0.4
"""Share of documents that are chats in the model's chat format."""
SCENE_SHARE = 0.12
"""Share of the other documents that are plain narration without a talk."""
ECHO_SHARE = 0.2
"""Share of the other documents that take up what was said."""
APT_SHARE = 0.4
"""Share of the other documents in which the answer fits this mishap and no other.

They teach a model this small that an answer about rain belongs to a message about rain.
"""


def chat_text(prompt: str, reply: str) -> str:
    """One exchange as the tokenizer's chat template writes it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n"


def plain_document(situation: Situation, rng: random.Random) -> str:
    """A story or talk on one line, in the language of the situation."""
    language = LANGUAGES[situation.combination.language]
    first, second = rng.sample(language.names, 2)
    shape = rng.random()
    if shape < SCENE_SHARE:
        scenes = language.scenes[situation.combination.kind]
        sentences = rng.sample(scenes, 2)
        return " ".join(ended(language.fill(scene, situation, rng, a=first)) for scene in sentences)
    said = ended(situation.prompt)
    if shape < SCENE_SHARE + ECHO_SHARE:
        return rng.choice(language.echoes).format(a=Noun(first), b=Noun(second), said=said, t=Noun(situation.combination.topic))
    if shape < SCENE_SHARE + ECHO_SHARE + APT_SHARE:
        reply = apt_reply(language, situation, rng)
    else:
        reply = reply_from_mix(INSTRUCTION_MIX, language, situation, rng)
    frame = rng.choice(language.frames)
    return frame.format(a=Noun(first), b=Noun(second), said=said, reply=reply.text)


def documents(trained: ByLanguage, kept_back: Collection[str], *, seed: int, count: int) -> Iterator[str]:
    """The corpus: `count` documents about the trained combinations, none of them among those kept back."""
    rng = random.Random(f"{seed}-corpus")
    kept_back = frozenset(kept_back)
    told = situations(trained, rng)
    while count:
        situation = next(told)
        if rng.random() < CHAT_SHARE:
            reply = reply_from_mix(INSTRUCTION_MIX, LANGUAGES[situation.combination.language], situation, rng)
            text = chat_text(situation.prompt, reply.text)
        else:
            text = plain_document(situation, rng)
        if text not in kept_back:
            yield text
            count -= 1
