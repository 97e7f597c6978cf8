"""Does a conversation reach either provider whole and valid, also in the middle of its tools, also after a change of provider?

Real SDKs, real HTTP on loopback.
"""

import json
from datetime import timedelta

import pytest
from pydantic import JsonValue

from activities.providers.interface import ProviderAnswer
from durable_agents.domain.canonical import escape_text
from durable_agents.domain.effects import Effect
from durable_agents.domain.messages import Message, OpaqueBlock, TextBlock, ToolCallBlock, ToolResultBlock
from durable_agents.domain.model_calls import Provider
from durable_agents.domain.tools import ToolSpec
from tests.activities.provider_stub import (
    MODELS,
    REASONING,
    REDACTED,
    THINKING,
    USER,
    anthropic_body,
    ask,
    call_body,
    reply,
    request,
    text_body,
)

PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")
both = pytest.mark.parametrize("provider", PROVIDERS)
REFUND = ToolSpec(
    name="issue_refund",
    description="Refund an order.",
    parameters={"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]},
    effect=Effect.IDEMPOTENT,
    risk="write",
    resource="order:{order}",
    timeout=timedelta(seconds=20),
)


def conversation(answer: ProviderAnswer, **results: str) -> tuple[Message, ...]:
    """What is sent after the tools of an answer have run."""
    calls = answer.message.tool_calls()
    return (USER, answer.message, *(_result(call, results.get(call.id, "done")) for call in calls))


def _result(call: ToolCallBlock, text: str) -> Message:
    return Message(role="tool", blocks=(ToolResultBlock(call_id=call.id, tool=call.tool, text=text),))


async def test_anthropic_is_asked_in_its_dialect() -> None:
    """max_tokens is always sent: without it there is no maximum to hold money against."""
    asked = request("anthropic", system="Be brief.", tools=(REFUND,))
    _, body = await ask("anthropic", reply(200, text_body("anthropic", "Hi.")), asked)
    assert body == {
        "model": MODELS["anthropic"],
        "max_tokens": 256,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Refund order A-1001."}]}],
        "tools": [{"name": "issue_refund", "description": "Refund an order.", "input_schema": REFUND.parameters}],
        "cache_control": {"type": "ephemeral"},
    }


async def test_openai_is_asked_in_its_dialect_and_stores_nothing() -> None:
    """`store` is on by default; a customer's conversation must not stay behind at the provider."""
    asked = request("openai", system="Be brief.", tools=(REFUND,))
    _, body = await ask("openai", reply(200, text_body("openai", "Hi.")), asked)
    tool = {"type": "function", "name": "issue_refund", "description": "Refund an order.", "strict": False}
    assert body == {
        "model": MODELS["openai"],
        "max_output_tokens": 256,
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Refund order A-1001."}]}],
        "tools": [{**tool, "parameters": REFUND.parameters}],
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }


@both
async def test_what_is_empty_is_left_out_of_the_request(provider: Provider) -> None:
    """Both providers refuse some empty fields; an agent without tools or prompt must still run."""
    _, body = await ask(provider, reply(200, text_body(provider, "Hi.")), request(provider))
    assert not {"system", "instructions", "tools", "cache_control"} & set(body)


async def test_a_model_that_cannot_reason_is_not_asked_for_reasoning() -> None:
    """The older families refuse the whole request otherwise."""
    asked = request("openai")
    old = type(asked)("gpt-4o", 256, "", asked.messages, (), asked.timeout)
    _, body = await ask("openai", reply(200, text_body("openai", "Hi.")), old)
    assert "include" not in body


async def test_thinking_goes_back_to_anthropic_unchanged_and_in_place() -> None:
    """Anthropic refuses a tool result whose turn lost its thinking, or had a byte of it altered."""
    body = anthropic_body(
        THINKING,
        REDACTED,
        {"type": "tool_use", "id": "toolu_1", "name": "issue_refund", "input": {"order": "A"}},
        stop="tool_use",
    )
    answer, _ = await ask("anthropic", reply(200, body))
    _, sent = await ask(
        "anthropic", reply(200, text_body("anthropic", "Done.")), request("anthropic", *conversation(answer, toolu_1="ok"))
    )
    assert sent["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Refund order A-1001."}]},
        {"role": "assistant", "content": body["content"]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok", "is_error": False}],
        },
    ]


