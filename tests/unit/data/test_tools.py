"""Rows with tools: read as OpenAI's files write them, shown as the template shows them, and refused by name elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.cli.main import main
from align.config.chat import ChatSettings
from align.data.encoding import EncodedInstruction, encode_instructions
from align.data.plain import PlainFormat
from align.data.source import Source, SourceFile
from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.data.validation.block import Block
from align.data.validation.collection import collect_rows
from align.data.validation.scan import RowRules
from align.errors import DataError
from align.records import Drop, Instruction, Message, Record
from align.rows import data_kinds
from align.testing.tiny import tiny_tokenizer

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "현재 날씨를 알려 줍니다.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "City"}, "format": {"enum": ["celsius"]}},
        },
    },
}
ARGUMENTS = {"location": "서울", "format": "celsius"}
CALL = {"id": "call_id", "type": "function", "function": {"name": "get_current_weather", "arguments": json.dumps(ARGUMENTS)}}
ASK = {"role": "user", "content": "서울 날씨 어때?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_id", "content": '{"temp": "21"}'}
ANSWER = {"role": "assistant", "content": "21도예요."}
FILE_ROW = {"messages": [ASK, CALLS, RESULT, ANSWER], "parallel_tool_calls": False, "tools": [TOOL]}
SHOWN = 'get_current_weather({"location": "서울", "format": "celsius"})'

# In the way of Qwen's.
TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
CONTENT = "<|im_start|>{{ m.role }}\n{{ m.content }}"
SHOWS_CALLS = (
    '{% for c in m.tool_calls %}<call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</call>{% endfor %}"
)
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def template(tools: str = TOOLS, calls: str = SHOWS_CALLS) -> str:
    return tools + "{% for m in messages %}" + CONTENT + calls + "<|im_end|>\n{% endfor %}" + PROMPT


def chat_format(text: str | dict[str, str] | None = None, **settings: Any) -> ChatFormat:
    tokenizer = tiny_tokenizer(vocabulary=300)
    tokenizer.chat_template = text or template()
    return ChatFormat(tokenizer, settings=ChatSettings(**settings))


def read(row: dict[str, Any], kind: str = "instructions") -> tuple[list[Record], list[Drop], list[str]]:
    source = Source((SourceFile(Path("x.jsonl"), "x.jsonl", {}),), "x.jsonl")
    with collect_rows(source, RowRules(data_kinds()[kind]), blocks=[Block(0, [(1, row)])]) as collection:
        return list(collection.records()), list(collection.drops()), list(collection.summary.unused)


def record(row: dict[str, Any], kind: str = "instructions") -> Any:
    records, drops, _ = read(row, kind)
    assert not drops
    return records[0]


def changed(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**message, **fields}


def with_arguments(arguments: Any) -> dict[str, Any]:
    return changed(CALLS, tool_calls=[{**CALL, "function": {"name": "f", "arguments": arguments}}])


def test_a_fine_tuning_file_of_openai_is_read_whole() -> None:
    row = record(FILE_ROW)
    assert [message.text for message in row.prompt] == [ASK["content"], SHOWN, RESULT["content"]]
    assert row.prompt[0].tools == [TOOL]
    assert row.prompt[1].tool_calls[0].function.arguments == ARGUMENTS
    assert (row.prompt[2].tool_call_id, row.completion) == ("call_id", "21도예요.")
    assert read(FILE_ROW)[2] == []  # every column and key is read


def test_arguments_as_an_object_tools_as_text_and_the_older_form_say_the_same() -> None:
    text = {**FILE_ROW, "tools": json.dumps([TOOL], ensure_ascii=False)}
    called = with_arguments(ARGUMENTS)
    called["tool_calls"][0]["function"]["name"] = "get_current_weather"
    assert record(text) == record({**text, "messages": [ASK, called, RESULT, ANSWER]}) == record(FILE_ROW)
    old = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    result = {"role": "function", "name": "get_current_weather", "content": RESULT["content"]}
    older = record({"messages": [ASK, old, result, ANSWER], "functions": [TOOL["function"]]})
    assert [message.text for message in older.prompt] == [message.text for message in record(FILE_ROW).prompt]
    assert older.prompt[0].tools == [TOOL]


def test_a_completion_may_be_a_call() -> None:
    row = record({"messages": [ASK, CALLS], "tools": [TOOL]})
    assert (row.completion, str(row.tool_calls[0])) == ("", SHOWN)
    assert data_kinds()["instructions"].completions_of(row) == {"completion": SHOWN}
    assert record({"prompt": [ASK], "completion": [CALLS], "tools": [TOOL]}).tool_calls == row.tool_calls


def test_results_of_parallel_calls_stand_in_the_order_of_the_calls() -> None:
    calls = changed(CALLS, tool_calls=[{**CALL, "id": name} for name in "ab"])
    results = [changed(RESULT, tool_call_id=name, content=name) for name in "ba"]
    assert [message.content for message in record({"messages": [ASK, calls, *results, ANSWER]}).prompt[2:]] == ["a", "b"]


@pytest.mark.parametrize("kind", ["prompts", "preferences"])
def test_prompts_and_the_prompts_of_pairs_may_have_tools(kind: str) -> None:
    pair = {"chosen": "21도예요.", "rejected": "몰라요."} if kind == "preferences" else {}
    row = record({"prompt": [ASK, CALLS, RESULT], "tools": [TOOL], **pair}, kind)
    assert row.prompt == record(FILE_ROW).prompt


def test_a_pair_of_conversations_may_have_tools_before_its_completions() -> None:
    chosen, rejected = ([ASK, CALLS, RESULT, {"role": "assistant", "content": text}] for text in ("a", "b"))
    assert record({"chosen": chosen, "rejected": rejected, "tools": [TOOL]}, "preferences").prompt == record(FILE_ROW).prompt


@pytest.mark.parametrize(
    ("row", "reason", "told"),
    [
        ({"messages": [ASK, RESULT, ANSWER]}, "bad_roles", "message 2 is the result of a tool call, but message 1 has none"),
        ({"messages": [ASK, CALLS, ASK, ANSWER]}, "bad_tools", "message 2 has 1 tool calls, and 0 results follow"),
        (
            {"messages": [ASK, CALLS, changed(RESULT, tool_call_id="x"), ANSWER]},
            "bad_tools",
            "ids ['call_id'], and their results",
        ),
        ({"messages": [ASK, CALLS, changed(RESULT, name="f"), ANSWER]}, "bad_tools", "is f's, not get_current_weather's"),
        ({"messages": [changed(ASK, tool_calls=[CALL]), ANSWER]}, "bad_tools", "only the assistant calls"),
        ({"messages": [ASK, with_arguments("{'a': 1}")]}, "bad_tools", "the arguments of f in message 2 must be JSON"),
        ({"messages": [ASK, with_arguments('{"a": 1, "a": 2}')]}, "bad_tools", "the key 'a' is there twice"),
        ({"messages": [ASK, with_arguments("[1]")]}, "bad_tools", "must be a JSON object, but are [1]"),
        ({"messages": [ASK, with_arguments({"a": None})]}, "bad_tools", "a is null; a table fills absent keys"),
        ({"messages": [ASK, changed(CALLS, tool_calls=[{"name": "f"}])]}, "bad_tools", "must be {id, type: function"),
        ({"messages": [ASK, changed(CALLS, content=None, tool_calls=[])]}, "wrong_type", "the content of message 2 must be text"),
        ({"messages": [ASK, ANSWER], "tools": "hammer"}, "bad_tools", "must be JSON, but is 'hammer'"),
        ({"messages": [ASK, ANSWER], "tools": [{"type": "web_search"}]}, "bad_tools", "number 1 must be {type: function"),
        ({"messages": [ASK, changed(ANSWER, weight=0)]}, "zero_weight", "nothing is trained on"),
        ({"messages": [ASK, changed(ANSWER, weight=0.5)]}, "wrong_type", "must be 0 or 1, but is 0.5"),
    ],
)
def test_what_does_not_fit_together_is_refused(row: dict[str, Any], reason: str, told: str) -> None:
    _, (drop,), _ = read(row)
    assert drop.drop_reason == reason
    assert told in drop.detail


def test_the_completions_of_pairs_are_texts() -> None:
    _, (drop,), _ = read({"prompt": "a", "chosen": [CALLS], "rejected": "b", "tools": [TOOL]}, "preferences")
    assert (drop.drop_reason, "only the completion of an instruction may be one" in drop.detail) == ("bad_tools", True)


def test_rows_without_tools_have_the_id_that_they_had() -> None:
    assert record({"messages": [ASK, ANSWER]}).id == record({"messages": [ASK, {**ANSWER, "tool_calls": None, "weight": 1}]}).id
    assert record({"prompt": "a", "completion": "b"}).id == "0910e5349cd4b814"


def encode(row: dict[str, Any], form: ChatFormat, **options: Any) -> Sequence[EncodedInstruction]:
    return encode_instructions(
        [record(row)], form, where=lambda line: "rows", max_tokens=2000, on_invalid="error", **options
    ).rows


def test_a_call_is_trained_on_as_the_template_shows_it_and_a_result_never() -> None:
    form = chat_format()
    (row,) = encode(FILE_ROW, form, every_turn=True)
    call = '<call>{"name": "get_current_weather", "arguments": {"location": "서울", "format": "celsius"}}</call><|im_end|>'
    trained = [form.decode_completion(ids) for ids in (row.earlier[0][1], row.completion_token_ids)]
    assert trained == [call, "21도예요.<|im_end|>"]
    prompts = [form.decode_completion(ids) for ids in (row.earlier[0][0], row.prompt_token_ids)]
    assert json.dumps(TOOL, ensure_ascii=False) in prompts[0]
    assert f"<|im_start|>tool\n{RESULT['content']}<|im_end|>" in prompts[1]
    (last,) = encode({"messages": [ASK, CALLS], "tools": [TOOL]}, form)
    assert form.decode_completion(last.completion_token_ids) == call


def test_no_loss_on_messages_of_weight_zero() -> None:
    second = [changed(ASK, content="부산은?"), {"role": "assistant", "content": "몰라요."}]
    talk = [ASK, changed(ANSWER, weight=0), *second, ASK, changed(ANSWER, weight=0)]
    form = chat_format()
    (row,) = encode({"messages": talk}, form, every_turn=True)
    # The conversation ends with the last message that counts, and the first answer is context.
    assert (row.turns, row.earlier, form.decode_completion(row.completion_token_ids)) == ((3,), (), "몰라요.<|im_end|>")
    again = data_kinds()["instructions"].record.model_validate_json(record({"messages": talk}).model_dump_json())
    assert [message.weight for message in again.prompt] == [1, 0, 1]


NINE = "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}{% endfor %}"
TEXT = "{% for c in m.tool_calls %}{{ '<call>' + c.function.name + c.function.arguments + '</call>' }}{% endfor %}"
ONE = "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}" + SHOWS_CALLS


@pytest.mark.parametrize("calls", [NINE + SHOWS_CALLS, TEXT])
def test_forms_that_a_template_wants(calls: str) -> None:
    text = chat_format(template(calls=calls)).prompt_text(record(FILE_ROW).prompt)
    assert "get_current_weather" in text.partition("<call>")[2]
    assert '"location": "서울"' in text


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        (template(tools=""), "tools_not_shown", "leaves out 'get_current_weather', '현재 날씨를 알려 줍니다.'"),
        (template(calls=""), "tools_not_shown", "leaves out"),
        (template().replace("{{ m.content }}", "{% if m.role != 'tool' %}{{ m.content }}{% endif %}"), "tools_not_shown", "temp"),
        (template(calls=ONE), "template_error", "one call at once"),
    ],
)
def test_a_template_that_leaves_something_out_refuses_the_row(text: str, reason: str, told: str) -> None:
    calls = changed(CALLS, tool_calls=[{**CALL, "id": name} for name in "ab"])
    results = [changed(RESULT, tool_call_id=name) for name in "ab"]
    row = record({"messages": [ASK, calls, *results, ANSWER], "tools": [TOOL]})
    with pytest.raises(TemplateProblem) as caught:
        chat_format(text).texts_of(row.prompt, {"completion": row.completion})
    assert caught.value.reason == reason
    assert told in str(caught.value)


def test_the_advice_fits_the_reason() -> None:
    rows = [record({"messages": [ASK, CALLS, RESULT, ANSWER], "tools": [TOOL]})]
    plain = record({"messages": [ASK, ANSWER]})
    for records, told in [
        (rows, "No row is left; set `chat.template` of the model, or leave the tools out."),
        ([*rows, plain], "Set `chat.template` of the model, or leave the tools out; or set on_invalid: drop to go on"),
    ]:
        with pytest.raises(DataError) as caught:
            encode_instructions(records, chat_format(template(tools="")), max_tokens=999, on_invalid="error", where=str)
        assert str(caught.value.hint).startswith(told)


def test_a_call_that_ends_with_a_token_at_which_the_model_goes_on_is_refused() -> None:
    ends = template().replace("<|im_end|>\n{% endfor %}", "{{ '</end>' if m.tool_calls else '<|im_end|>' }}\n{% endfor %}")
    row = record({"messages": [ASK, CALLS], "tools": [TOOL]})
    with pytest.raises(TemplateProblem, match="ends tool calls with .*</end>.* eos_token_id"):
        chat_format(ends).completion_text(row.prompt, row.answer)


def test_a_tokenizer_with_a_template_of_its_own_for_tools() -> None:
    form = chat_format({"default": template(tools="", calls=""), "tool_use": template()})
    assert "get_current_weather" in form.prompt_text(record(FILE_ROW).prompt)
    assert form.prompt_text([Message(role="user", content="a")]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_plain_text_shows_no_tools() -> None:
    tokenizer = tiny_tokenizer(vocabulary=300)
    tokenizer.chat_template = None
    with pytest.raises(TemplateProblem, match="plain text shows no tools"):
        PlainFormat(tokenizer).prompt_text(record(FILE_ROW).prompt)


def test_there_and_back_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [FILE_ROW, {"messages": [ASK, CALLS], "tools": [TOOL]}, {"messages": [ASK, changed(ANSWER, weight=0), ASK, ANSWER]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def convert(source: str, to: str) -> int:
        return main(["data", "convert", str(tmp_path / source), "--kind", "instructions", "--to", str(tmp_path / to)])

    assert convert("a.jsonl", "b.jsonl") == convert("b.jsonl", "c.jsonl") == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    written = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written[0]["tools"] == [TOOL]
    assert record(written[0]) == record({**FILE_ROW, "id": written[0]["id"]})
    assert isinstance(record(written[1]), Instruction)
    assert convert("a.jsonl", "d.parquet") == 3
    assert "Parquet has no column for tools" in capsys.readouterr().err
