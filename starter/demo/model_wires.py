"""What does a request on a provider's wire say, and would the provider refuse it?

Anthropic Messages and OpenAI Responses are read into the neutral conversation. What a provider answers with a 400 raises
`Malformed`, worded much as the provider words it: a client that forgets a tool result must fail here as it would there.
"""

import json
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, Json, JsonValue, StrictInt, ValidationError

from starter.demo.loopback import one_line
from starter.demo.model_script import Arguments, Conversation, Reply, ToolCall, ToolResult, Turn, compact, tokens

Fields = dict[str, JsonValue]
NonEmpty = Annotated[str, Field(min_length=1)]


class Malformed(Exception):  # noqa: N818  # what a client did, not an error in the stand-in
    """The provider would refuse this request with a 400; the message says what is wrong."""


@dataclass(frozen=True)
class ModelRequest:
    """A well-formed request: input tokens as counted, `max_tokens` None only where the wire does not demand it."""

    model: str
    max_tokens: int | None
    input_tokens: int
    conversation: Conversation


def new_id(prefix: str) -> str:
    """An id in the providers' style, never given twice."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"


def cut(reply: Reply, max_tokens: int | None) -> Reply:
    """What is left of a reply at the limit the client set: no provider says more, and half a call is no call."""
    if max_tokens is None or reply.output_tokens() <= max_tokens:
        return reply
    text = reply.text.encode()[: 4 * max_tokens].decode(errors="ignore")
    usage = reply.usage if isinstance(reply.usage, str) else {"output_tokens": max_tokens} | reply.usage
    return reply.model_copy(update={"text": text, "tool_calls": (), "stop_reason": "max_tokens", "usage": usage})


def _counted(body: bytes, *names: str) -> int:
    sent: Fields = json.loads(body)
    return tokens("".join(compact(sent[name]) for name in names if sent.get(name)))


class _Request(BaseModel):
    model: NonEmpty
    stream: Literal[False] | None = None

    @classmethod
    def parse(cls, body: bytes) -> Self:
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise Malformed(one_line(error)) from error


class _Text(BaseModel):
    type: Literal["text", "input_text", "output_text"]
    text: NonEmpty


class _Unread(BaseModel):
    """What a provider accepts and this stand-in passes over."""

    type: Literal["thinking", "redacted_thinking", "image", "document", "input_image", "input_file", "refusal", "reasoning"]


_Texts = str | list[Annotated[_Text | _Unread, Field(discriminator="type")]]


def _plain(content: _Texts) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, _Text))


@dataclass
class _Said:
    """One message, with the ids that pair calls and results."""

    role: Literal["user", "assistant"]
    texts: list[str] = field(default_factory=list)
    calls: dict[str, ToolCall] = field(default_factory=dict)
    results: dict[str, tuple[str, bool]] = field(default_factory=dict)


def _by(said: list[_Said], role: Literal["user", "assistant"]) -> _Said:
    """The message being said in this role: neighbours of one role are one message, as at the providers."""
    if not said or said[-1].role != role:
        said.append(_Said(role))
    return said[-1]


def _turns(said: list[_Said]) -> tuple[Turn, ...]:
    names = {id_: call.name for message in said for id_, call in message.calls.items()}
    turns: list[Turn] = []
    for message in said:
        calls, text = tuple(message.calls.values()), "\n".join(message.texts)
        results = (ToolResult(name=names[id_], text=told, is_error=bad) for id_, (told, bad) in message.results.items())
        turns.append(Turn(role=message.role, text=text, tool_calls=calls, tool_results=tuple(results)))
    return tuple(turns)


class _AnthropicTool(BaseModel):
    name: NonEmpty
    input_schema: Fields


class _ToolUse(BaseModel):
    type: Literal["tool_use"]
    id: NonEmpty
    name: NonEmpty
    input: Arguments


class _ToolResult(BaseModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: _Texts = ""
    is_error: bool = False


_Block = Annotated[_Text | _ToolUse | _ToolResult | _Unread, Field(discriminator="type")]


class _AnthropicMessage(BaseModel):
    role: Literal["user", "assistant"]
    content: NonEmpty | Annotated[list[_Block], Field(min_length=1)]


class _AnthropicRequest(_Request):
    max_tokens: Annotated[StrictInt, Field(ge=1)]
    messages: Annotated[list[_AnthropicMessage], Field(min_length=1)]
    system: _Texts = ""
    tools: list[_AnthropicTool] = []


def read_anthropic(body: bytes) -> ModelRequest:
    """The body of `POST /v1/messages`; Malformed if Anthropic would refuse it."""
    asked = _AnthropicRequest.parse(body)
    said: list[_Said] = []
    for message in asked.messages:
        _hear(_by(said, message.role), message.content)
    if said[0].role != "user" or said[-1].role != "user":
        raise Malformed("messages: the conversation must begin and end with a user message")
    _check_pairs(said)
    tools = tuple(tool.name for tool in asked.tools)
    conversation = Conversation(system=_plain(asked.system), tools=tools, turns=_turns(said))
    return ModelRequest(asked.model, asked.max_tokens, _counted(body, "messages", "system", "tools"), conversation)


def _hear(message: _Said, content: str | list[_Block]) -> None:
    for block in [_Text(type="text", text=content)] if isinstance(content, str) else content:
        match block:
            case _Text():
                message.texts.append(block.text)
            case _ToolUse():
                message.calls[block.id] = ToolCall(name=block.name, arguments=block.input)
            case _ToolResult():
                message.results[block.tool_use_id] = (_plain(block.content), block.is_error)


def _check_pairs(said: list[_Said]) -> None:
    calls: dict[str, ToolCall] = {}
    for n, message in enumerate(said):
        if missing := calls.keys() - message.results.keys():
            why = "`tool_use` ids were found without `tool_result` blocks immediately after"
            raise Malformed(f"messages.{n - 1}: {why}: {', '.join(sorted(missing))}")
        if stray := message.results.keys() - calls.keys():
            raise Malformed(f"messages.{n}: unexpected `tool_use_id` found in `tool_result` blocks: {min(stray)}")
        calls = message.calls


class _Message(BaseModel):
    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: _Texts


class _FunctionCall(BaseModel):
    type: Literal["function_call"]
    call_id: NonEmpty
    name: NonEmpty
    arguments: Json[Arguments] | str


class _FunctionCallOutput(BaseModel):
    type: Literal["function_call_output"]
    call_id: str
    output: _Texts


def _typed(item: object) -> object:
    # The wire lets a message go without its type; every other item names it.
    return {"type": "message", **item} if isinstance(item, dict) else item


_Item = Annotated[
    Annotated[_Message | _FunctionCall | _FunctionCallOutput | _Unread, Field(discriminator="type")],
    BeforeValidator(_typed),
]


class _FunctionTool(BaseModel):
    type: Literal["function"]
    name: NonEmpty
    parameters: Fields | None = None


class _OpenAIRequest(_Request):
    input: NonEmpty | Annotated[list[_Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=16)] | None = None
    tools: list[_FunctionTool] = []
    # Kept at the provider, which this stand-in is not: a client must send the whole conversation.
    previous_response_id: None = None


def read_openai(body: bytes) -> ModelRequest:
    """The body of `POST /v1/responses`; Malformed if OpenAI would refuse it."""
    asked = _OpenAIRequest.parse(body)
    system, said = [asked.instructions or ""], list[_Said]()
    items = [_Message(type="message", role="user", content=asked.input)] if isinstance(asked.input, str) else asked.input
    for item in items:
        match item:
            case _Message(role="user" | "assistant" as role):
                _by(said, role).texts.append(_plain(item.content))
            case _Message():
                system.append(_plain(item.content))
            case _FunctionCall():
                _by(said, "assistant").calls[item.call_id] = ToolCall(name=item.name, arguments=item.arguments)
            case _FunctionCallOutput():
                _by(said, "user").results[item.call_id] = (_plain(item.output), False)
    _check_outputs(said)
    tools = tuple(tool.name for tool in asked.tools)
    conversation = Conversation(system="\n".join(filter(None, system)), tools=tools, turns=_turns(said))
    return ModelRequest(asked.model, asked.max_output_tokens, _counted(body, "input", "instructions", "tools"), conversation)


def _check_outputs(said: list[_Said]) -> None:
    unanswered: set[str] = set()
    called: set[str] = set()
    for message in said:
        if stray := message.results.keys() - called:
            raise Malformed(f"No tool call found for function call output with call_id {min(stray)}.")
        called |= message.calls.keys()
        unanswered = (unanswered | message.calls.keys()) - message.results.keys()
    if unanswered:
        raise Malformed(f"No tool output found for function call {min(unanswered)}.")
