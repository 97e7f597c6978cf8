"""What does a model call cost, and what is the most it can cost?

All amounts are integer micro-dollars; rates are micro-dollars per million tokens. A price is copied into the run when it is
admitted, so a price that changes later never changes a recorded cost.
"""

import json
import unicodedata
from decimal import Context, Decimal, Inexact, InvalidOperation

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from durable_agents.domain.compact import Compact
from durable_agents.domain.identifiers import Micros

MILLION = 1_000_000
_MICRO = Decimal("0.000001")
_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])
FRAMING_TOKENS_PER_MESSAGE = 16
"""Role markers and separators a provider adds around one message, several times what any of them uses."""
TOOLS_PROMPT_TOKENS = 1_000
"""The hidden instructions a provider adds when tools are offered (a few hundred tokens at Anthropic and OpenAI)."""


class Rates(BaseModel):
    """Micro-dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: int = Field(ge=0)
    cached_input: int = Field(ge=0)
    cache_write: int = Field(ge=0)
    output: int = Field(ge=0)


class PriceTier(BaseModel):
    """Rates that hold for the whole call once its input is larger than `above_input_tokens`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    above_input_tokens: int = Field(ge=0)
    rates: Rates


class Price(BaseModel):
    """A model's price as it was when the run was admitted. Tiers ascend; the first starts at 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tiers: tuple[PriceTier, ...] = Field(min_length=1)
    source: str
    """Where it comes from: `genai-prices <version>` or `agent.yaml`."""


class Usage(Compact):
    """Tokens of one answered call. `input_tokens` includes what was read from and written to a cache."""

    input_tokens: int = Field(ge=0, le=10**9, strict=True)
    cached_input_tokens: int = Field(default=0, ge=0, le=10**9, strict=True)
    cache_write_tokens: int = Field(default=0, ge=0, le=10**9, strict=True)
    output_tokens: int = Field(ge=0, le=10**9, strict=True)


class CallMaximum(BaseModel):
    """The most that one physical model call can use: a ceiling, not an estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cost_micros: Micros
    input_tokens: int
    output_tokens: int


def usd_to_micros(amount: Decimal) -> Micros:
    """Dollars to micro-dollars. Raises ValueError when the amount has more than six decimals, or is beyond all money."""
    try:
        exact = amount.quantize(_MICRO, context=_EXACT)
    except Inexact:
        raise ValueError(f"{str(amount)[:40]} is finer than a millionth of a dollar") from None
    except InvalidOperation:  # before anything is computed: the digits of 1e400000 alone take seconds
        raise ValueError(f"{str(amount)[:40]} is no amount of dollars") from None
    return Micros(int(exact.scaleb(6)))


def format_usd(micros: int) -> str:
    """`1234567` as `$1.234567`, at least two decimals."""
    whole, rest = divmod(abs(micros), MILLION)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}${whole}.{decimals}"


def cost(price: Price, usage: Usage) -> Micros:
    """What an answered call costs, rounded up to a whole micro-dollar."""
    rates = _rates_at(price, usage.input_tokens)
    plain = max(0, usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens)
    total = (
        plain * rates.input
        + usage.cached_input_tokens * rates.cached_input
        + usage.cache_write_tokens * rates.cache_write
        + usage.output_tokens * rates.output
    )
    return Micros(-(-total // MILLION))


def maximum(price: Price, input_tokens: int, max_output_tokens: int) -> CallMaximum:
    """The most a call with at most so many tokens can cost, whatever the cache does and whichever tier it falls into."""
    reachable = [tier.rates for tier in price.tiers if tier.above_input_tokens <= input_tokens]
    input_rate = max(max(rates.input, rates.cache_write, rates.cached_input) for rates in reachable)
    output_rate = max(rates.output for rates in reachable)
    total = input_tokens * input_rate + max_output_tokens * output_rate
    return CallMaximum(cost_micros=Micros(-(-total // MILLION)), input_tokens=input_tokens, output_tokens=max_output_tokens)


def most_tokens(value: JsonValue) -> int:
    """The most tokens a value can have in a request: one per UTF-8 byte of its JSON, with the spaces a provider may put into it.

    Of three spellings the longest counts, for some tokenizers normalise what they read (Anthropic's published one to NFKC), and
    there are characters that normal forms make longer, up to eleven times (U+FDFA). NFD is left out: no provider's is known to
    take it apart like that, and it would hold three times as much for Korean.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if text.isascii():
        return len(text)
    return max(len(form.encode()) for form in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text)))


def input_token_bound(counted_tokens: int, bytes_since: int, messages_since: int) -> int:
    """An upper bound of the next call's input tokens.

    What the provider counted for the previous call and its answer, plus one token per byte (`most_tokens`) added since: a
    byte-level tokenizer cannot produce more tokens than bytes. Framing is covered per message, hidden tool instructions once.
    """
    hidden = 0 if counted_tokens else TOOLS_PROMPT_TOKENS
    return counted_tokens + bytes_since + messages_since * FRAMING_TOKENS_PER_MESSAGE + hidden


def _rates_at(price: Price, input_tokens: int) -> Rates:
    reached = [tier.rates for tier in price.tiers if tier.above_input_tokens == 0 or tier.above_input_tokens < input_tokens]
    return reached[-1]
