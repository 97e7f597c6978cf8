"""Do the two dialects survive whatever a model or a gateway writes, and stay valid for whoever reads them next?"""

import itertools
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from activities.providers import anthropic_wire, openai_wire
from activities.providers.wire import Object, wire_id, wire_json, wire_name, wire_text
from durable_agents.domain.canonical import canonical_json, escape_json, escape_text
from durable_agents.domain.messages import Block, Message, OpaqueBlock, TextBlock, ToolCallBlock, ToolResultBlock

UNHURRIED = settings(deadline=None)
"""A busy machine is no finding."""

_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates included
_JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ("type", "text", "id", "call_id", "name", "input", "arguments", "content", "refusal", "encrypted_content", "status")
_TYPES = st.sampled_from(
    ["text", "tool_use", "thinking", "message", "function_call", "reasoning", "output_text", "refusal", "new"]
)
_PART = st.fixed_dictionaries({}, optional={**dict.fromkeys(_FIELDS, _JSON), "type": _TYPES | _JSON})
_ANSWER = st.fixed_dictionaries(
    {},
    optional={
        "stop_reason": st.sampled_from(["end_turn", "tool_use", "max_tokens", "pause_turn"]) | _JSON,
        "status": st.sampled_from(["completed", "incomplete"]) | _JSON,
        "incomplete_details": st.just({"reason": "max_output_tokens"}) | _JSON,
        "content": st.lists(_PART | _JSON, max_size=3) | _JSON,
        "output": st.lists(_PART | _JSON, max_size=3) | _JSON,
        "usage": st.fixed_dictionaries({}, optional={"input_tokens": _JSON, "output_tokens": _JSON}) | _JSON,
        "model": st.just("m") | _JSON,
    },
)


@UNHURRIED
@given(body=_ANSWER)
def test_any_body_is_a_storable_answer_or_a_value_error(body: Object) -> None:
    """Any other exception is a bug of ours that ends a run; an unstorable answer ends every later write of it."""
    for parse in (anthropic_wire.parse_answer, openai_wire.parse_answer):
        try:
            answer = parse(body)
        except ValueError:
            continue
        canonical_json(answer.message.model_dump(mode="json"))
        assert "\x00" not in answer.message.text()


_STORED = _TEXT.map(escape_text)
_ARGUMENTS = st.none() | st.dictionaries(_STORED, _STORED, max_size=2)
_BLOCKS: st.SearchStrategy[Block] = st.one_of(
    st.builds(TextBlock, text=_STORED),
    st.builds(ToolCallBlock, id=_STORED, tool=_STORED, arguments=_ARGUMENTS),
    st.builds(ToolResultBlock, call_id=_STORED, tool=_STORED, text=_STORED, is_error=st.booleans()),
    st.builds(OpaqueBlock, provider=st.sampled_from(["anthropic", "openai"]), body=st.just({"type": "thinking"})),
)
_MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "assistant", "tool"]), blocks=st.lists(_BLOCKS, max_size=3).map(tuple)),
    max_size=5,
)


@UNHURRIED
@given(messages=_MESSAGES)
def test_roles_alternate_and_no_message_to_anthropic_is_empty(messages: list[Message]) -> None:
    """Anthropic refuses anything else, and a refused conversation can never be continued."""
    wire = anthropic_wire.messages_to_wire(messages)
    roles = [message["role"] for message in wire]
    assert all(one != next_ for one, next_ in itertools.pairwise(roles))
    assert all(message["content"] for message in wire)


@UNHURRIED
@given(messages=_MESSAGES)
def test_every_conversation_can_be_sent_as_utf_8(messages: list[Message]) -> None:
    """A lone surrogate would fail inside the SDK, on every try, for ever."""
    for to_wire in (anthropic_wire.messages_to_wire, openai_wire.messages_to_wire):
        json.dumps(to_wire(messages), ensure_ascii=False, allow_nan=False).encode()


@UNHURRIED
@given(text=st.text())
def test_a_text_that_utf_8_can_carry_reaches_the_model_unchanged(text: str) -> None:
    """Storage is our matter; the model and the user must not notice it."""
    assert wire_text(escape_text(text)) == text
    assert wire_json(escape_json([{text: text}])) == [{text: text}]


@UNHURRIED
@given(call_id=_TEXT, tool=_TEXT)
def test_ids_and_names_are_valid_for_both_providers(call_id: str, tool: str) -> None:
    """One invented name or foreign id in the transcript must not make every later call invalid."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", wire_id(escape_text(call_id)))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", wire_name(escape_text(tool)))


def test_a_valid_id_is_left_alone_and_different_ones_stay_different() -> None:
    """Support asks for the id the provider gave; two calls must not share a result."""
    assert wire_id("toolu_01A-b") == "toolu_01A-b"
    assert wire_id("a:1") != wire_id("a:2")
    assert wire_id("a:1") == wire_id("a:1")
