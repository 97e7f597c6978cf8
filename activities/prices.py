"""What does a model cost today, according to the price list inside the installed genai-prices?

No network: the list is the snapshot in the wheel. Only the price of plain text calls is taken: the standard tier, cache writes of
five minutes. Prices move with the package, so every price names its version.
"""

from decimal import ROUND_CEILING, Decimal

import genai_prices
from genai_prices.types import ModelPrice, TieredPrices

from durable_agents.domain.model_calls import Provider
from durable_agents.domain.prices import MILLION, Price, PriceTier, Rates


def price_of(provider: Provider, model: str) -> Price | None:
    """The model's price now, as integer micro-dollars per million tokens; None if the list has no price for its text."""
    listed = _listed(provider, model)
    if listed is None or listed.input_mtok is None or listed.output_mtok is None:
        return None
    tiers = tuple(PriceTier(above_input_tokens=start, rates=_rates(listed, start)) for start in _starts(listed))
    return Price(tiers=tiers, source=f"genai-prices {genai_prices.__version__}")


def model_known(provider: Provider, model: str) -> bool:
    """Whether the list knows the model, with a price or without."""
    return _listed(provider, model) is not None


def _listed(provider: Provider, model: str) -> ModelPrice | None:
    try:
        return genai_prices.calc_price(genai_prices.Usage(), model, provider_id=provider).model_price
    except LookupError:
        return None


def _starts(listed: ModelPrice) -> list[int]:
    rates = (listed.input_mtok, listed.cache_read_mtok, listed.cache_write_mtok, listed.output_mtok)
    return sorted({0} | {tier.start for rate in rates if isinstance(rate, TieredPrices) for tier in rate.tiers})


def _rates(listed: ModelPrice, start: int) -> Rates:
    """The rates above `start` input tokens. Cache traffic that has no rate of its own is ordinary input."""
    read, write = listed.cache_read_mtok, listed.cache_write_mtok
    return Rates(
        input=_micros(listed.input_mtok, start),
        cached_input=_micros(listed.input_mtok if read is None else read, start),
        cache_write=_micros(listed.input_mtok if write is None else write, start),
        output=_micros(listed.output_mtok, start),
    )


def _micros(rate: Decimal | TieredPrices | None, start: int) -> int:
    if isinstance(rate, TieredPrices):
        reached = [tier.price for tier in rate.tiers if tier.start <= start]
        rate = reached[-1] if reached else rate.base
    return int(((rate or Decimal(0)) * MILLION).to_integral_value(ROUND_CEILING))
