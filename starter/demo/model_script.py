"""What does the stand-in for a model say next?

Pure: `next_reply(script, conversation)` is decided by what it is given, so the same conversation always gets the same answer,
after a crash and from either provider's wire. A script is the built-in refunds clerk, a list of steps, or a loop of one tool.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

Arguments = dict[str, JsonValue]
StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded",
    "content_filter", "missing",
]  # fmt: skip
"""Anthropic's names, `content_filter` of OpenAI, and `missing`: an answer that never says why it stopped."""

USAGE_FIELDS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")
"""The neutral usage: `input_tokens` holds the cached and the newly cached ones."""


def tokens(text: str) -> int:
    """The stand-in's tokenizer: four bytes of UTF-8 are a token, a rest is one more."""
    return math.ceil(len(text.encode()) / 4)


def compact(value: JsonValue) -> str:
    """JSON without needless bytes: what is counted as tokens."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolCall(_Value):
    """A tool the model wants called; the wire adds the id. Arguments in a string are sent as they are: broken JSON, say."""

    name: str
    arguments: Arguments | str = {}


class ToolResult(_Value):
    """What came back for a call, by the name of the tool; `is_error` only where the wire can say so."""

    name: str
    text: str
    is_error: bool = False


class Turn(_Value):
    """One message of the conversation; only an assistant has calls, only a user has results."""

    role: Literal["user", "assistant"]
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()


class Conversation(_Value):
    """What both wires carry, without their forms: `tools` are the names offered."""

    system: str = ""
    tools: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()

    def key(self) -> str:
        """Tells conversations apart: instructions and first words, which stay while a conversation grows."""
        return json.dumps([self.system, self.turns[0].text if self.turns else ""])

    def latest_result(self, name: str) -> ToolResult | None:
        """The last thing this tool came back with, None if it was never answered."""
        results = [result for turn in self.turns for result in turn.tool_results if result.name == name]
        return results[-1] if results else None


class Reply(_Value):
    """One answer, good or bad; also one step of a script.

    `text` and `tool_calls` are an answer. `status` from 400 up is a provider's error, its `error` fields over the usual ones.
    `raw` is a body sent as it is, as `content_type`. `hang` waits for `POST /release` and then answers; `bill_then_drop` bills
    and closes the connection. `usage` overrides what is reported (`input_tokens` cached ones included, `cached_tokens`,
    `cache_write_tokens`, `output_tokens`, or any other field; `"missing"` sends none). `billed` overrides what is charged:
    by default answers are, errors and raw bodies are not.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: StopReason | None = None
    usage: Arguments | Literal["missing"] = {}
    status: Annotated[int, Field(ge=200, le=599)] = 200
    error: Arguments = {}
    headers: dict[str, str] = {}
    raw: str | None = None
    content_type: str = "text/html"
    hang: bool = False
    bill_then_drop: bool = False
    billed: bool | None = None

    def output_tokens(self) -> int:
        """What the reply counts as: its text, and the name and arguments of each call; at least 1."""
        return max(1, tokens(self.text + "".join(call.name + compact(call.arguments) for call in self.tool_calls)))

    def is_answer(self) -> bool:
        """True for a reply in the provider's own form of success."""
        return self.raw is None and self.status < 400

    def is_billed(self) -> bool:
        """True if the provider charges for it."""
        return self.is_answer() if self.billed is None else self.billed


class Refunds(_Value):
    """The demo's clerk: looks the order up, refunds it, tells the customer, reports as JSON."""

    builtin: Literal["refunds"] = "refunds"


class Steps(_Value):
    """Replies in order. Which is next: see `per`.

    `conversation`: each request of a conversation takes its next step; `global`: each request takes the next step of all;
    `turn`: the step is the number of turns the model already had, so a question asked again gets the same answer again.
    `taken` is how many were served before, kept by the caller.
    """

    steps: tuple[Reply, ...]
    per: Literal["conversation", "global", "turn"] = "conversation"
    taken: int = 0


class Repeat(_Value):
    """One tool, `times` times, then a text; `{n}` in the arguments becomes the number of the turn, from 1."""

    name: str
    arguments: Arguments = {}
    times: Annotated[int, Field(ge=0)]
    then_text: str = "done"


class Loop(_Value):
    """Counts in the conversation itself, so a request that is repeated after a crash repeats its turn."""

    repeat_tool: Repeat


