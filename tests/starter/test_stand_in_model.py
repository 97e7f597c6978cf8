"""Does the stand-in speak the providers' wire, say what its script says, and keep the true bill?"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import Message, MessageParam, ToolParam, ToolResultBlockParam
from openai.types.responses import FunctionToolParam, Response, ResponseInputParam
from pydantic import JsonValue

from starter.demo.loopback import serve
from starter.demo.model_script import Conversation, Loop, Repeat, Turn, next_reply
from starter.demo.stand_in_model import create_app

DEADLINE = 5
"""Seconds after which a wait has failed."""
ASKED = 'Please handle this: {"order": "A-1001", "amount": 250, "reason": "late"}'
LOOKUP = {"id": "A-1001", "total": "329.00", "status": "delivered"}
TOOLS = {"lookup_order": ["order"], "issue_refund": ["order", "amount"], "tell_customer": ["order", "text"]}
Fields = dict[str, JsonValue]
Results = Callable[[str, object], Fields]


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    async with serve(create_app()) as url:
        yield url


@pytest.fixture
async def model(base_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=base_url, timeout=DEADLINE) as client:
        yield client


@pytest.fixture
async def claude(base_url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=base_url, max_retries=0, timeout=DEADLINE) as client:
        yield client


@pytest.fixture
async def gpt(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{base_url}/v1", max_retries=0, timeout=DEADLINE) as client:
        yield client


async def ask_claude(client: anthropic.AsyncAnthropic, said: str = "Hello", max_tokens: int = 500) -> Message:
    messages: list[MessageParam] = [{"role": "user", "content": said}]
    return await client.messages.create(model="claude-x", max_tokens=max_tokens, messages=messages)


def text_of(reply: Message) -> str:
    """The text a one-block answer consists of."""
    [block] = reply.content
    assert block.type == "text"
    return block.text


async def ask_gpt(client: openai.AsyncOpenAI, said: str = "Hello") -> Response:
    return await client.responses.create(model="gpt-x", max_output_tokens=500, input=said)


async def script(model: httpx2.AsyncClient, value: JsonValue) -> None:
    answer = await model.post("/script", json=value)
    assert answer.status_code == 200, answer.text


async def bill(model: httpx2.AsyncClient) -> list[dict[str, JsonValue]]:
    lines: list[dict[str, JsonValue]] = (await model.get("/bill")).json()["requests"]
    return lines


def results(name: str, arguments: object) -> Fields:
    """What the demo's tools answer when all goes well."""
    assert isinstance(arguments, dict)
    return {"lookup_order": LOOKUP, "issue_refund": {"id": "R-1", **arguments}, "tell_customer": {"id": "M-1"}}[name]


def refuse_refund(name: str, arguments: object) -> Fields:
    """The same tools when policy says no to the refund."""
    return {"error": "denied by policy"} if name == "issue_refund" else results(name, arguments)


def schema(fields: list[str]) -> dict[str, object]:
    return {"type": "object", "properties": {field: {"type": "string"} for field in fields}}


async def run_claude(client: anthropic.AsyncAnthropic, answers: Results) -> tuple[list[tuple[str, object]], Fields]:
    """Talk the clerk through to the end; returns the calls it made and its final JSON."""
    tools: list[ToolParam] = [{"name": name, "input_schema": schema(fields)} for name, fields in TOOLS.items()]
    messages: list[MessageParam] = [{"role": "user", "content": ASKED}]
    calls: list[tuple[str, object]] = []
    while True:
        reply = await client.messages.create(model="claude-x", max_tokens=500, messages=messages, tools=tools)
        Message.model_validate(reply.model_dump())
        used = [block for block in reply.content if block.type == "tool_use"]
        if reply.stop_reason == "end_turn":
            return calls, json.loads(text_of(reply))
        assert reply.stop_reason == "tool_use"
        calls += [(block.name, block.input) for block in used]
        told: list[ToolResultBlockParam] = [
            {"type": "tool_result", "tool_use_id": block.id, "content": json.dumps(answers(block.name, block.input))}
            for block in used
        ]
        messages += [reply.to_param(), {"role": "user", "content": told}]


async def run_gpt(client: openai.AsyncOpenAI, answers: Results) -> tuple[list[tuple[str, object]], Fields]:
    """The same over the other wire."""
    tools: list[FunctionToolParam] = [
        {"type": "function", "name": name, "parameters": schema(fields), "strict": False} for name, fields in TOOLS.items()
    ]
    items: ResponseInputParam = [{"role": "user", "content": ASKED}]
    calls: list[tuple[str, object]] = []
    while True:
        reply = await client.responses.create(model="gpt-x", max_output_tokens=500, input=items, tools=tools)
        Response.model_validate(reply.model_dump())
        assert reply.status == "completed"
        used = [item for item in reply.output if item.type == "function_call"]
        if not used:
            return calls, json.loads(reply.output_text)
        items += [item.model_dump(exclude_none=True) for item in reply.output]  # type: ignore[misc]  # as its guide does
        for item in used:
            calls.append((item.name, json.loads(item.arguments)))
            output = json.dumps(answers(item.name, json.loads(item.arguments)))
            items.append({"type": "function_call_output", "call_id": item.call_id, "output": output})


