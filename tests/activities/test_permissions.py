"""Does a policy's condition say true or false for what was meant, and an error for everything else?"""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from activities.permissions import check_condition, evaluate, plain
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Micros, UserId
from durable_agents.domain.permissions import Call, ConditionError, Policy, Ruling, decide
from tests.domain.strategies import checked

NOW = datetime(2026, 11, 20, 17, 5, 9, tzinfo=UTC)
BASE: dict[str, object] = {
    "tool": "refund", "resource": "order:A-1", "role": "staff", "roles": ["clerks", "staff"], "user": "ann", "tenant": "acme",
    "agent": "clerk", "risk": "write", "spent": 1.25, "calls": 3, "now": NOW,
}  # fmt: skip


class Colour(StrEnum):
    """A closed choice."""

    RED = "red"


class Line(BaseModel):
    """A part of an argument."""

    price: Decimal
    colour: Colour


def facts(**arguments: object) -> dict[str, object]:
    """What a condition can look at."""
    return {**BASE, "args": {name: plain(value) for name, value in arguments.items()}}


@pytest.mark.parametrize(
    ("condition", "arguments", "value"),
    [
        ("args.amount > 100.0", {"amount": Decimal("100.01")}, True),
        ("args.amount > 100.0", {"amount": Decimal("100.00")}, False),
        ("args.amount > 100", {"amount": Decimal("100.01")}, True),
        ("args.amount > 100", {"amount": Decimal(100)}, False),
        ("args.amount > 100.0", {"amount": 101}, True),
        ("args.amount >= 0.1", {"amount": Decimal("0.1")}, True),
        ("args.amount == 250.0", {"amount": Decimal("250.00")}, True),
        ("args.amount > 100.0", {"amount": Decimal("1e30")}, True),
        ("args.order.startsWith('A-')", {"order": "A-1"}, True),
        ("args.order in ['A-1', 'A-2']", {"order": "A-3"}, False),
        ("args.order.matches('^A-[0-9]+$')", {"order": "A-1\nB"}, False),
        ("args.note == null", {"note": None}, True),
        ("has(args.note)", {}, False),
        ("has(args.note) && args.note == 'x'", {}, False),
        ("args.express == true", {"express": True}, True),
        ("args.lines.exists(l, l.price > 5.0)", {"lines": [Line(price=Decimal("5.01"), colour=Colour.RED)]}, True),
        ("args.lines.all(l, l.colour == 'red')", {"lines": [Line(price=Decimal(1), colour=Colour.RED)]}, True),
        ("size(args.lines) > 1", {"lines": [1]}, False),
        ("args.day < '2026-12-01'", {"day": date(2026, 11, 20)}, True),
        ("args.at.startsWith('2026-11-20T12')", {"at": datetime(2026, 11, 20, 12, tzinfo=UTC)}, True),
        ("args.wait <= 60.0", {"wait": timedelta(minutes=1)}, True),
        ("user == 'ann' && tenant == 'acme' && risk == 'write' && role == 'staff' && tool == 'refund'", {}, True),
        ("resource.startsWith('order:')", {}, True),
        ("'staff' in roles && !('bosses' in roles) && agent == 'clerk'", {}, True),
        ("spent > 1", {}, True),
        ("spent > 1.25", {}, False),
        ("spent + 1.0 >= 2.25", {}, True),
        ("calls >= 3 && calls < 4", {}, True),
        ("now.getHours() >= 9 && now.getHours() < 17", {}, False),
        ("now.getHours('-08:00') == 9 && now.getMinutes() == 5", {}, True),
        ("now.getDayOfWeek() == 5", {}, True),
        ("now.getDayOfWeek() in [0, 6]", {}, False),
        ("now < timestamp('2026-12-01T00:00:00Z')", {}, True),
        ("now - timestamp('2026-11-20T16:05:09Z') == duration('1h')", {}, True),
    ],
)
def test_a_condition_means_what_it_says(condition: str, arguments: dict[str, object], value: bool) -> None:
    """Amounts above all: a threshold that compares texts or cents lets a large refund through."""
    check_condition(condition)
    assert evaluate(condition, facts(**arguments)) is value


@checked
@given(st.decimals("0", "999999", places=2), st.decimals("0", "999999", places=2))
def test_amounts_compare_as_amounts(amount: Decimal, threshold: Decimal) -> None:
    """To the cent, whatever the binary fraction."""
    assert evaluate(f"args.amount > {float(threshold)!r}", facts(amount=amount)) is (amount > threshold)