Script = Refunds | Steps | Loop
_SCRIPT: TypeAdapter[Script | tuple[Reply, ...]] = TypeAdapter(Refunds | Steps | Loop | tuple[Reply, ...])


def parse_script(text: str | bytes) -> Script:
    """A script from JSON: a list of steps, or an object `steps`, `repeat_tool` or `builtin`. ValidationError if it is none."""
    script = _SCRIPT.validate_json(text)
    return Steps(steps=script) if isinstance(script, tuple) else script


def next_reply(script: Script, conversation: Conversation) -> Reply:
    """What the model says now. A list of steps that is used up answers 400, which nobody retries."""
    match script:
        case Refunds():
            return _clerk(conversation)
        case Steps():
            had = sum(turn.role == "assistant" for turn in conversation.turns)
            steps = script.steps[had if script.per == "turn" else script.taken :]
            return steps[0] if steps else Reply(status=400, error={"message": "the stand-in's script is used up"})
        case Loop():
            return _repeat(script.repeat_tool, conversation)
        case _:
            assert_never(script)


def _repeat(tool: Repeat, conversation: Conversation) -> Reply:
    n = 1 + sum(any(call.name == tool.name for call in turn.tool_calls) for turn in conversation.turns)
    if n > tool.times:
        return Reply(text=tool.then_text)
    arguments = {key: _numbered(value, n) for key, value in tool.arguments.items()}
    return Reply(tool_calls=(ToolCall(name=tool.name, arguments=arguments),))


def _numbered(value: JsonValue, n: int) -> JsonValue:
    if isinstance(value, str):
        return value.replace("{n}", str(n))
    if isinstance(value, list):
        return [_numbered(item, n) for item in value]
    if isinstance(value, dict):
        return {key: _numbered(item, n) for key, item in value.items()}
    return value


def _clerk(conversation: Conversation) -> Reply:
    asked = _asked(conversation)
    if asked is None:
        return _report("", refunded="0.00", told=False, summary="I need an order and an amount above zero as JSON.")
    order, amount = asked
    steps: list[tuple[str, str, Arguments]] = [
        ("lookup_order", "I look the order up first.", {"order": order}),
        ("issue_refund", "", {"order": order, "amount": amount}),
        ("tell_customer", "", {"order": order, "text": f"We have refunded {amount} for your order {order}."}),
    ]
    refunded = "0.00"
    for tool, text, arguments in steps:
        result = conversation.latest_result(tool)
        if result is None and tool in conversation.tools:
            return Reply(text=text, tool_calls=(ToolCall(name=tool, arguments=arguments),))
        problem = _problem(result) if result else "I was not given this tool."
        if problem:
            return _report(order, refunded=refunded, told=False, summary=f"{tool} did not go through: {problem}")
        refunded = amount if tool == "issue_refund" else refunded
    return _report(order, refunded=refunded, told=True, summary=f"Refunded {amount} for {order} and told the customer.")


def _report(order: str, *, refunded: str, told: bool, summary: str) -> Reply:
    report = {"order": order, "refunded": refunded, "customer_told": told, "summary": summary}
    return Reply(text=json.dumps(report, ensure_ascii=False))


def _asked(conversation: Conversation) -> tuple[str, str] | None:
    for turn in conversation.turns:
        for found in _objects_in(turn.text if turn.role == "user" else ""):
            try:
                amount = Decimal(str(found["amount"]))
                if found["order"] and 0 < amount < Decimal("1e9"):
                    return str(found["order"]), f"{amount:.2f}"
            except (KeyError, InvalidOperation):
                continue
    return None


def _objects_in(text: str) -> Iterator[dict[str, JsonValue]]:
    for opening in re.finditer(r"\{", text):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, opening.start())
        except ValueError:
            continue
        yield found


_BAD_STATUS = {"denied", "refused", "rejected", "error", "failed", "expired", "unknown", "outcome_unknown", "cancelled"}
_BAD_WORDS = re.compile(r"\b(error|denied|refused|rejected|failed|not allowed|expired|outcome unknown)\b", re.IGNORECASE)


def _problem(result: ToolResult) -> str:
    """Why a result is not a success, in its own words; empty if it is one. OpenAI's wire has no flag, so the text must tell."""
    try:
        value = json.loads(result.text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        bad = bool(value.get("error") or value.get("denied")) or str(value.get("status")).lower() in _BAD_STATUS
    else:
        bad = bool(_BAD_WORDS.search(result.text))
    return (result.text.strip()[:300] or "no reason given") if bad or result.is_error else ""
