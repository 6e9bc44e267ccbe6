"""Tools in conversations: functions, calls and results as OpenAI's fine-tuning files write them, made into plain dicts.

The older form (`functions`, `function_call`, the role `function`) says the same and is converted. Arguments become objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from align.rows.problem import FieldProblem, encoding_problem, shown
from align.strict import no_constant, unique_keys

TOOL_KEYS = {
    "assistant": frozenset({"tool_calls", "function_call"}),
    "tool": frozenset({"tool_call_id", "name"}),
    "function": frozenset({"name"}),
}
"""Keys of a message that are read, by role."""
REASON = "bad_tools"
_CALL_KEYS = ("tool_calls", "function_call")


def tools_of(field: str, value: Any) -> list[dict[str, Any]]:
    """The functions that a row offers, each as {type, function}; bare functions are wrapped. The list may be JSON text.

    Raises:
        FieldProblem: bad_tools, or lone_surrogate.
    """
    if isinstance(value, str):
        value = _parsed(field, "it", value)
    else:
        _refuse_null(field, value)
    if not isinstance(value, list):
        raise FieldProblem(field, REASON, f"must be a list of functions, but is {shown(value)}")
    tools = [_tool(field, number, item) for number, item in enumerate(value, start=1)]
    _refuse_surrogates(field, tools)
    return tools


def _tool(field: str, number: int, item: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": item} if isinstance(item, dict) and "name" in item else item
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        expected = "{type: function, function: {name, description, parameters}}"
        raise FieldProblem(field, REASON, f"number {number} must be {expected}, but is {shown(item)}")
    function = tool["function"]
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise FieldProblem(field, REASON, f"number {number} has no name: {shown(function)}")
    if not isinstance(function.get("parameters", {}), dict):
        parameters = shown(function["parameters"])
        raise FieldProblem(field, REASON, f"the parameters of {function['name']} must be a JSON schema, but are {parameters}")
    return tool


def message_fields(field: str, number: int, item: dict[str, Any]) -> dict[str, Any]:
    """What a message has of tools, besides role and content.

    Raises:
        FieldProblem: bad_tools, or lone_surrogate.
    """
    role, found = item.get("role"), dict[str, Any]()
    if any(item.get(key) for key in _CALL_KEYS):
        if role != "assistant":
            raise FieldProblem(field, REASON, f"message {number} has tool calls, but is the {role}'s; only the assistant calls")
        found["tool_calls"] = list(_calls(field, number, item))
    if role in ("tool", "function"):
        for key in ("tool_call_id", "name"):
            value = item.get(key)
            if not isinstance(value, (str, type(None))):
                raise FieldProblem(field, REASON, f"the {key} of message {number} must be text, but is {shown(value)}")
            if value:
                found[key] = value
    if item.get("tools"):
        if number > 1:
            raise FieldProblem(field, REASON, f"message {number} has tools; only the row or its first message may have them")
        found["tools"] = tools_of(field, item["tools"])
    _refuse_surrogates(field, found)
    return found


def _calls(field: str, number: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if item.get("tool_calls") and item.get("function_call"):
        raise FieldProblem(field, REASON, f"message {number} has both tool_calls and function_call; leave one out")
    old = item.get("function_call")
    calls = [{"function": old}] if old else item["tool_calls"]
    if not isinstance(calls, list):
        raise FieldProblem(field, REASON, f"the tool_calls of message {number} must be a list, but are {shown(calls)}")
    for call in calls:
        function: Any = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name or call.get("type") not in (None, "function"):
            expected = "{id, type: function, function: {name, arguments}}"
            raise FieldProblem(field, REASON, f"a tool call of message {number} must be {expected}, but is {shown(call)}")
        what = f"the arguments of {name} in message {number}"
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _parsed(field, what, arguments)
        else:
            _refuse_null(field, arguments)
        if not isinstance(arguments, dict):
            raise FieldProblem(field, REASON, f"{what} must be a JSON object, but are {shown(arguments)}")
        own_id = call.get("id")
        if not isinstance(own_id, (str, type(None))):
            raise FieldProblem(field, REASON, f"the id of a tool call of message {number} must be text, but is {shown(own_id)}")
        yield {
            **({"id": own_id} if own_id else {}),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }


def match_results(field: str, messages: list[dict[str, Any]]) -> None:
    """Check that one result follows each call, and put the results of parallel calls in the order of the calls.

    Calls in the last message have no results yet.

    Raises:
        FieldProblem: bad_tools, or bad_roles for a result without a call.
    """
    if messages[0]["role"] == "tool":
        raise FieldProblem(field, "bad_roles", "message 1 is the result of a tool call, but no call stands before it")
    for place, message in enumerate(messages[:-1]):
        calls = message.get("tool_calls", [])
        start = place + 1
        results = list(takewhile(lambda later: later["role"] == "tool", messages[start:]))
        if message["role"] == "tool":
            continue
        if results and not calls:
            raise FieldProblem(
                field, "bad_roles", f"message {start + 1} is the result of a tool call, but message {start} has none"
            )
        if len(results) != len(calls):
            many = f"message {start} has {len(calls)} tool calls, and {len(results)} results follow; expected one for each call"
            raise FieldProblem(field, REASON, many)
        ids = [call.get("id") for call in calls]
        if any("tool_call_id" in result for result in results):
            # Their order means nothing in OpenAI's format, but templates without ids tell results apart by it.
            given = [result.get("tool_call_id") for result in results]
            if len(set(ids)) < len(ids) or set(given) != set(ids):
                differ = f"the calls of message {start} have the ids {shown(ids)}, and their results {shown(given)}"
                raise FieldProblem(field, REASON, f"{differ}; each result has the id of its call as tool_call_id")
            results.sort(key=lambda result: ids.index(result["tool_call_id"]))
            messages[start : start + len(results)] = results
        for call, result in zip(calls, results, strict=True):
            called = call["function"]["name"]
            if result.get("name", called) != called:
                raise FieldProblem(field, REASON, f"a result of message {start}'s calls is {result['name']}'s, not {called}'s")


def _parsed(field: str, what: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise FieldProblem(field, REASON, f"{what} must be JSON, but is {shown(text)} ({error})") from None


def _refuse_null(field: str, value: Any) -> None:
    """Refuse an object with a null: a column of a table fills absent keys with null, and a template would show it."""
    try:
        path = _null_in(value)
    except RecursionError:
        raise FieldProblem(field, REASON, "tools are nested too deeply") from None
    if path:
        advice = "a table fills absent keys with null. Leave the key out, or write the value as JSON text"
        raise FieldProblem(field, REASON, f"{'.'.join(path)} is null; {advice}")


def _null_in(value: Any) -> list[str]:
    """The keys that lead to a null inside objects; empty if there is none."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value, start=1)
    else:
        return []
    for key, inner in items:
        if inner is None and isinstance(value, dict):
            return [str(key)]
        if path := _null_in(inner):
            return [str(key), *path]
    return []


def _refuse_surrogates(field: str, value: Any) -> None:
    if problem := encoding_problem(field, json.dumps(value, ensure_ascii=False)):
        raise problem
