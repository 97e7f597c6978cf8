"""Does every answer arrive complete, honest and fit for storage, whichever of the two providers gave it?

Real SDKs, real HTTP on loopback.
"""

import json

import pytest
from pydantic import JsonValue

from durable_agents.domain.canonical import escape_text
from durable_agents.domain.failures import Billed, FailureKind
from durable_agents.domain.messages import Message, TextBlock
from durable_agents.domain.model_calls import Provider, StopReason
from durable_agents.domain.prices import Usage
from tests.activities.provider_stub import (
    ID_HEADERS,
    REASONING,
    THINKING,
    Object,
    anthropic_body,
    ask,
    call_body,
    fail,
    function_call,
    openai_body,
    openai_text,
    raw,
    reply,
    text_body,
)

PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")
both = pytest.mark.parametrize("provider", PROVIDERS)


@both
async def test_an_answer_carries_its_text_its_usage_and_where_to_ask_about_it(provider: Provider) -> None:
    """The request id is what a provider's support asks for; the model is what was really used, not what was asked for."""
    body = text_body(provider, "Refunded.")
    answer, _ = await ask(provider, reply(200, body, {ID_HEADERS[provider]: "req_7"}))
    assert answer.message == Message(role="assistant", blocks=(TextBlock(text="Refunded."),))
    assert (answer.stop, answer.request_id, answer.model) == (StopReason.DONE, "req_7", body["model"])
    assert answer.usage == Usage(input_tokens=15, cached_input_tokens=3, cache_write_tokens=2, output_tokens=5)


@both
async def test_parallel_tool_calls_arrive_in_order_with_their_arguments(provider: Provider) -> None:
    """The order is the order of execution, and the arguments are what consent is bound to."""
    calls: tuple[tuple[str, str, JsonValue], ...] = (
        ("call_1", "issue_refund", {"order": "A"}),
        ("call_2", "look_up", {"deep": [{"x": 1.5}, None]}),
    )
    answer, _ = await ask(provider, reply(200, call_body(provider, *calls)))
    assert answer.stop is StopReason.TOOL_CALLS
    assert [(c.id, c.tool, c.arguments) for c in answer.message.tool_calls()] == list(calls)


@both
async def test_a_tool_call_without_arguments_is_an_object(provider: Provider) -> None:
    """A tool that takes nothing is called with an empty object."""
    answer, _ = await ask(provider, reply(200, call_body(provider, ("c", "ping", {}))))
    assert answer.message.tool_calls()[0].arguments == {}


@pytest.mark.parametrize(
    ("provider", "given"),
    [
        *(("openai", g) for g in ('{"order": "A', "[1]", "", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 5000)),
        *(("anthropic", g) for g in (None, "x", [1])),
        ("anthropic", {"a": json.loads("[" * 300 + "]" * 300)}),
    ],
)
async def test_arguments_that_are_no_object_are_told_not_guessed(provider: Provider, given: JsonValue) -> None:
    """A repaired or half-read argument is an action nobody asked for; the model is told and asks again."""
    answer, _ = await ask(provider, reply(200, call_body(provider, ("c", "issue_refund", given))))
    (call,) = answer.message.tool_calls()
    assert call.arguments is None
    assert call.problem


@pytest.mark.parametrize(
    ("provider", "body", "stop"),
    [
        ("anthropic", anthropic_body({"type": "text", "text": "a"}, stop="stop_sequence"), StopReason.DONE),
        ("anthropic", anthropic_body({"type": "text", "text": "a"}, stop="pause_turn"), StopReason.PAUSED),
        ("anthropic", anthropic_body({"type": "text", "text": "a"}, stop="refusal"), StopReason.REFUSED),
        ("anthropic", anthropic_body({"type": "text", "text": "a"}, stop="max_tokens"), StopReason.MAX_TOKENS),
        (
            "anthropic",
            anthropic_body({"type": "text", "text": "a"}, stop="model_context_window_exceeded"),
            StopReason.CONTEXT_FULL,
        ),
        (
            "openai",
            openai_body(openai_text("a"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            StopReason.MAX_TOKENS,
        ),
        (
            "openai",
            openai_body(openai_text("a"), status="incomplete", incomplete_details={"reason": "content_filter"}),
            StopReason.REFUSED,
        ),
        (
            "openai",
            openai_body({"type": "message", "content": [{"type": "refusal", "refusal": "a"}]}),
            StopReason.REFUSED,
        ),
    ],
)
async def test_each_stop_reason_has_one_meaning(provider: Provider, body: Object, stop: StopReason) -> None:
    """What a run does next hangs on why the model stopped."""
    answer, _ = await ask(provider, reply(200, body))
    assert (answer.stop, answer.message.text()) == (stop, "a")


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("anthropic", anthropic_body(stop=None)),
        ("anthropic", anthropic_body(stop="brand_new")),
        ("anthropic", anthropic_body(stop=["end_turn"])),
        ("anthropic", anthropic_body({"type": "text", "text": "calling"}, stop="tool_use")),
        ("anthropic", anthropic_body(content="text")),
        ("anthropic", anthropic_body({"type": "text", "text": None})),
        ("anthropic", anthropic_body({"type": "tool_use", "name": "x", "input": {}}, stop="tool_use")),
        ("openai", openai_body(status=None)),
        ("openai", openai_body(status="in_progress")),
        ("openai", openai_body(status="queued")),
        ("openai", openai_body(status="cancelled")),
        ("openai", openai_body(status="failed")),
        ("openai", openai_body(status="incomplete")),
        ("openai", openai_body(status="incomplete", incomplete_details={"reason": "steered"})),
        ("openai", openai_body(output=None)),
        ("openai", openai_body({"type": "function_call", "name": "x", "arguments": "{}"})),
        ("openai", openai_body(function_call("same", "x", {}), function_call("same", "x", {}))),
    ],
)
async def test_an_answer_without_a_known_end_is_a_failure_that_may_be_billed(provider: Provider, body: Object) -> None:
    """A half-finished answer accepted as whole is how peers execute what the model never finished saying."""
    failure = await fail(provider, reply(200, body, {ID_HEADERS[provider]: "req_8"}))
    assert (failure.failure.kind, failure.billed) == (FailureKind.BAD_RESPONSE, Billed.UNKNOWN)
    assert f"{provider} answered 200 (request req_8): " in failure.failure.message


