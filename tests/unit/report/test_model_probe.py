"""`align doctor MODEL`: every check finds the fault it is there for, and a sound model has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.data import template_problems as template_module
from align.data.template import ChatFormat
from align.models.facts import ModelFacts
from align.models.folder import ModelFolder
from align.report.model import token_checks
from align.report.model.check import WHY, ModelCheck
from align.report.model.probe import ModelReport, lines_of, probe_loaded, probe_model
from align.testing.tiny import CHAT_TEMPLATE, fill_weights, tiny_causal_lm, tiny_reward_model, tiny_seq2seq_lm, tiny_tokenizer

Look = Callable[..., dict[str, ModelCheck]]

FACTS = ModelFacts(
    vocab_size=259,
    embedding=("model.embed_tokens.weight", 259),
    tied=True,
    has_head=False,
    is_language_model=True,
    parameters=30_240,
    end_token_ids={"generation_config.json": [2]},
    context_tokens=512,
)
GENERIC = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Check a tiny tokenizer; keywords are set on it."""
    monkeypatch.setattr(token_checks, "SPEED_SECONDS", 0.0)

    def check(template: str | None = GENERIC, *, facts: ModelFacts = FACTS, tokenizer: Any = None, **attributes: Any) -> Any:
        tokenizer = tokenizer or tiny_tokenizer(vocabulary=300)
        tokenizer.chat_template = template
        for name, value in attributes.items():
            setattr(tokenizer, name, value)
        report = ModelReport(tmp_path)
        probe_loaded(report, tokenizer, facts)
        return {found.name: found for found in report.checks}

    return check


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("models") / "tiny")


def test_a_sound_model_has_no_problem(model: Path) -> None:
    report = probe_model(ModelFolder(model))
    assert [check.name for check in report.checks] == list(WHY)
    assert report.problems == []
    assert report.exit_code == 0
    assert report.to_json()["ok"]


@pytest.mark.parametrize(
    ("template", "name", "state", "told"),
    [
        (None, "template", "problem", "no chat template"),
        ("", "template", "problem", "no chat template"),
        (GENERIC + " " * 70_000, "template", "problem", "64 KiB"),
        ("{{ messages[0].content }", "template", "problem", "cannot show"),
        ("{{ raise_exception('not today') }}", "template", "problem", "not today"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + GENERIC, "template", "problem", "cannot show"),
        ("{{ 'a' * 5000000 }}" + GENERIC, "template", "problem", "characters for a few words"),
        ("{{ 'a' * 20000000000 }}" + GENERIC, "template", "problem", "MemoryError"),
        (
            GENERIC.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif"),
            "prompt_prefix",
            "problem",
            "right after",
        ),
        (GENERIC.replace("<|im_end|>", "###"), "end_of_turn", "problem", "ends a completion with '###'"),
        (GENERIC.replace("<|im_end|>", ""), "end_of_turn", "info", "does not end a completion"),
        ("{% if not messages[3:] %}A{% else %}B{% endif %}" + GENERIC, "prompt_prefix", "info", "second turn"),
        (GENERIC.replace("messages %}", "messages[-1:] %}", 1), "prompt_prefix", "problem", "right after"),
        (GENERIC.replace("'\\n' + m['content']", "'\\n' + m['content'] | trim"), "completions", "info", "leading space"),
        (GENERIC.replace("m['content']", "m['content'] | replace('course', 'curse')"), "completions", "problem", "plain"),
        ("{{ strftime_now('%d %b %Y') }}" + GENERIC, "date", "info", "today's date"),
        ("{% if date_string is defined %}{{ date_string }}{% endif %}" + GENERIC, "date", "info", "date_string"),
        (GENERIC.replace("messages %}", "messages if m.role != 'system' %}", 1), "system_message", "problem", "silently"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + GENERIC,
            "system_message",
            "info",
            "no system here",
        ),
        (
            "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a kind helper.<|im_end|>\n{% endif %}" + GENERIC,
            "first_message",
            "info",
            "You are a kind helper.",
        ),
        (
            "{% if messages[2:] %}{{ raise_exception('one turn only') }}{% endif %}" + GENERIC,
            "two_turns",
            "info",
            "one turn only",
        ),
        (
            GENERIC.replace("m['content'] +", "(m['content'] if loop.last or loop.index > loop.length - 2 else '') +"),
            "two_turns",
            "problem",
            "leaves out user messages",
        ),
    ],
)
def test_templates(look: Look, template: str | None, name: str, state: str, told: str) -> None:
    check = look(template)[name]
    assert (check.state, told in check.found) == (state, True), check