GOOD_CALLS = [
    ("lookup_order", {"order": "A-1001"}),
    ("issue_refund", {"order": "A-1001", "amount": "250.00"}),
    ("tell_customer", {"order": "A-1001", "text": "We have refunded 250.00 for your order A-1001."}),
]


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
async def test_the_clerk_refunds_and_reports(claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI, wire: str) -> None:
    """The demo's story, told the same to both SDKs."""
    calls, report = await (run_claude(claude, results) if wire == "anthropic" else run_gpt(gpt, results))
    assert calls == GOOD_CALLS
    assert {**report, "summary": ""} == {"order": "A-1001", "refunded": "250.00", "customer_told": True, "summary": ""}


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
async def test_the_clerk_stops_at_a_denial_and_names_it(
    claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI, wire: str
) -> None:
    """A denied approval must end in a report that says so, never in a message to the customer."""
    calls, report = await (run_claude(claude, refuse_refund) if wire == "anthropic" else run_gpt(gpt, refuse_refund))
    assert calls == GOOD_CALLS[:2]
    assert (report["refunded"], report["customer_told"]) == ("0.00", False)
    assert "denied by policy" in str(report["summary"])


async def test_the_bill_is_what_anthropics_sdk_saw(model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    """The bill is the yardstick for the ledger, so it must agree with what was reported, cached tokens included."""
    await script(model, [{"text": "Hi", "usage": {"input_tokens": 100, "cached_tokens": 60, "cache_write_tokens": 10}}])
    reply = await ask_claude(claude)
    usage = reply.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (30, 60, 10)
    assert (reply.model, reply.stop_reason, reply.content[0].type) == ("claude-x", "end_turn", "text")
    [line] = await bill(model)
    assert line["usage"] == {"input_tokens": 100, "cached_tokens": 60, "cache_write_tokens": 10, "output_tokens": 1}
    assert (line["wire"], line["model"], line["max_tokens"], line["status"]) == ("anthropic", "claude-x", 500, 200)
    assert str(reply._request_id).startswith("req_")


async def test_the_bill_is_what_openais_sdk_saw(model: httpx2.AsyncClient, gpt: openai.AsyncOpenAI) -> None:
    """OpenAI counts cached tokens inside the input; the neutral bill does too."""
    await script(model, [{"text": "Hi", "usage": {"input_tokens": 100, "cached_tokens": 60}}])
    reply = await ask_gpt(gpt)
    assert reply.usage
    assert (reply.usage.input_tokens, reply.usage.input_tokens_details.cached_tokens, reply.usage.total_tokens) == (100, 60, 101)
    [line] = await bill(model)
    assert line["usage"] == {"input_tokens": 100, "cached_tokens": 60, "cache_write_tokens": 0, "output_tokens": 1}
    assert str(reply._request_id).startswith("req_")


async def test_tokens_are_counted_by_bytes_and_totalled(model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    """Deterministic counts make costs in the demo and in tests the same everywhere."""
    await script(model, {"steps": [{"text": "größer"}, {"text": "ok"}]})
    reply = await ask_claude(claude, "Grüße")
    sent = '[{"role":"user","content":"Grüße"}]'
    assert reply.usage.input_tokens == -(-len(sent.encode()) // 4)
    assert reply.usage.output_tokens == 2
    await ask_claude(claude, "Grüße")
    totals = (await model.get("/bill")).json()["totals"]
    assert totals["input_tokens"] == 2 * reply.usage.input_tokens
    assert (totals["requests"], totals["answered"], totals["dropped"], totals["output_tokens"]) == (2, 2, 0, 3)
    assert (await model.delete("/bill")).json()["requests"] == []


async def test_an_error_step_arrives_as_the_sdks_own_error(
    model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
) -> None:
    """Failures are classified from exactly these fields, and an error costs nothing."""
    step: JsonValue = {"status": 529, "error": {"type": "overloaded_error"}, "headers": {"retry-after": "7"}}
    quota: JsonValue = {"status": 429, "error": {"type": "insufficient_quota", "code": "insufficient_quota"}}
    await script(model, {"steps": [step, quota, {"text": "Hi"}], "per": "global"})
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        await ask_claude(claude)
    error = overloaded.value
    assert (error.status_code, error.type, error.response.headers["retry-after"]) == (529, "overloaded_error", "7")
    assert str(error.request_id).startswith("req_")
    with pytest.raises(openai.RateLimitError) as spent:
        await ask_gpt(gpt)
    assert (spent.value.code, spent.value.type) == ("insufficient_quota", "insufficient_quota")
    assert (await ask_claude(claude)).stop_reason == "end_turn"
    assert [line["status"] for line in await bill(model)] == [529, 429, 200]
    assert [sum(line["usage"].values()) > 0 for line in await bill(model)] == [False, False, True]  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("per", ["conversation", "global", "turn"])
async def test_steps_are_taken_as_the_script_says(model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic, per: str) -> None:
    """Concurrent runs need a script each, a fault counts requests, and a question asked again may want the same answer."""
    await script(model, {"steps": [{"text": "one"}, {"text": "two"}, {"text": "three"}], "per": per})
    said = [text_of(await ask_claude(claude, to)) for to in ("a", "b", "a")]
    expected = {
        "conversation": ["one", "one", "two"],
        "global": ["one", "two", "three"],
        "turn": ["one", "one", "one"],
    }
    assert said == expected[per]


async def test_a_used_up_script_says_so(model: httpx2.AsyncClient, gpt: openai.AsyncOpenAI) -> None:
    """An unexpected extra request must be seen, and not be retried."""
    await script(model, [])
    with pytest.raises(openai.BadRequestError, match="script is used up"):
        await ask_gpt(gpt)


async def test_a_dropped_answer_is_billed(model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    """The caller cannot know the cost: exactly the case for which a hold stays until it is reconciled."""
    await script(model, [{"bill_then_drop": True, "text": "lost"}, {"text": "found"}])
    with pytest.raises(anthropic.APIConnectionError):
        await ask_claude(claude)
    assert text_of(await ask_claude(claude)) == "found"
    lost, found = await bill(model)
    assert (lost["outcome"], lost["status"], found["outcome"]) == ("dropped", None, "answered")
    assert lost["usage"] == {**found["usage"], "output_tokens": 1}  # type: ignore[dict-item]
    assert lost["body_sha256"] == found["body_sha256"]


async def test_a_hanging_answer_comes_when_released(model: httpx2.AsyncClient, gpt: openai.AsyncOpenAI) -> None:
    """Workers are killed and deadlines pass while a model call hangs."""
    await script(model, [{"hang": True, "text": "finally"}])
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(ask_gpt(gpt))
        await model.get("/hanging", params={"at_least": "1"})
        assert [line["outcome"] for line in await bill(model)] == ["hanging"]
        await model.post("/release")
    assert waiting.result().output_text == "finally"
    assert [line["outcome"] for line in await bill(model)] == ["answered"]


async def test_a_caller_that_gives_up_is_billed_and_noted(model: httpx2.AsyncClient, gpt: openai.AsyncOpenAI) -> None:
    """A cancelled call was still paid for."""
    await script(model, [{"hang": True, "text": "finally"}])
    waiting = asyncio.create_task(ask_gpt(gpt))
    await model.get("/hanging", params={"at_least": "1"})
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(DEADLINE):
        while (await bill(model))[0]["outcome"] != "dropped":
            pass
    assert (await bill(model))[0]["usage"]["output_tokens"] == 2  # type: ignore[index,call-overload]


async def test_a_raw_body_goes_out_as_it_is(model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    """A proxy's page in place of an answer is a failure of its own kind."""
    page: JsonValue = {"raw": "<html>bad gateway</html>", "content_type": "text/html", "status": 502}
    await script(model, [page])
    with pytest.raises(anthropic.InternalServerError) as error:
        await ask_claude(claude)
    assert error.value.response.text == "<html>bad gateway</html>"


async def test_usage_may_be_missing_or_absurd(model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic) -> None:
    """Both SDKs let it pass, so our own check needs it; the true bill stays sane."""
    await script(model, [{"text": "Hi", "usage": "missing"}, {"text": "Hi", "usage": {"output_tokens": -5}}])
    assert (await ask_claude(claude)).usage is None
    assert (await ask_claude(claude)).usage.output_tokens == -5
    assert {line["usage"]["output_tokens"] for line in await bill(model)} == {1}  # type: ignore[index,call-overload]


async def test_an_answer_ends_where_the_client_said(
    model: httpx2.AsyncClient, claude: anthropic.AsyncAnthropic, gpt: openai.AsyncOpenAI
) -> None:
    """A provider never bills more than max_tokens, and says that it stopped there."""
    cut: JsonValue = {"text": "half", "stop_reason": "max_tokens"}
    await script(model, {"steps": [{"text": "x" * 100}, cut, cut], "per": "global"})
    reply = await ask_claude(claude, max_tokens=3)
    assert (reply.stop_reason, reply.usage.output_tokens, text_of(reply)) == ("max_tokens", 3, "x" * 12)
    assert (await ask_claude(claude)).stop_reason == "max_tokens"
    response = await ask_gpt(gpt)
    assert response.incomplete_details
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_a_loop_runs_its_turns_and_repeats_one_that_is_asked_again() -> None:
    """The 80-turn benchmark must come out at 80 calls, however often a worker dies in between."""
    loop = Loop(repeat_tool=Repeat(name="step", arguments={"n": "{n}", "deep": [{"at": "no. {n}"}]}, times=80))
    turns: list[Turn] = [Turn(role="user", text="go")]
    for n in range(1, 81):
        conversation = Conversation(turns=tuple(turns))
        reply = next_reply(loop, conversation)
        assert reply == next_reply(loop, conversation)
        assert reply.tool_calls[0].arguments == {"n": str(n), "deep": [{"at": f"no. {n}"}]}
        turns += [Turn(role="assistant", tool_calls=reply.tool_calls), Turn(role="user")]
    assert next_reply(loop, Conversation(turns=tuple(turns))).text == "done"


USER: Fields = {"role": "user", "content": "Hello"}
USED: Fields = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "x", "input": {}}]}
RESULT: Fields = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t2", "content": "ok"}]}
CALLED: Fields = {"type": "function_call", "call_id": "c1", "name": "x", "arguments": "{}"}
OUTPUT: Fields = {"type": "function_call_output", "call_id": "c2", "output": "ok"}


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("/v1/messages", {"messages": [USER]}, "max_tokens: Field required"),
        ("/v1/messages", {"messages": [], "max_tokens": 9}, "messages"),
        ("/v1/messages", {"messages": [USED], "max_tokens": 9}, "begin and end with a user message"),
        ("/v1/messages", {"messages": [USER, USED], "max_tokens": 9}, "begin and end with a user message"),
        ("/v1/messages", {"messages": [USER, USED, USER], "max_tokens": 9}, "without `tool_result` blocks"),
        ("/v1/messages", {"messages": [USER, RESULT], "max_tokens": 9}, "unexpected `tool_use_id`"),
        ("/v1/messages", {"messages": [{"role": "user", "content": ""}], "max_tokens": 9}, "content"),
        ("/v1/messages", {"messages": [USER], "max_tokens": 9, "stream": True}, "stream"),
        ("/v1/responses", {"input": []}, "input"),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 1}, "max_output_tokens"),
        ("/v1/responses", {"input": [USER, CALLED]}, "No tool output found for function call c1"),
        ("/v1/responses", {"input": [USER, OUTPUT]}, "No tool call found for function call output"),
        ("/v1/responses", {"input": "Hello", "previous_response_id": "r"}, "previous_response_id"),
    ],
)
async def test_a_malformed_request_is_refused_as_the_provider_would(
    model: httpx2.AsyncClient, path: str, body: dict[str, JsonValue], complaint: str
) -> None:
    """A client that loses a tool result must fail against the stand-in, not first in production."""
    answer = await model.post(path, json={"model": "m", **body}, headers={"x-api-key": "k", "authorization": "k"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert complaint in error["message"]
    assert [line["status"] for line in await bill(model)] == [400]


async def test_a_request_without_a_key_is_refused(model: httpx2.AsyncClient) -> None:
    """A worker that forgot its credentials must see the error it would see at the provider."""
    assert (await model.post("/v1/messages", json={})).json()["error"]["type"] == "authentication_error"
    assert (await model.post("/v1/responses", json={})).json()["error"]["code"] == "invalid_api_key"


async def test_a_script_that_is_none_is_refused_and_a_deleted_one_is_forgotten(
    model: httpx2.AsyncClient, gpt: openai.AsyncOpenAI
) -> None:
    """A typing error in a test's script must not pass as an empty answer."""
    assert (await model.post("/script", json=[{"texxt": "Hi"}])).status_code == 422
    await script(model, [{"text": "Hi"}])
    await model.delete("/script")
    assert json.loads((await ask_gpt(gpt)).output_text)["refunded"] == "0.00"


def test_the_process_says_where_it_listens_and_reads_its_script(tmp_path: Path) -> None:
    """The demo starts it as a process and takes the address from the first line."""
    file = tmp_path / "script.json"
    file.write_text(json.dumps({"repeat_tool": {"name": "step", "times": 0, "then_text": "nothing to do"}}))
    command = [sys.executable, "-m", "starter.demo.stand_in_model", "--port", "0", "--script", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().removeprefix("listening on ").strip()
        with openai.OpenAI(api_key="k", base_url=f"{address}/v1", max_retries=0) as client:
            assert client.responses.create(model="m", input="Hello").output_text == "nothing to do"
        process.terminate()


def test_a_script_file_that_cannot_be_read_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """One line with cause and remedy, not a traceback."""
    command = [sys.executable, "-m", "starter.demo.stand_in_model", "--script", str(tmp_path / "none.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert "No such file" in ended.stderr
