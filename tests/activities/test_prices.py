"""Do our integer prices cost exactly what the price list says?"""

from decimal import ROUND_CEILING

import genai_prices
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.prices import model_known, price_of
from durable_agents.domain.model_calls import Provider
from durable_agents.domain.prices import Usage, cost

UNHURRIED = settings(deadline=None)
"""A busy machine is no finding."""

MODELS: tuple[tuple[Provider, str], ...] = (
    ("anthropic", "claude-haiku-5-5"),
    ("anthropic", "claude-opus-5-5"),
    ("anthropic", "claude-sonnet-5-5"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
    ("openai", "gpt-6.1-sol"),
    ("openai", "gpt-6-luna"),
    ("openai", "gpt-6-astra"),
    ("openai", "gpt-5.4-pro"),
    ("openai", "gpt-5.2-pro"),
    ("openai", "gpt-5"),
    ("openai", "o3"),
)


@UNHURRIED
@given(data=st.data(), of=st.sampled_from(MODELS))
def test_a_call_costs_what_the_price_list_says_to_the_micro_dollar(data: st.DataObject, of: tuple[Provider, str]) -> None:
    """The ledger must not be below the provider's bill, tiers and cache traffic included."""
    total = data.draw(st.one_of(st.integers(0, 1_000_000), st.integers(199_998, 200_002), st.integers(271_998, 272_002)))
    cached = data.draw(st.integers(0, total))
    written = data.draw(st.integers(0, total - cached))
    output = data.draw(st.integers(0, 128_000))
    provider, model = of
    price = price_of(provider, model)
    assert price is not None
    ours = cost(
        price,
        Usage(input_tokens=total, cached_input_tokens=cached, cache_write_tokens=written, output_tokens=output),
    )
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=total, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output),
        model,
        provider_id=provider,
    )
    assert ours == (theirs.total_price * 1_000_000).to_integral_value(ROUND_CEILING)


def test_a_price_names_where_it_comes_from() -> None:
    """Prices move with the package; a recorded cost must be explainable a year later."""
    price = price_of("anthropic", "claude-opus-5-5")
    assert price is not None
    assert price.source == f"genai-prices {genai_prices.__version__}"
    assert [tier.above_input_tokens for tier in price.tiers] == [0]


def test_a_dearer_tier_starts_where_the_list_says() -> None:
    """Long conversations cost twice as much; a budget that does not know holds half of what it needs."""
    price = price_of("openai", "gpt-6.1-sol")
    assert price is not None
    assert [tier.above_input_tokens for tier in price.tiers] == [0, 272_000]
    assert price.tiers[1].rates.input > price.tiers[0].rates.input


@pytest.mark.parametrize("model", ["claude-imaginary-9", "", "gpt-nonsense"])
def test_an_unknown_model_has_no_price_rather_than_none_to_pay(model: str) -> None:
    """Zero for unknown would let a run spend without limit."""
    assert price_of("anthropic", model) is None
    assert not model_known("anthropic", model)


def test_a_model_without_a_price_for_text_is_known_and_has_no_price() -> None:
    """Half a price is none: whisper is paid by the hour, an embedding model has no output."""
    assert model_known("openai", "whisper-1")
    assert price_of("openai", "whisper-1") is None
    assert price_of("openai", "text-embedding-3-small") is None