def test_a_template_without_end_stops_the_checks(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "RENDER_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    checks = look(loop + GENERIC)
    assert "took more than" in checks["template"].found
    assert "completions" not in checks
    late = look("{% if messages[0].role == 'system' %}" + loop + "{% endif %}" + GENERIC)
    assert "took more than" in late["system_message"].found
    assert "two_turns" not in late


def test_no_end_of_sequence(look: Look) -> None:
    assert "none" in look(eos_token=None)["end_of_sequence"].found


def test_an_end_of_sequence_that_its_text_does_not_become(look: Look) -> None:
    checks = look(tokenizer=_OtherEnd(tiny_tokenizer(vocabulary=300)))
    assert checks["end_of_sequence"].state == "problem"
    assert "as text it becomes" in checks["end_of_sequence"].found


class _OtherEnd:
    """A tokenizer whose end-of-sequence token has a number that its text never gets."""

    def __init__(self, tokenizer: Any) -> None:
        self.__dict__["_tokenizer"] = tokenizer

    def __getattr__(self, name: str) -> Any:
        return 7 if name == "eos_token_id" else getattr(self._tokenizer, name)

    def get_vocab(self) -> dict[str, int]:
        return {**self._tokenizer.get_vocab(), "<|im_end|>": 7}

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tokenizer, name, value)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)

    def __len__(self) -> int:
        return len(self._tokenizer)


def test_the_loss_must_cover_one_end_of_sequence(look: Look) -> None:
    check = look(tokenizer=_OtherEnd(tiny_tokenizer(vocabulary=300)))["end_of_turn"]
    assert check.state == "problem"
    assert "not once with 7" in check.found


@pytest.mark.parametrize(("pad", "told"), [(None, "the tokenizer has none"), ("<|im_end|>", "which ends a completion")])
def test_padding_that_align_chooses(look: Look, pad: str | None, told: str) -> None:
    checks = look(pad_token=pad)
    assert checks["padding"].state == "info"
    assert told in checks["padding"].found and "fills rows with '<|pad|>' (0)" in checks["padding"].found
    assert checks["completions"].state == "ok"


def test_padding_outside_the_vocabulary() -> None:
    assert token_checks.check_padding(ChatFormat(tiny_tokenizer(vocabulary=300)), 0).state == "problem"


@pytest.mark.parametrize(
    ("ends", "state", "told"),
    [
        ({}, "info", "neither"),
        ({"config.json": [0]}, "info", "'<|pad|>' (0)"),
        ({"generation_config.json": [2, 1, 999]}, "ok", "'<|im_start|>' (1), 'a token it does not have' (999)"),
    ],
)
def test_stopping(look: Look, ends: dict[str, list[int]], state: str, told: str) -> None:
    stops = tuple(ends.get("generation_config.json", []))
    check = look(facts=replace(FACTS, end_token_ids=ends, stop_token_ids=stops))["stopping"]
    assert (check.state, told in check.found) == (state, True), check


class TestBeginning:
    @pytest.fixture
    def tokenizer(self) -> Any:
        from tokenizers import processors

        tokenizer = tiny_tokenizer(vocabulary=300)
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        return tokenizer

    @pytest.mark.parametrize(
        ("template", "state", "told"),
        [
            ("{{ bos_token }}" + GENERIC, "ok", "gets two"),
            ("{{ bos_token + bos_token }}" + GENERIC, "problem", "2 times"),
            (GENERIC, "info", "does not write '<s>'"),
        ],
    )
    def test_one(self, look: Look, tokenizer: Any, template: str, state: str, told: str) -> None:
        check = look(template, tokenizer=tokenizer)["beginning"]
        assert (check.state, told in check.found) == (state, True), check


def test_tokens_that_differ_in_one_pass(look: Look) -> None:
    """The first letter of the completion joins the prompt's last one: 'tO' is one token where both are one text."""
    tokenizer = tiny_tokenizer(["tOf"] * 9, vocabulary=400)
    template = "{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant{% endif %}"
    assert look(template, tokenizer=tokenizer)["one_pass"].state == "info"


