"""What do all providers' JSON dialects share: safe text, valid names, honest counts, and suspicion of every shape?"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError

from durable_agents.domain.canonical import escape_json, escape_text, restore_text
from durable_agents.domain.messages import Block, Message, OpaqueBlock, TextBlock, ToolCallBlock
from durable_agents.domain.model_calls import Provider, StopReason
from durable_agents.domain.prices import Usage

Object = dict[str, JsonValue]
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What both take as a tool call's id: Anthropic these characters, OpenAI at most 64 of them."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


class Malformed(ValueError):  # noqa: N818 - says what the answer is
    """An answer has not the shape it must have; the text says where, and repeats nothing of it."""


@dataclass(frozen=True)
class WireAnswer:
    """An answer in neutral terms, before the exchange adds what only it knows."""

    message: Message
    stop: StopReason
    usage: Usage | None
    model: str


def wire_text(text: str) -> str:
    """Stored text as it was, but for lone surrogates: UTF-8 cannot carry them, U+FFFD stands for them."""
    return _SURROGATE.sub("\ufffd", restore_text(text))


def wire_json(value: JsonValue) -> JsonValue:
    """A stored JSON value with every string and key as `wire_text`."""
    if isinstance(value, str):
        return wire_text(value)
    if isinstance(value, dict):
        return {wire_text(key): wire_json(item) for key, item in value.items()}
    return [wire_json(item) for item in value] if isinstance(value, list) else value


def wire_id(call_id: str) -> str:
    """A tool call's id if every provider takes it, else one derived from it: the same for the call and for its result."""
    return call_id if _ID.fullmatch(call_id) else f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:32]}"


def wire_name(tool: str) -> str:
    """A called tool's name in the characters both take: a model that invented `shop.refund` must not wedge every later call."""
    return _NOT_IN_NAMES.sub("_", tool)[:64] or "_"


def kept_blocks(message: Message, provider: Provider) -> tuple[Block, ...]:
    """The message's blocks without empty text, which Anthropic refuses, and without what only the other provider understands."""
    return tuple(block for block in message.blocks if _kept(block, provider))


def _kept(block: Block, provider: Provider) -> bool:
    if isinstance(block, TextBlock):
        return bool(block.text.strip())
    return not isinstance(block, OpaqueBlock) or block.provider == provider


def an_object(value: JsonValue, what: str) -> Object:
    """`value`, if it is an object. Raises ValueError."""
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    return value


def a_list(value: JsonValue, what: str) -> list[JsonValue]:
    """`value`, if it is an array. Raises ValueError."""
    if not isinstance(value, list):
        raise Malformed(f"{what} is not an array")
    return value


def a_text(value: JsonValue, what: str) -> str:
    """`value` escaped for storage, if it is a string. Raises ValueError."""
    if not isinstance(value, str):
        raise Malformed(f"{what} is not a string")
    return escape_text(value)


def opaque(provider: Provider, body: Object) -> OpaqueBlock:
    """A block to hand back unchanged. Raises ValueError if it cannot be stored."""
    return OpaqueBlock(provider=provider, body=an_object(escape_json(body), "a block"))


def tool_call(call_id: JsonValue, name: JsonValue, arguments: Object | None, problem: str = "") -> ToolCallBlock:
    """A tool call. Raises ValueError if it has no id or no name: its result could not be told apart."""
    if not call_id or not name:
        raise ValueError("a tool call has no id or no name")
    return ToolCallBlock(
        id=a_text(call_id, "a tool call's id"), tool=a_text(name, "a tool's name"), arguments=arguments, problem=problem
    )


def finished(blocks: Sequence[Block], stop: StopReason) -> tuple[Message, StopReason]:
    """The message of an answer, and why it stopped, once both fit together.

    A half-written tool call can look whole, so an answer that was cut keeps its text alone. (A reasoning item whose call is gone
    would be refused by OpenAI later.)

    Raises:
        ValueError: the answer contradicts itself.
    """
    calls = [block.id for block in blocks if isinstance(block, ToolCallBlock)]
    if len(set(calls)) != len(calls):
        raise ValueError("two tool calls have one id")
    match stop:
        case StopReason.DONE | StopReason.TOOL_CALLS:
            if stop is StopReason.TOOL_CALLS and not calls:
                raise ValueError("it stopped for a tool call and has none")
            kept, stop = tuple(blocks), StopReason.TOOL_CALLS if calls else StopReason.DONE
        case StopReason.PAUSED:
            kept = tuple(block for block in blocks if not isinstance(block, ToolCallBlock))
        case StopReason.MAX_TOKENS | StopReason.REFUSED | StopReason.CONTEXT_FULL:
            kept = tuple(block for block in blocks if isinstance(block, TextBlock))
    return Message(role="assistant", blocks=kept), stop


def usage_of(*, total: JsonValue, cached: JsonValue, written: JsonValue, output: JsonValue) -> Usage | None:
    """A usage, if it can be one. `total` includes `cached` and `written`. NaN, text, booleans and the absurd give None."""
    try:
        usage = Usage.model_validate(
            {"input_tokens": total, "cached_input_tokens": cached, "cache_write_tokens": written, "output_tokens": output}
        )
    except ValidationError:
        return None
    return usage if usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens else None