@pytest.mark.parametrize("stop", ["max_tokens", "model_context_window_exceeded", "refusal"])
async def test_a_cut_answer_of_anthropic_keeps_its_text_and_no_call(stop: str) -> None:
    """A cut tool call can be repaired into a plausible one with half its arguments; it must never run."""
    body = anthropic_body(
        THINKING,
        {"type": "text", "text": "I will refund"},
        {"type": "tool_use", "id": "t1", "name": "issue_refund", "input": {"order": "A-10"}},
        stop=stop,
    )
    answer, _ = await ask("anthropic", reply(200, body))
    assert answer.message.blocks == (TextBlock(text="I will refund"),)
    assert answer.usage


async def test_a_cut_answer_of_openai_keeps_its_text_and_no_call() -> None:
    """As with Anthropic; and a reasoning item whose call is gone would be refused on the next call."""
    cut = {**function_call("c1", "issue_refund", '{"order": "A-10"}'), "status": "incomplete"}
    details: Object = {"reason": "max_output_tokens"}
    body = openai_body(REASONING, openai_text("I will refund"), cut, status="incomplete", incomplete_details=details)
    answer, _ = await ask("openai", reply(200, body))
    assert answer.message.blocks == (TextBlock(text="I will refund"),)


async def test_an_incomplete_call_of_a_complete_answer_is_not_run() -> None:
    """The item's own status outranks the answer's."""
    call = {**function_call("c1", "issue_refund", '{"order": "A-10"}'), "status": "incomplete"}
    answer, _ = await ask("openai", reply(200, openai_body(call)))
    assert answer.message.tool_calls()[0].arguments is None


@both
@pytest.mark.parametrize("count", ["NaN", "Infinity", '"12"', "true", "1" + "0" * 30, "-1", "1.5", "null", "[]", "MISSING"])
async def test_a_usage_that_cannot_be_is_no_usage(provider: Provider, count: str) -> None:
    """The answer is good, the bill is not: the caller then charges the maximum instead of a NaN that passes every check."""
    body = json.dumps(text_body(provider, "Hi.")).replace('"output_tokens": 5', f'"output_tokens": {count}')
    body = body.replace('"output_tokens": MISSING, ', "").replace('"output_tokens": MISSING', '"unknown": 1')
    answer, _ = await ask(provider, raw(200, body.encode(), "application/json"))
    assert answer.usage is None
    assert answer.message.text() == "Hi."


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("anthropic", None),
        ("anthropic", [1]),
        ("anthropic", {"input_tokens": True, "output_tokens": 1}),
        ("anthropic", {"input_tokens": 10**9, "cache_read_input_tokens": 1, "output_tokens": 1}),
        ("anthropic", {"input_tokens": 50, "cache_read_input_tokens": -1, "output_tokens": 1}),
        ("openai", None),
        ("openai", {"input_tokens": 5, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 6}}),
        ("openai", {"input_tokens": 5, "output_tokens": 1, "input_tokens_details": {"cached_tokens": True}}),
    ],
)
async def test_a_usage_whose_parts_contradict_is_no_usage(provider: Provider, usage: JsonValue) -> None:
    """More cached than sent would make the uncached part negative and the call cheaper than free."""
    answer, _ = await ask(provider, reply(200, text_body(provider, "Hi.", usage=usage)))
    assert answer.usage is None


@pytest.mark.parametrize(("provider", "tokens"), [("anthropic", 12), ("openai", 12)])
async def test_a_usage_without_cache_counts_is_complete(provider: Provider, tokens: int) -> None:
    """Gateways and older models leave them out; nothing was cached then."""
    answer, _ = await ask(provider, reply(200, text_body(provider, "Hi.", usage={"input_tokens": tokens, "output_tokens": 3})))
    assert answer.usage == Usage(input_tokens=12, output_tokens=3)


async def test_reasoning_that_cannot_be_sent_back_is_not_kept() -> None:
    """A bare reference to an item that was never stored ends the next call with 404."""
    item: Object = {"type": "reasoning", "id": "rs_1", "summary": []}
    answer, _ = await ask("openai", reply(200, openai_body(item, openai_text("Hi."))))
    assert answer.message.blocks == (TextBlock(text="Hi."),)


ODD = "a\x00b\x1ac\ud800d"
"""What PostgreSQL cannot store: U+0000, and half a character. U+001A is our own escape."""


@both
async def test_unstorable_text_is_escaped_on_its_way_in(provider: Provider) -> None:
    """One U+0000 in an answer would otherwise fail every later write of the run."""
    answer, _ = await ask(provider, reply(200, text_body(provider, ODD)))
    assert answer.message.text() == escape_text(ODD) == "a\x1a0000b\x1a001ac\x1ad800d"
    answer, _ = await ask(provider, reply(200, call_body(provider, ("c1", "t", {ODD: [ODD]}))))
    assert answer.message.tool_calls()[0].arguments == {escape_text(ODD): [escape_text(ODD)]}
