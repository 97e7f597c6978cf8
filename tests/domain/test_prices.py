"""Is the cost of a call right to the micro-dollar, and is its maximum really one?"""

import json
import unicodedata
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from durable_agents.domain.identifiers import Micros
from durable_agents.domain.model_calls import ContextSize, ModelAnswer, StopReason
from durable_agents.domain.prices import (
    Price,
    PriceTier,
    Rates,
    Usage,
    cost,
    format_usd,
    input_token_bound,
    maximum,
    most_tokens,
    usd_to_micros,
)

UNHURRIED = settings(deadline=None)
"""A busy machine is no finding."""

_RATE = st.integers(0, 200_000_000)
_RATES = st.builds(Rates, input=_RATE, cached_input=_RATE, cache_write=_RATE, output=_RATE)


def _tiers(starts: list[int], rates: list[Rates]) -> Price:
    pairs = zip([0, *sorted(starts)], rates, strict=False)
    return Price(tiers=tuple(PriceTier(above_input_tokens=start, rates=rate) for start, rate in pairs), source="test")


_PRICES = st.builds(
    _tiers,
    st.lists(st.integers(1, 500_000), min_size=2, max_size=2, unique=True),
    st.lists(_RATES, min_size=3, max_size=3),
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Usages as providers count them: what the cache did is part of the input."""
    total = draw(st.integers(0, 1_000_000))
    cached = draw(st.integers(0, total))
    written = draw(st.integers(0, total - cached))
    return Usage(
        input_tokens=total,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=draw(st.integers(0, 200_000)),
    )


@UNHURRIED
@given(price=_PRICES, usage=usages(), spare_input=st.integers(0, 10_000), spare_output=st.integers(0, 10_000))
def test_no_call_costs_more_than_its_maximum(price: Price, usage: Usage, spare_input: int, spare_output: int) -> None:
    """The hold is taken from the maximum before the request leaves; a call that costs more is an overspent budget."""
    most = maximum(price, usage.input_tokens + spare_input, usage.output_tokens + spare_output)
    assert cost(price, usage) <= most.cost_micros


def test_a_fraction_of_a_micro_dollar_is_rounded_up() -> None:
    """Rounding down a million times is a dollar that was spent and never booked."""
    rates = Rates(input=1, cached_input=1, cache_write=1, output=1)
    price = Price(tiers=(PriceTier(above_input_tokens=0, rates=rates),), source="test")
    assert cost(price, Usage(input_tokens=1, output_tokens=0)) == 1


def test_a_tier_begins_above_its_threshold_and_holds_for_every_token() -> None:
    """Providers price the whole call by the tier of its input; one token too early or late is a wrong bill."""
    low = Rates(input=1_000_000, cached_input=0, cache_write=0, output=0)
    high = Rates(input=2_000_000, cached_input=0, cache_write=0, output=0)
    price = _tiers([200], [low, high])
    assert cost(price, Usage(input_tokens=200, output_tokens=0)) == 200
    assert cost(price, Usage(input_tokens=201, output_tokens=0)) == 402


@pytest.mark.parametrize("count", [-1, 10**9 + 1, 10**30, 1.0, float("nan"), "7", True, None])
def test_a_count_that_cannot_be_is_no_usage(count: object) -> None:
    """NaN passes every budget check, because every comparison with it is false."""
    with pytest.raises(ValidationError):
        Usage.model_validate({"input_tokens": count, "output_tokens": 1})


def test_the_input_bound_grows_by_a_token_a_byte() -> None:
    """A byte-level tokenizer cannot make more tokens than there are bytes; less would be an estimate, not a ceiling."""
    assert input_token_bound(1000, 10, 1) - input_token_bound(1000, 0, 1) == 10
    assert input_token_bound(0, 0, 0) > 0


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
    ),
    max_leaves=20,
)


@UNHURRIED
@given(value=_JSON)
@example("\ufdfa" * 1000)
@example(["\ufdfa\U0001d1bd", {"a": [1, 2, 3]}])
def test_no_spelling_of_a_value_has_more_bytes_than_it_may_have_tokens(value: JsonValue) -> None:
    """Anthropic's published tokenizer reads NFKC: U+FDFA has 3 bytes and becomes 15 tokens, five times a hold of bytes."""
    for separators in ((",", ":"), (", ", ": ")):
        text = json.dumps(value, ensure_ascii=False, separators=separators)
        for spelt in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text)):
            assert len(spelt.encode()) <= most_tokens(value)


def test_what_is_counted_by_bytes_stays_tight_for_every_script() -> None:
    """A bound that holds three times as much for Korean or German would stop their runs at a third of the budget."""
    for text in ("plain English", "Größe und Übermaß", "订单已发货", "환불을 요청했습니다", "धनवापसी"):
        assert most_tokens(text) == len(text.encode()) + 2


def test_an_answer_that_is_written_anew_as_input_stays_below_the_bound() -> None:
    """A model writes `1e5`, and 100000.0 is sent back: what was counted as output is no bound of the same answer as input."""
    answer = ModelAnswer(
        stop=StopReason.TOOL_CALLS,
        text="",
        calls=(),
        usage=Usage(input_tokens=1_000, output_tokens=300),
        cost_micros=Micros(0),
        message_bytes=900,
        head="",
        model="m",
    )
    context = ContextSize().plus(5_000).plus(answer.message_bytes).counted(0, answer.counted_tokens)
    assert context.bound(0) >= 1_000 + 900
    thoughtful = answer.model_copy(update={"usage": Usage(input_tokens=1_000, output_tokens=4_000)})
    assert thoughtful.counted_tokens == 5_000, "reasoning that is sent back counts as it was counted"


def test_money_is_exact_or_refused() -> None:
    """A budget written with seven decimals was mistyped; guessing which way is not ours."""
    assert usd_to_micros(Decimal("0.50")) == 500_000
    with pytest.raises(ValueError, match="finer"):
        usd_to_micros(Decimal("0.0000001"))


@pytest.mark.parametrize(("micros", "text"), [(0, "$0.00"), (1_234_567, "$1.234567"), (500_000, "$0.50"), (-1, "-$0.000001")])
def test_money_is_shown_to_the_last_micro_dollar(micros: int, text: str) -> None:
    """What a person reads is what is in the books."""
    assert format_usd(micros) == text
