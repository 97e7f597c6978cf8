"""Is a budget exact at its limit, and can nothing that is no amount become one?"""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from durable_agents.domain.budgets import (
    Budget,
    Elapsed,
    Limit,
    Spend,
    above,
    allowance,
    check_model_call,
    check_time,
    check_tool_calls,
    lowers,
    narrowed,
    raised,
)
from durable_agents.domain.identifiers import Micros
from durable_agents.domain.prices import CallMaximum
from durable_agents.domain.tools import describe_errors
from tests.domain.strategies import checked

NO_TIME = Elapsed(wall=timedelta(0), working=timedelta(0))
COUNTS = ("input_tokens", "output_tokens", "model_calls", "tool_calls", "turns")
TIMES = ("wall_time", "working_time")

limits = st.fixed_dictionaries(
    {},
    optional={
        "cost_usd": st.decimals(min_value=0, max_value=1_000_000, places=6),
        **{name: st.integers(min_value=0, max_value=10**12) for name in COUNTS},
        **{name: st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3660)) for name in TIMES},
    },
).map(Budget.model_validate)


def maximum(cost: int = 0, tokens_in: int = 0, tokens_out: int = 0) -> CallMaximum:
    """The most a call can use."""
    return CallMaximum(cost_micros=Micros(cost), input_tokens=tokens_in, output_tokens=tokens_out)


@checked
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**9))
def test_money_is_exact_at_the_limit(spent: int, unknown: int, needed: int, over: int) -> None:
    """The last micro-dollar may be spent and not one more: also what nobody knows the outcome of counts as spent."""
    spend = Spend(cost_micros=Micros(spent), unknown_micros=Micros(unknown))
    exact = Budget(cost_usd=Decimal(spent + unknown + needed).scaleb(-6))
    assert check_model_call(exact, spend, maximum(needed), NO_TIME) is None
    assert allowance(exact, spend) == needed
    refused = check_model_call(exact, spend, maximum(needed + over), NO_TIME)
    assert refused is not None
    assert refused.limit is Limit.COST


@pytest.mark.parametrize(
    ("limit", "used", "needed"),
    [
        ("input_tokens", {"input_tokens": 60}, maximum(tokens_in=40)),
        ("output_tokens", {"output_tokens": 60}, maximum(tokens_out=40)),
        ("model_calls", {"model_calls": 99}, maximum()),
        ("turns", {"turns": 99}, maximum()),
    ],
)
def test_every_count_is_exact_at_the_limit(limit: str, used: dict[str, int], needed: CallMaximum) -> None:
    """One call more than allowed is an overspend, one fewer a run that ends too early."""
    spend = Spend(**used)
    assert check_model_call(Budget.model_validate({limit: 100}), spend, needed, NO_TIME) is None
    refused = check_model_call(Budget.model_validate({limit: 99}), spend, needed, NO_TIME)
    assert refused is not None
    assert refused.limit == limit
    assert limit in refused.explanation
    assert "99" in refused.explanation


@checked
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 32))
def test_a_turns_tool_calls_begin_all_or_none(allowed: int, used: int, calls: int) -> None:
    """Half a turn would leave the model with results it cannot place."""
    verdict = check_tool_calls(Budget(tool_calls=allowed), Spend(tool_calls=used), calls, NO_TIME)
    assert (verdict is None) == (used + calls <= allowed)


@pytest.mark.parametrize("limit", list(Limit))
def test_zero_means_none_at_all(limit: Limit) -> None:
    """A limit of 0 that is read as `no limit` is the most expensive bug there is."""
    none = Budget.model_validate({limit.value: timedelta(0) if limit.value in TIMES else 0})
    needed = maximum(1, 1, 1)
    verdicts = [check_model_call(none, Spend(), needed, NO_TIME), check_tool_calls(none, Spend(), 1, NO_TIME)]
    assert limit in [verdict.limit for verdict in verdicts if verdict is not None]
    assert allowance(Budget(cost_usd=Decimal(0)), Spend()) == 0


def test_no_limit_is_unlimited() -> None:
    """Only what is written down limits a run."""
    enormous = Spend(cost_micros=Micros(10**15), input_tokens=10**15, model_calls=10**9, tool_calls=10**9, turns=10**9)
    ages = Elapsed(wall=timedelta(days=10**6), working=timedelta(days=10**6))
    assert check_model_call(Budget(), enormous, maximum(10**15, 10**15, 10**15), ages) is None
    assert check_tool_calls(Budget(), enormous, 32, ages) is None
    assert allowance(Budget(), enormous) is None


