"""Is a tool's declaration checked at once, its schema what the model needs, and its arguments of one form?"""

import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, JsonValue

from durable_agents.domain.canonical import digest
from durable_agents.domain.effects import Effect
from durable_agents.domain.tools import Tool, ToolContext, resource_fields, resource_of, tool
from tests.domain.strategies import checked

Amount = Annotated[Decimal, Field(gt=0, max_digits=9, decimal_places=2, description="Two decimals")]


class Line(BaseModel):
    """A part of an argument."""

    item: str
    price: Amount


@tool(effect=Effect.IDEMPOTENT, risk="write", resource="order:{order}")
async def refund(order: str, amount: Amount, lines: list[Line] | None = None, *, context: ToolContext) -> dict[str, str]:
    """Refund an order.

    At most its total.
    """
    return {"order": order, "amount": str(amount), "lines": str(lines), "key": context.idempotency_key}


def test_what_provenance_needs_is_stated_or_as_strict_as_can_be() -> None:
    """Nothing is trusted by default; and a destination that is no argument would guard nothing."""
    assert (refund.spec.trusted, refund.spec.private, refund.spec.destination) == (False, False, ())
    assert {"trusted", "private", "destination"}.isdisjoint(refund.spec.model_dump()), "versions from before stay what they are"
    assert resource_fields("order:{order}/{line}/{order}") == ("order", "line")

    async def send(to: str) -> None:
        """Send."""

    assert tool(effect=Effect.AT_MOST_ONCE, destination=("to",), trusted=True, private=True)(send).spec.private
    with pytest.raises(TypeError, match="tool send: its destination names 'cc', no parameter"):
        tool(effect=Effect.AT_MOST_ONCE, destination=("cc",))(send)


def test_the_model_sees_name_docstring_and_arguments_alone() -> None:
    """The context holds settings, secrets among them: it must never be offered to a model."""
    spec = refund.spec
    assert (spec.name, spec.description) == ("refund", "Refund an order.\n\nAt most its total.")
    assert set(_properties(refund)) == {"order", "amount", "lines"}
    assert spec.parameters["required"] == ["order", "amount"]
    assert spec.parameters["additionalProperties"] is False
    assert "context" not in str(spec.parameters)
    assert "Two decimals" in str(_properties(refund)["amount"])
    assert "title" not in spec.parameters
    assert refund.takes_context


