"""The fuzz target of chat templates: Jinja of a model's folder, which may come from anybody."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest.mock import patch

from align.data import template_problems
from align.data.chat_templates import shipped_templates
from align.data.template import ChatFormat
from align.data.template_problems import FormatError, TemplateProblem
from align.records import Message
from align.testing.fuzz.mutate import mutated
from align.testing.fuzz.target import ACCEPTED, Finding, refusal
from align.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer

LIMIT_SECONDS, LIMIT_BYTES = 0.1, 1 << 27
"""For rendering, in place of the users' limits: endless templates are frequent here."""
SHORT_TEMPLATES = 3
CANARY = "fuzz-canary"
CANARY_MODULE = "this"
"""A module of Python that nothing imports."""
QUESTION = [Message(role="user", content="Hello, 가!")]
CONVERSATION = [Message(role="system", content="Be kind."), *QUESTION, Message(role="assistant", content="Hi."), *QUESTION]
PARTS: tuple[bytes, ...] = tuple(
    part.encode()
    for part in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('touch fuzz-canary') }}",
        "{{ self.__init__.__globals__ }}", "{{ messages.__class__ }}",
        "{{ lipsum.__globals__['os'].popen('touch fuzz-canary').read() }}",
        "{{ ''|attr('__class__') }}", "{{ '%s'|format(messages) }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}", "{{ raise_exception.__globals__ }}", "{{ strftime_now.__self__ }}",
        "{{ strftime_now('%Y' * 1000) }}", "{{ strftime_now(messages) }}", "{{ strftime_now('\\x00%') }}",
        "{{ strftime_now('\\ud800') }}",
        "{% for i in range(99999) %}{{ i }}{% endfor %}", "{% for i in range(10**9) %}{% endfor %}", "{{ 'a' * 10**10 }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "{{ 9**9**9 }}", "{{ 2**100000 }}",
        "{{ (2**99999)|string }}", "{{ 'a'.center(10**9) }}", "{{ 'a'|center(10**10) }}",
        "{{ range(99999)|join('x' * 99999) }}",
        "{{ 'a'.ljust(10**8)|upper }}", "{{ '%099999999d' % 1 }}", "{{ '{:>99999999}'.format(1) }}", "{{ 'x'|indent(10**8) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% include 'fuzz-canary' %}", "{% import 'os' as os %}",
        "{% from 'os' import system %}",
        "{% extends 'x' %}", "{% set x = x %}", "{% do messages.append(1) %}", "{% do messages.clear() %}",
        "{{ messages.pop() }}",
        "{{ messages[0].update({'content': 'x'}) }}", "{% set messages = messages * 9999 %}", "{{ raise_exception('no') }}",
        "{{ raise_exception(1) }}", "{{ raise_exception() }}", "{{ 1 / 0 }}", "{{ undefined.x.y }}", "{{ messages[99] }}",
        "{{ loop }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ namespace(a=1).a }}",
        "{% set ns = namespace() %}",
        "{% set ns.x = 1 %}", "{{ joiner()() }}", "{{ cycler('a','b').next() }}", "{{ lipsum(n=99) }}",
        "{{ dict(a=1)|tojson(indent=2) }}",
        "{{ messages|tojson }}", "{{ messages|map(attribute='__class__')|list }}", "{{ messages|sort(attribute='role') }}",
        "{{ messages|groupby('role') }}", "{{ messages|sum }}", "{{ ''|int }}", "{{ 'a'|wordwrap(0) }}",
        "{{ 'a'|truncate(-1) }}",
        "{{ 'a'|random }}", "{{ now() }}", "{{ '\\ud800' }}", "{{ '\\x00' }}", "<|im_end|>", "<|im_start|>", "<|pad|>",
        "<think>\n", "</think>",
        "{% generation %}", "{% endgeneration %}", "{%- endif %}", "{% endfor %}", "{% if add_generation_prompt %}",
        "{% raw %}",
        "{{ bos_token }}", "{{ eos_token }}", "{{ tools }}", "{{ documents }}", "{# ", " #}", "{{", "}}", "{%", "%}", "-%}",
        "{%+", "(" * 300,
        "[" * 900, "{{ " + "not " * 900 + "1 }}", "{% if 1 %}" * 300, "{{ " + "1+" * 3000 + "1 }}",
        "{{ 'a'" + "|upper" * 900 + " }}",
        "{{ __import__('this') }}", "{{ [].append.__self__ }}", "{{ get_flashed_messages() }}", "{{ config }}", "{{ request }}",
        "{{ x.y.z if x is defined else messages[-1]['content'] }}", "{{ messages[-1].content.split('')[0] }}", "{% break %}",
        "{% continue %}",
    )
)  # fmt: skip
"""Jinja that attacks, loops, grows, or is half of something."""
QUICK_PARTS = tuple(part for part in PARTS if len(part) < 200 and b"99" not in part and b"10*" not in part)
SLOW_SELDOM = 8
"""One input in so many may have parts that take as long as they may, or that are long."""


class TemplateTarget:
    """Templates of every tokenizer, some of them with attacks put in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = tiny_tokenizer(["Hello 가", "Be kind. Hi."] * 4)
        self.whole = [CHAT_TEMPLATE.encode(), *(path.read_bytes() for path in shipped_templates().values())]
        self.short = sorted(self.whole, key=len)[:SHORT_TEMPLATES]
        sys.modules.pop(CANARY_MODULE, None)

    def make(self, random: Random) -> bytes:
        """Half of them are built of parts alone; most others are short templates with changes: Jinja compiles each anew."""
        parts = PARTS if random.randrange(SLOW_SELDOM) == 0 else QUICK_PARTS
        if random.randrange(2):
            return b"template\n" + b"".join(random.choice(parts) for _ in range(random.randrange(1, 5)))
        return b"template\n" + mutated(random, self.short if random.randrange(4) else self.whole, parts)

    def read(self, data: bytes) -> str:
        """FormatError refuses the template, TemplateProblem one conversation."""
        template = data.partition(b"\n")[2].decode("utf-8", "surrogateescape")
        self.tokenizer.chat_template = template
        try:
            limits = patch.multiple(template_problems, RENDER_SECONDS=LIMIT_SECONDS, RENDER_BYTES=LIMIT_BYTES)
            with _here(self.folder), limits:
                chat_format = ChatFormat(self.tokenizer)
                chat_format.prompt_text(CONVERSATION)
                chat_format.completion_text(QUESTION, "Hi there.")
        except FormatError as error:
            return refusal(error)
        except TemplateProblem as problem:
            if not problem.reason:
                raise Finding("a problem without a reason") from problem
            return f"{type(problem).__name__} {problem.reason}"
        finally:
            self._look_for_canaries()
        return ACCEPTED

    def _look_for_canaries(self) -> None:
        if any(self.folder.iterdir()):
            raise Finding(f"the template wrote {[path.name for path in self.folder.iterdir()]}")
        if CANARY_MODULE in sys.modules:
            raise Finding("the template imported a module")


@contextmanager
def _here(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