def test_texts_that_do_not_come_back(look: Look) -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer(vocabulary=300)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    check = look(tokenizer=tokenizer)["round_trip"]
    assert (check.state, check.found) == ("info", "come back normalised: Korean, decomposed (NFD)")
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    assert "spaces and tabs" in look(tokenizer=tokenizer)["round_trip"].found
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert look(tokenizer=tokenizer)["round_trip"].state == "problem"


def test_control_tokens_in_a_user_s_text(look: Look) -> None:
    assert "<|im_start|>" in look()["control_tokens"].found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"embedding": ("wte.weight", 258)}, "no row in wte.weight, which has 258"),
        ({"embedding": ("wte.weight", 300)}, "300 rows, but config.json's vocab_size is 259"),
        ({"embedding": None, "vocab_size": 100}, "config.json's vocab_size"),
    ],
)
def test_vocabulary(look: Look, changes: dict[str, Any], told: str) -> None:
    check = look(facts=replace(FACTS, **changes))["vocabulary"]
    assert (check.state, told in check.found) == ("problem", True), check


def test_head(look: Look) -> None:
    assert look(facts=replace(FACTS, tied=False))["head"].state == "problem"
    assert look(facts=replace(FACTS, tied=False, has_head=True))["head"].state == "ok"


def test_weights(look: Look) -> None:
    layers = replace(FACTS, num_layers=2, stored_layers=2, hidden_size=32, embedding_columns=32)
    assert (look(facts=layers)["weights"].state, look(facts=layers)["weights"].found) == ("ok", "2 layers, as config.json says")
    fewer = look(facts=replace(layers, stored_layers=1))["weights"]
    assert (fewer.state, fewer.found) == ("problem", "config.json says 2 layers, but the weights have 1")
    # Layers that predict further tokens stand behind the others.
    assert look(facts=replace(layers, stored_layers=3))["weights"].state == "ok"
    assert look(facts=replace(layers, embedding_columns=64))["weights"].state == "problem"
    assert look()["weights"].state == "info"


def test_context(look: Look) -> None:
    assert look(facts=replace(FACTS, context_tokens=None))["context"].state == "info"
    assert "100 by the tokenizer" in look(model_max_length=100)["context"].found


def test_speed(look: Look) -> None:
    assert "tokens/s" in look()["speed"].found


def test_a_damaged_file_is_exit_4_and_an_unsafe_one_exit_2(model: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(model, tmp_path / "cut"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    report = probe_model(ModelFolder(folder))
    assert (report.exit_code, report.problems[0].name, len(report.checks)) == (4, "folder", 1)
    shutil.copy(model / "model.safetensors", weights)
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.py"}}')
    assert probe_model(ModelFolder(folder)).exit_code == 2


def test_a_tokenizer_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(model, tmp_path / "bad"))
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3}}')
    report = probe_model(ModelFolder(folder))
    assert [check.name for check in report.problems] == ["tokenizer"]
    assert report.exit_code == 2


def test_reward_models_and_encoder_decoders(tmp_path: Path) -> None:
    reward = probe_model(ModelFolder(tiny_reward_model(tmp_path / "reward")))
    assert reward.problems == []
    assert "stopping" in reward.skipped
    seq2seq = probe_model(ModelFolder(tiny_seq2seq_lm(tmp_path / "t5")))
    assert seq2seq.problems == []
    assert "two_turns" in seq2seq.skipped


def test_text_fits_the_width_and_says_why(look: Look, tmp_path: Path) -> None:
    report = ModelReport(tmp_path)
    report.add(look(GENERIC.replace("m['content']", "m['content'] | replace('course', 'curse')"))["completions"])
    lines = list(lines_of(report, width=80))
    assert all(len(line) <= 80 for line in lines[1:])
    text = " ".join(" ".join(lines).split())
    assert WHY["completions"] in text
    assert "→ " in text
    assert "This model cannot be used as it is: 1 problem" in text
    assert "Not checked: folder, tokenizer" in text


def test_the_template_of_the_tests_is_sound(look: Look) -> None:
    assert [check for check in look(CHAT_TEMPLATE).values() if check.state == "problem"] == []


def test_weights_that_are_not_finite_are_a_problem(tmp_path: Path) -> None:
    report = probe_model(ModelFolder(fill_weights(tiny_causal_lm(tmp_path / "m"), float("nan"))))
    (problem,) = report.problems
    assert (problem.name, report.exit_code) == ("numbers", 2)
    assert "NaN or infinite: model.norm.weight" in problem.found