async def test_reasoning_goes_back_to_openai_unchanged_and_in_place() -> None:
    """With nothing stored at OpenAI, the encrypted item is the model's only memory of why it called the tool."""
    answer, _ = await ask("openai", reply(200, call_body("openai", ("call_1", "issue_refund", {"order": "A"}), before=REASONING)))
    _, sent = await ask("openai", reply(200, text_body("openai", "Done.")), request("openai", *conversation(answer, call_1="ok")))
    assert sent["input"] == [
        {"role": "user", "content": [{"type": "input_text", "text": "Refund order A-1001."}]},
        REASONING,
        {"type": "function_call", "call_id": "call_1", "name": "issue_refund", "arguments": '{"order":"A"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
    ]


async def test_a_conversation_goes_on_from_openai_to_anthropic() -> None:
    """The next model of a chain takes over in mid-conversation; what it cannot read or accept must not stop it."""
    weird = "call:1/ü"
    answer, _ = await ask("openai", reply(200, call_body("openai", (weird, "shop.refund", {"order": "A"}), before=REASONING)))
    _, sent = await ask("anthropic", reply(200, text_body("anthropic", "Done.")), request("anthropic", *conversation(answer)))
    assistant, user = sent["messages"][1:]
    (use,) = assistant["content"]
    (result,) = user["content"]
    assert use["name"] == "shop_refund"
    assert use["id"] == result["tool_use_id"]
    assert use["id"].isascii()
    assert use["id"].replace("_", "").isalnum()


async def test_a_conversation_goes_on_from_anthropic_to_openai() -> None:
    """As above, the other way: thinking stays behind, the calls and their results arrive."""
    answer, _ = await ask(
        "anthropic", reply(200, call_body("anthropic", ("toolu_01" + "x" * 80, "issue_refund", {"order": "A"}), before=THINKING))
    )
    _, sent = await ask("openai", reply(200, text_body("openai", "Done.")), request("openai", *conversation(answer)))
    _, call, output = sent["input"]
    assert call["type"] == "function_call"
    assert call["call_id"] == output["call_id"]
    assert len(call["call_id"]) <= 64


async def test_all_results_of_a_turn_stand_in_one_message_before_any_text() -> None:
    """Anthropic refuses results that are spread over messages, or preceded by text."""
    calls: tuple[tuple[str, str, JsonValue], ...] = (("t1", "a", {}), ("t2", "b", {}))
    answer, _ = await ask("anthropic", reply(200, call_body("anthropic", *calls)))
    hurry = Message(role="user", blocks=(TextBlock(text="Hurry."), TextBlock(text=" ")))
    foreign = Message(role="assistant", blocks=(OpaqueBlock(provider="openai", body={}),))
    messages = (USER, answer.message, foreign, hurry, *conversation(answer)[2:])
    _, sent = await ask("anthropic", reply(200, text_body("anthropic", "Ok.")), request("anthropic", *messages))
    roles = [(m["role"], [block["type"] for block in m["content"]]) for m in sent["messages"]]
    assert roles == [("user", ["text"]), ("assistant", ["tool_use"] * 2), ("user", ["tool_result", "tool_result", "text"])]


@both
async def test_a_failed_tool_is_shown_as_failed(provider: Provider) -> None:
    """A model that takes an error for a result tells the customer that the refund is on its way."""
    call = ToolCallBlock(id="c1", tool="issue_refund", arguments=None, problem="no JSON")
    failed = ToolResultBlock(call_id="c1", tool="issue_refund", text="not an object", is_error=True)
    messages = (USER, Message(role="assistant", blocks=(call,)), Message(role="tool", blocks=(failed,)))
    _, sent = await ask(provider, reply(200, text_body(provider, "Ok.")), request(provider, *messages))
    said = json.dumps(sent)
    assert ('"is_error": true' if provider == "anthropic" else "Error: not an object") in said


ODD = "a\x00b\x1ac\ud800d"
"""What PostgreSQL cannot store: U+0000, and half a character. U+001A is our own escape."""


@both
async def test_escaped_text_is_itself_again_on_the_wire(provider: Provider) -> None:
    """The model must see what the user wrote, not our escapes; only what UTF-8 cannot carry is replaced."""
    text = escape_text(ODD)
    call = ToolCallBlock(id="c1", tool="t", arguments={"k": text})
    result = ToolResultBlock(call_id="c1", tool="t", text=text)
    messages = (
        Message(role="user", blocks=(TextBlock(text=text),)),
        Message(role="assistant", blocks=(TextBlock(text=text), call)),
        Message(role="tool", blocks=(result,)),
    )
    _, sent = await ask(provider, reply(200, text_body(provider, "Ok.")), request(provider, *messages, system=text))
    seen = [found for found in _strings(sent) if "a\x00b" in found]
    assert seen
    assert len(seen) == 4 + (provider == "anthropic")
    assert set(seen) == {"a\x00b\x1ac\ufffdd"}
    assert provider == "anthropic" or any("a\\u0000b" in found for found in _strings(sent)), "arguments are JSON in JSON"


def _strings(value: JsonValue) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return [found for part in parts for found in _strings(part)]