@pytest.mark.parametrize("limit", TIMES)
def test_time_is_over_when_it_is_used_up(limit: str) -> None:
    """At exactly the limit there is nothing left; a moment before, there is."""
    budget = Budget.model_validate({limit: timedelta(hours=1)})
    hour, almost = timedelta(hours=1), timedelta(hours=1) - timedelta(microseconds=1)
    verdict = check_time(budget, Elapsed(wall=hour, working=hour))
    assert verdict is not None
    assert verdict.limit == limit
    assert check_time(budget, Elapsed(wall=almost, working=almost)) is None
    other = {"wall": hour, "working": almost} if limit == "working_time" else {"wall": almost, "working": hour}
    assert check_time(budget, Elapsed(**other)) is None


NO_MONEY: list[Any] = [
    0.5, 1.0, float("nan"), float("inf"), True, False, "NaN", "sNaN", "Infinity", "-Infinity", "-0.01", -1, 2**63, "1e400",
    "1e999999", "1e400000", "1e-999999", "1000000.000001", "0.0000001", "0." + "9" * 40, "1." + "0" * 40 + "1", "9" * 100_000,
    "", "free", "0,50", "$5", "5 dollars", [], {}, b"5", Decimal("NaN"), Decimal("Infinity"), Decimal("1e999999"),
]  # fmt: skip
NO_COUNT: list[Any] = [0.0, 1.5, float("nan"), float("inf"), True, "5", "1e400", -1, 2**63, 10**12 + 1, [], Decimal(5)]
NO_LENGTH: list[Any] = [5, 1.5, True, float("nan"), "1e400", "P99999999999D", "PT1E400S", "-PT1S", "3661d", "soon", [], 2**63]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("cost_usd", value) for value in NO_MONEY),
        *((field, value) for field in COUNTS for value in NO_COUNT),
        *((field, value) for field in TIMES for value in NO_LENGTH),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_amount_is_refused_with_one_clear_line(field: str, value: object) -> None:
    """NaN passes every comparison, floats are not money, and an absurd number must not take seconds to be refused."""
    with pytest.raises(ValidationError) as refused:
        Budget.model_validate({field: value})
    line = describe_errors(refused.value)
    assert line.startswith(f"{field}: ")
    assert "\n" not in line
    assert len(line) < 200


WRITTEN: list[tuple[object, int]] = [
    ("0.50", 500_000), ("0.000001", 1), (3, 3_000_000), (Decimal(10**6), 10**12), ("1e-6", 1), ("-0", 0),
    ("2.5" + "0" * 60, 2_500_000),
]  # fmt: skip


@pytest.mark.parametrize(("value", "micros"), WRITTEN)
def test_money_is_taken_to_the_micro_dollar(value: object, micros: int) -> None:
    """Exactly what was written, whichever way it was written."""
    assert Budget.model_validate({"cost_usd": value}).cost_micros == micros


def test_an_unknown_limit_is_refused() -> None:
    """`cost` instead of `cost_usd` would be a run without a limit."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        Budget.model_validate({"cost": "0.50"})


@checked
@given(limits, limits)
def test_above_and_narrowed_keep_a_run_under_its_agents_ceiling(asked: Budget, ceiling: Budget) -> None:
    """A caller may narrow what the agent allows, never widen it; what the caller does not name stays the agent's."""
    if above(asked, ceiling) is not None:
        return
    terms = narrowed(asked, ceiling)
    for limit in Limit:
        wanted, most, got = (getattr(budget, limit.value) for budget in (asked, ceiling, terms))
        assert got == (most if wanted is None else wanted)
        assert most is None or got <= most


@checked
@given(limits, limits)
def test_a_raise_only_ever_raises(budget: Budget, new: Budget) -> None:
    """Whoever tops a run up must not cut another limit by mistake."""
    low = lowers(budget, new)
    after = raised(budget, new)
    for limit in Limit:
        was, asked, is_ = (getattr(each, limit.value) for each in (budget, new, after))
        assert is_ == (was if asked is None else asked)
        if low is None and asked is not None:
            assert is_ > was
    if low is not None:
        asked, was = getattr(new, low.value), getattr(budget, low.value)
        assert was is None or asked <= was


def test_above_and_lowers_name_the_first_limit() -> None:
    """The message must name the limit somebody can change."""
    ceiling = Budget(cost_usd=Decimal("1.00"), turns=10)
    assert above(Budget(cost_usd=Decimal("1.01"), turns=11), ceiling) is Limit.COST
    assert above(Budget(cost_usd=Decimal("1.00"), turns=11), ceiling) is Limit.TURNS
    assert above(Budget(cost_usd=Decimal("1.00"), turns=10, tool_calls=10**12), ceiling) is None
    assert narrowed(None, ceiling) is ceiling
    assert lowers(ceiling, Budget(turns=10)) is Limit.TURNS
    assert lowers(ceiling, Budget(tool_calls=5)) is Limit.TOOL_CALLS  # unlimited already
    assert lowers(ceiling, Budget(turns=11)) is None