def _properties(of: Tool) -> dict[str, JsonValue]:
    properties = of.spec.parameters["properties"]
    assert isinstance(properties, dict)
    return properties


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (None, "order: Field required; amount: Field required"),
        ({}, "order: Field required; amount: Field required"),
        ({"order": "A", "amount": "x"}, "amount: Input should be a valid decimal"),
        ({"order": "A", "amount": "NaN"}, "amount: Input should be a finite number"),
        ({"order": "A", "amount": "1e400"}, "amount: Decimal input should have no more than 9 digits"),
        ({"order": "A", "amount": "-1"}, "amount: Input should be greater than 0"),
        ({"order": "A", "amount": "1.005"}, "amount: Decimal input should have no more than 2 decimal places"),
        ({"order": 5, "amount": "1"}, "order: Input should be a valid string"),
        ({"order": "A", "amount": "1", "to": "me"}, "to: Extra inputs are not permitted"),
        ({"order": "A", "amount": "1", "context": {}}, "context: Extra inputs are not permitted"),
        ({"order": "A", "amount": "1", "lines": [{"item": "x"}]}, "lines.0.price: Field required"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_told_to_the_model_in_one_line(arguments: dict[str, JsonValue] | None, told: str) -> None:
    """The model repairs its call by this line; a traceback would teach it nothing."""
    with pytest.raises(ValueError, match="^" + re.escape(told)) as refused:
        refund.parse(arguments)
    assert "\n" not in str(refused.value)


def test_the_message_names_at_most_eight_errors() -> None:
    """A model that sends a thousand wrong arguments must not fill its own context with our answer."""
    with pytest.raises(ValueError, match="x0") as refused:
        refund.parse({f"x{number}": 1 for number in range(1000)} | {"order": "A", "amount": "1"})
    assert str(refused.value).count(";") == 7


def of_amount(amount: JsonValue) -> str:
    """What consent to a refund of this amount is bound to."""
    return digest(refund.canonical_arguments(refund.parse({"order": "A", "amount": amount})))


def test_an_amount_is_shown_and_bound_as_it_was_written() -> None:
    """One spelling is one digest in every process, and another amount is always another digest.

    Equal amounts spelled differently ("250", "250.00", 250.0) are different arguments: a human is asked again, never too seldom.
    """
    parsed = refund.parse({"order": "A", "amount": "250.00"})
    assert refund.canonical_arguments(parsed) == {"order": "A", "amount": "250.00", "lines": None}
    assert of_amount("250") == of_amount(250)
    assert len({of_amount(amount) for amount in ("250", "250.00", 250.0, "250.01", "251", "2500")}) == 6


@checked
@given(st.decimals("0.01", "9999999", places=2), st.decimals("0.01", "9999999", places=2))
def test_different_amounts_never_share_a_digest(one: Decimal, other: Decimal) -> None:
    """Consent for 250 must never be consent for 2500."""
    if one != other:
        assert of_amount(str(one)) != of_amount(str(other))


@checked
@given(st.decimals("0.01", "9999999", places=2))
def test_canonical_arguments_are_a_fixed_point(amount: Decimal) -> None:
    """The executor parses what was stored and must come to the same digest as the one that was approved."""
    once = refund.canonical_arguments(refund.parse({"order": "A", "amount": str(amount)}))
    assert refund.canonical_arguments(refund.parse(once)) == once


@pytest.mark.parametrize(
    ("pattern", "arguments", "resource"),
    [
        ("order:{order}", {"order": "A-1", "note": "x"}, "order:A-1"),
        ("order:{order}/{note}", {"order": "A-1", "note": "x"}, "order:A-1/x"),
        ("", {"order": "A-1", "note": "x"}, ""),
        ("all", {"order": "A-1", "note": "x"}, "all"),
        ("order:{order}", {"order": "{note}", "note": "A-1"}, "order:{note}"),
        ("order:{order}/{note}", {"order": "{note}", "note": "{order}"}, "order:{note}/{order}"),
        ("order:{order}", {"order": r"\g<0>\1", "note": "x"}, r"order:\g<0>\1"),
    ],
)
def test_a_value_cannot_forge_the_resource_it_is_judged_by(pattern: str, arguments: dict[str, JsonValue], resource: str) -> None:
    """Values come from the model: one that looks like a placeholder must stay a value, or the policy judges another order."""

    async def touch(order: str, note: str) -> str:
        """Touch an order."""
        return order + note

    spec = tool(effect=Effect.READ, resource=pattern)(touch).spec
    assert resource_of(spec, arguments) == resource


async def _fine(order: str) -> str:
    """Fine."""
    return order


async def _reconcile(order: str, *, context: ToolContext) -> str | None:
    return order and context.idempotency_key


async def _bare(order: str) -> str:
    return order


async def _untyped(order) -> str:  # type: ignore[no-untyped-def] # noqa: ANN001
    """An argument without a type."""
    return str(order)


async def _starred(*orders: str) -> str:
    """Positional arguments."""
    return str(orders)


async def _keywords(**orders: str) -> str:
    """Any keywords."""
    return str(orders)


async def _set(orders: set[str]) -> str:
    """A set."""
    return str(orders)


def _plain(order: str) -> str:
    """Not async."""
    return order


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (_plain, {}, "tool _plain must be `async def`"),
        (_bare, {}, "tool _bare needs a docstring: it is what the model reads"),
        (_fine, {"timeout": timedelta(0)}, "tool _fine: the timeout must be above 0 and at most 1:00:00"),
        (_fine, {"timeout": timedelta(hours=2)}, "tool _fine: the timeout must be above 0 and at most 1:00:00"),
        (_fine, {"effect": Effect.RECONCILABLE}, "tool _fine: `reconcile` belongs to Effect.RECONCILABLE, and only there"),
        (_fine, {"reconcile": _reconcile}, "tool _fine: `reconcile` belongs to Effect.RECONCILABLE, and only there"),
        (_untyped, {}, "tool _untyped: parameter order needs a type"),
        (_starred, {}, "tool _starred: *orders is not possible, the model passes arguments by name"),
        (_keywords, {}, "tool _keywords: *orders is not possible, the model passes arguments by name"),
        (_set, {}, "tool _set: a set has no lasting order that consent could be bound to, take a list"),
        (_fine, {"resource": "order:{oder}"}, "tool _fine: its resource names 'oder', no parameter"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_at_once(
    function: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    """Found when the worker starts, with the function's name and the remedy, not by the first run."""
    with pytest.raises(TypeError) as refused:
        tool(**({"effect": Effect.READ} | options))(function)
    assert str(refused.value) == message


async def test_a_tool_is_still_the_function_it_was() -> None:
    """Its author tests it as a function."""
    declared = tool(effect=Effect.RECONCILABLE, reconcile=_reconcile)(_fine)
    assert await declared("A-1") == "A-1"
    assert not declared.takes_context
    assert declared.keywords(declared.parse({"order": "A-1"})) == {"order": "A-1"}
    assert (declared.render("text"), refund.render({"a": "b"})) == ("text", '{"a":"b"}')
