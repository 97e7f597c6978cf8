"""How is a conversation written in Anthropic's Messages dialect, and what does an answer in it say?"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
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
from durable_agents.domain.canonical import escape_json
from durable_agents.domain.messages import Block, Message, OpaqueBlock, TextBlock, ToolCallBlock, ToolResultBlock
from durable_agents.domain.model_calls import StopReason
from durable_agents.domain.prices import Usage
from durable_agents.domain.tools import ToolSpec

_STOPS = {
    "end_turn": StopReason.DONE,
    "stop_sequence": StopReason.DONE,
    "tool_use": StopReason.TOOL_CALLS,
    "max_tokens": StopReason.MAX_TOKENS,
    "refusal": StopReason.REFUSED,
    "pause_turn": StopReason.PAUSED,
    "model_context_window_exceeded": StopReason.CONTEXT_FULL,
}


def messages_to_wire(messages: Sequence[Message]) -> list[Object]:
    """The conversation: user and assistant in turn, all results of a turn in one user message, results before text."""
    kept = [(_role(message), kept_blocks(message, "anthropic")) for message in messages]
    runs = groupby((item for item in kept if item[1]), key=itemgetter(0))
    return [{"role": role, "content": _content(block for _, blocks in run for block in blocks)} for role, run in runs]


def tools_to_wire(tools: Sequence[ToolSpec]) -> list[Object]:
    """What the model is told about its tools."""
    return [{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in tools]


def _role(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"


def _content(blocks: Iterable[Block]) -> list[JsonValue]:
    """Results first: Anthropic refuses text that comes before a tool result in one message."""
    return [_block(block) for block in sorted(blocks, key=lambda block: not isinstance(block, ToolResultBlock))]


def _block(block: Block) -> Object:
    match block:
        case TextBlock():
            return {"type": "text", "text": wire_text(block.text)}
        case ToolCallBlock():
            arguments = wire_json(block.arguments or {})
            return {"type": "tool_use", "id": wire_id(block.id), "name": wire_name(block.tool), "input": arguments}
        case ToolResultBlock():
            result = {"type": "tool_result", "tool_use_id": wire_id(block.call_id), "content": wire_text(block.text)}
            return {**result, "is_error": block.is_error}
        case OpaqueBlock():
            return an_object(wire_json(block.body), "a block")
        case _:
            assert_never(block)


def parse_answer(body: Object) -> WireAnswer:
    """An answer of the Messages API. Raises ValueError, naming what is missing or contradictory."""
    reason = body.get("stop_reason")
    if not isinstance(reason, str) or reason not in _STOPS:
        raise ValueError("its stop reason is missing or unknown")
    blocks = [_parse_block(an_object(block, "a block")) for block in a_list(body.get("content"), "its content")]
    message, stop = finished(blocks, _STOPS[reason])
    return WireAnswer(message, stop, _usage(body.get("usage")), a_text(body.get("model"), "its model"))


def _parse_block(block: Object) -> Block:
    match block.get("type"):
        case "text":
            return TextBlock(text=a_text(block.get("text"), "a text"))
        case "tool_use":
            return _parse_call(block)
        case _:  # thinking, redacted_thinking, and what may come: only Anthropic reads it
            return opaque("anthropic", block)


def _parse_call(block: Object) -> ToolCallBlock:
    try:
        arguments = an_object(escape_json(block.get("input")), "the arguments")
    except ValueError as error:
        return tool_call(block.get("id"), block.get("name"), None, str(error))
    return tool_call(block.get("id"), block.get("name"), arguments)


def _usage(usage: JsonValue) -> Usage | None:
    """Anthropic counts cached tokens apart from `input_tokens`; ours include them."""
    if not isinstance(usage, dict):
        return None
    parts = [usage.get("input_tokens"), usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")]
    counts = [0 if part is None and index else part for index, part in enumerate(parts)]
    whole = [count for count in counts if type(count) is int and count >= 0]  # a boolean is an int, but no count
    if len(whole) != len(counts):
        return None
    return usage_of(total=sum(whole), cached=whole[1], written=whole[2], output=usage.get("output_tokens"))