@pytest.mark.parametrize(
    ("condition", "arguments"),
    [
        ("args.amuont > 100.0", {"amount": Decimal(5)}),
        ("args.amount > 100.0", {"amount": "500"}),
        ("args.amount > 100.0", {"amount": None}),
        ("args.amount > 100.0", {"amount": [500]}),
        ("1 / args.zero > 0", {"zero": 0}),
        ("args.list[5] == 1", {"list": [1]}),
        ("args.number + 1 > 0", {"number": 2**63 - 1}),
        ("args.number > 1", {"number": 2**70}),
        ("args.number > 1", {"number": -(2**70)}),
        ("args.text == 'x'", {"text": "\ud800"}),
        ("args.flag ? true : false", {"flag": "true"}),
        ("args.order.matches(args.pattern)", {"order": "A", "pattern": "("}),
        ("!args.text", {"text": "x"}),
        ("spent > args.text", {"text": "x"}),
        ("now.getHours(args.text) > 1", {"text": "Nowhere/Land"}),
    ],
)
def test_what_is_neither_true_nor_false_is_an_error(condition: str, arguments: dict[str, object]) -> None:
    """The library returns errors as values, and a value is truthy: read carelessly, a broken rule would allow."""
    check_condition(condition)
    with pytest.raises(ConditionError) as broken:
        evaluate(condition, facts(**arguments))
    assert "\n" not in str(broken.value)


@pytest.mark.parametrize("effect", ["allow", "deny", "ask"])
def test_a_condition_that_breaks_denies_in_the_end(effect: str) -> None:
    """The whole way: policy, real CEL, verdict. The looser rule below must not be reached."""
    ladders = {"l": {"rungs": [{"within": "1h"}]}}
    rule = {effect: "refund", "when": "args.amuont > 100.0"} | ({"ladder": "l"} if effect == "ask" else {})
    policy = Policy.model_validate({"rules": [rule, {"allow": "*"}], "ladders": ladders})
    call = Call(
        tool="refund", risk="write", resource="", arguments={"amount": 5.0}, user=UserId("ann"), tenant="acme",
        agent="clerk", spent_micros=Micros(0), calls=0, now=NOW,
    )  # fmt: skip
    verdict = decide(policy, digest("p"), call, evaluate)
    assert (verdict.ruling, verdict.rule) == (Ruling.DENY, 0)
    assert "amuont" in verdict.reason


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("args.flag", "gives DYN, not true or false"),
        ("1 + 1", "gives INT, not true or false"),
        ("'yes'", "gives STRING, not true or false"),
        ("tool", "gives STRING, not true or false"),
        ("[true]", "not true or false"),
        ("amount > 100.0", "undeclared reference to 'amount'"),
        ("tool == 1", "no matching overload"),
        ("calls > 'a'", "no matching overload"),
        ("roles == 'staff'", "no matching overload"),
        ("now > 17", "no matching overload"),
        ("confidence > 0.9", "undeclared reference to 'confidence'"),
        ("args.amount >", "Syntax error"),
        ("args.amount > 100.0; true", "Syntax error"),
        ("", "Syntax error"),
        ("__import__('os')", "undeclared reference"),
        ("tool.nothing()", "undeclared reference"),
        ("x\ny", "Syntax error"),
    ],
)
def test_a_condition_that_cannot_be_true_or_false_is_refused_at_load(condition: str, reason: str) -> None:
    """A worker that starts has only conditions that can decide."""
    with pytest.raises(ValueError, match=reason) as refused:
        check_condition(condition)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"condition {condition!r}")


def refusal_of(condition: str) -> str | None:
    """Why a condition is refused; anything but a ValueError escapes."""
    try:
        check_condition(condition)
    except ValueError as refused:
        return str(refused)
    return None


@checked
@given(st.text(max_size=30))
def test_no_condition_text_breaks_the_check(condition: str) -> None:
    """Whatever stands in a policy file is taken or refused in one line."""
    if (refused := refusal_of(condition)) is not None:
        assert "\n" not in refused


@pytest.mark.parametrize("text", ["a\x00b", "\u202e", "ü", "'", '"', "\\", "${x}", "x" * 100_000])
def test_a_text_is_only_a_text(text: str) -> None:
    """Arguments come from the model; none may be read as a part of the condition."""
    assert evaluate("args.text == args.same", facts(text=text, same=text))
    assert not evaluate("args.text == 'something else'", facts(text=text))
