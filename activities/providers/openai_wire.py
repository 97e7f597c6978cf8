"""How is a conversation written in OpenAI's Responses dialect, and what does an answer in it say?"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import assert_never

from pydantic import JsonValue

from activities.providers.wire import (
    Object,
    WireAnswer,
    a_list,
    a_text,
    an_object,
    finished,
    kept_blocks,
    opaque,
    tool_call,
    usage_of,
    wire_id,
    wire_json,
    wire_name,
    wire_text,
)
from durable_agents.domain.canonical import canonical_json, parse_json
from durable_agents.domain.messages import Block, Message, OpaqueBlock, TextBlock, ToolCallBlock, ToolResultBlock
from durable_agents.domain.model_calls import StopReason
from durable_agents.domain.prices import Usage
from durable_agents.domain.tools import ToolSpec

_WITHOUT_REASONING = ("gpt-3", "gpt-4", "chatgpt-")
"""These families refuse a request that asks for encrypted reasoning ("not supported with this model")."""


def reasons(model: str) -> bool:
    """Whether encrypted reasoning may be asked of this model."""
    return not model.startswith(_WITHOUT_REASONING)


def messages_to_wire(messages: Sequence[Message]) -> list[Object]:
    """The conversation as input items, consecutive user messages as one."""
    items = [_item(block, message) for message in messages for block in kept_blocks(message, "openai")]
    runs = groupby(items, key=lambda item: item.get("role") == "user")
    return [item for said_by_user, run in runs for item in (_merged(run) if said_by_user else run)]


def tools_to_wire(tools: Sequence[ToolSpec]) -> list[Object]:
    """What the model is told about its tools. Not strict: not every schema a tool can have is a strict one."""
    return [
        {"type": "function", "name": t.name, "description": t.description, "parameters": t.parameters, "strict": False}
        for t in tools
    ]


def _merged(items: Iterable[Object]) -> list[Object]:
    texts: list[JsonValue] = [{"type": "input_text", "text": item["content"]} for item in items]
    return [{"role": "user", "content": texts}]


def _item(block: Block, message: Message) -> Object:
    match block:
        case TextBlock():
            return {"role": "assistant" if message.role == "assistant" else "user", "content": wire_text(block.text)}
        case ToolCallBlock():
            arguments = canonical_json(wire_json(block.arguments or {})).decode()
            return {
                "type": "function_call",
                "call_id": wire_id(block.id),
                "name": wire_name(block.tool),
                "arguments": arguments,
            }
        case ToolResultBlock():
            text = wire_text(block.text)
            output = f"Error: {text}" if block.is_error else text  # the dialect has no other mark for it
            return {"type": "function_call_output", "call_id": wire_id(block.call_id), "output": output}
        case OpaqueBlock():
            return an_object(wire_json(block.body), "a block")
        case _:
            assert_never(block)


def parse_answer(body: Object) -> WireAnswer:
    """An answer of the Responses API. Raises ValueError, naming what is missing or contradictory."""
    items = [an_object(item, "an output item") for item in a_list(body.get("output"), "its output")]
    stop = _stop(body, items)
    blocks = [block for item in items for block in _parse_item(item)]
    message, stop = finished(blocks, stop)
    return WireAnswer(message, stop, _usage(body.get("usage")), a_text(body.get("model"), "its model"))


def _stop(body: Object, items: Sequence[Object]) -> StopReason:
    details = body.get("incomplete_details")
    match body.get("status"), details.get("reason") if isinstance(details, dict) else None:
        case "completed", _:
            return StopReason.REFUSED if any(map(_refuses, items)) else StopReason.DONE
        case "incomplete", "max_output_tokens":
            return StopReason.MAX_TOKENS
        case "incomplete", "content_filter":
            return StopReason.REFUSED
        case _:
            raise ValueError("its status, or the reason why it is incomplete, is missing or unknown")


def _refuses(item: Object) -> bool:
    parts = item.get("content")
    return isinstance(parts, list) and any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts)


def _parse_item(item: Object) -> Iterator[Block]:
    match item.get("type"):
        case "message":
            for part in a_list(item.get("content"), "a message's content"):
                yield _parse_part(an_object(part, "a part"))
        case "function_call":
            yield _parse_call(item)
        case "reasoning" if not item.get("encrypted_content"):
            return  # nothing is stored at OpenAI (`store=False`), so a bare reference could not be resolved later
        case _:
            yield opaque("openai", item)


def _parse_part(part: Object) -> TextBlock:
    return TextBlock(text=a_text(part.get("refusal" if part.get("type") == "refusal" else "text"), "a text"))


def _parse_call(item: Object) -> ToolCallBlock:
    if item.get("status") not in {None, "completed"}:
        return tool_call(item.get("call_id"), item.get("name"), None, "the call was not completed")
    try:
        raw = item.get("arguments")
        arguments = an_object(parse_json(raw if isinstance(raw, str) else ""), "the arguments")
    except ValueError as error:
        return tool_call(item.get("call_id"), item.get("name"), None, str(error))
    return tool_call(item.get("call_id"), item.get("name"), arguments)


def _usage(usage: JsonValue) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    given = usage.get("input_tokens_details")
    details = given if isinstance(given, dict) else {}
    return usage_of(
        total=usage.get("input_tokens"),
        cached=_or_zero(details.get("cached_tokens")),
        written=_or_zero(details.get("cache_write_tokens")),
        output=usage.get("output_tokens"),
    )


def _or_zero(count: JsonValue) -> JsonValue:
    return 0 if count is None else count
