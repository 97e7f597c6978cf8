"""How much may a run use, how much has it used, and may the next step begin?"""

from datetime import timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator

from durable_agents.domain.durations import Duration
from durable_agents.domain.identifiers import Micros
from durable_agents.domain.prices import CallMaximum, format_usd, usd_to_micros

MAX_COST_USD = Decimal(1_000_000)
MAX_COUNT = 10**12
MAX_TIME = timedelta(days=3660)


class Limit(StrEnum):
    """The things a run's budget limits, named as the fields of `Budget`."""

    COST = "cost_usd"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    MODEL_CALLS = "model_calls"
    TOOL_CALLS = "tool_calls"
    TURNS = "turns"
    WALL_TIME = "wall_time"
    WORKING_TIME = "working_time"


class Budget(BaseModel):
    """What a run may use. An absent limit is unlimited, 0 means none at all.

    `cost_usd` takes a string, an integer or a Decimal (never a float: 0.1 + 0.2 is not money), times a `timedelta` or ISO
    8601 duration. `working_time` stands still while the run waits for a human, `wall_time` does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    cost_usd: Decimal | None = Field(default=None, ge=0, le=MAX_COST_USD)
    input_tokens: int | None = Field(default=None, ge=0, le=MAX_COUNT, strict=True)
    output_tokens: int | None = Field(default=None, ge=0, le=MAX_COUNT, strict=True)
    model_calls: int | None = Field(default=None, ge=0, le=MAX_COUNT, strict=True)
    tool_calls: int | None = Field(default=None, ge=0, le=MAX_COUNT, strict=True)
    turns: int | None = Field(default=None, ge=0, le=MAX_COUNT, strict=True)
    wall_time: Duration | None = Field(default=None, ge=timedelta(0), le=MAX_TIME)
    working_time: Duration | None = Field(default=None, ge=timedelta(0), le=MAX_TIME)

    @field_validator("cost_usd", mode="before")
    @classmethod
    def _exact_money(cls, value: object) -> object:
        if value is None or isinstance(value, Decimal):
            exact = value
        elif isinstance(value, (int, str)) and not isinstance(value, bool):
            try:
                exact = Decimal(value)
            except InvalidOperation:
                raise ValueError(f'{str(value)[:40]!r} is no amount of dollars, write it like "0.50"') from None
        else:
            raise ValueError(f'write the amount as a string like "0.50", not as {type(value).__name__} {str(value)[:40]!r}')
        if exact is not None and exact.is_finite():
            usd_to_micros(exact)
        return exact

    @property
    def cost_micros(self) -> Micros | None:
        """The money limit in micro-dollars."""
        return None if self.cost_usd is None else usd_to_micros(self.cost_usd)


class Spend(BaseModel):
    """What a run has used so far. `unknown_micros` is money held for attempts whose outcome nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    cost_micros: Micros = Micros(0)
    unknown_micros: Micros = Micros(0)
    overrun_micros: Micros = Micros(0)
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    turns: int = 0

    @property
    def committed_micros(self) -> Micros:
        """Everything that counts against the limit: known cost plus what may have been billed."""
        return Micros(self.cost_micros + self.unknown_micros)

    def plus(self, **used: int) -> "Spend":
        """A copy with the named counters increased."""
        return self.model_copy(update={name: getattr(self, name) + amount for name, amount in used.items()})


class LimitReached(BaseModel):
    """Why a step may not begin."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    limit: Limit
    allowed: str
    used: str
    needed: str

    @property
    def explanation(self) -> str:
        """One line for people: which limit, what is used, what the next step would need."""
        return f"{self.limit}: {self.used} of {self.allowed} used, the next step needs up to {self.needed}"


class Elapsed(BaseModel):
    """How long a run has lived, and how long it has worked (without waiting for humans)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    wall: timedelta
    working: timedelta


def allowance(budget: Budget, spend: Spend) -> Micros | None:
    """The money left for the next logical call and all its physical attempts; None is unlimited."""
    if budget.cost_micros is None:
        return None
    return Micros(max(0, budget.cost_micros - spend.committed_micros))


def used_percent(budget: Budget, spend: Spend) -> int:
    """How much of the money or the tokens is used, of whichever is nearer its end; 0 without limits."""
    pairs = (
        (spend.committed_micros, budget.cost_micros),
        (spend.input_tokens, budget.input_tokens),
        (spend.output_tokens, budget.output_tokens),
    )
    return max((100 if limit == 0 else used * 100 // limit for used, limit in pairs if limit is not None), default=0)


def check_model_call(budget: Budget, spend: Spend, needed: CallMaximum, elapsed: Elapsed) -> LimitReached | None:
    """May a model call that needs at most `needed` begin? The first limit in its way, or None."""
    if budget.cost_micros is not None and spend.committed_micros + needed.cost_micros > budget.cost_micros:
        return LimitReached(
            limit=Limit.COST,
            allowed=format_usd(budget.cost_micros),
            used=format_usd(spend.committed_micros),
            needed=format_usd(needed.cost_micros),
        )
    return (
        _check_count(Limit.INPUT_TOKENS, budget.input_tokens, spend.input_tokens, needed.input_tokens)
        or _check_count(Limit.OUTPUT_TOKENS, budget.output_tokens, spend.output_tokens, needed.output_tokens)
        or _check_count(Limit.MODEL_CALLS, budget.model_calls, spend.model_calls, 1)
        or _check_count(Limit.TURNS, budget.turns, spend.turns, 1)
        or check_time(budget, elapsed)
    )


def check_tool_calls(budget: Budget, spend: Spend, calls: int, elapsed: Elapsed) -> LimitReached | None:
    """May a turn's `calls` tool calls begin, all of them? The first limit in their way, or None."""
    return _check_count(Limit.TOOL_CALLS, budget.tool_calls, spend.tool_calls, calls) or check_time(budget, elapsed)


def check_time(budget: Budget, elapsed: Elapsed) -> LimitReached | None:
    """Is there time left at all?"""
    return _check_duration(Limit.WALL_TIME, budget.wall_time, elapsed.wall) or _check_duration(
        Limit.WORKING_TIME, budget.working_time, elapsed.working
    )


def too_late(budget: Budget, elapsed: Elapsed, needed: str) -> LimitReached | None:
    """The time limit that will be reached first, when what is needed does not fit before it; None without one."""
    limits = ((Limit.WALL_TIME, budget.wall_time, elapsed.wall), (Limit.WORKING_TIME, budget.working_time, elapsed.working))
    left = [(allowed - used, limit, allowed, used) for limit, allowed, used in limits if allowed is not None]
    if not left:
        return None
    _, limit, allowed, used = min(left)
    return LimitReached(limit=limit, allowed=str(allowed), used=str(used), needed=needed)


def above(asked: Budget, ceiling: Budget) -> Limit | None:
    """The first limit in which `asked` is looser than `ceiling`; absent in `asked` means: take the ceiling's."""
    for limit in Limit:
        wanted, most = getattr(asked, limit.value), getattr(ceiling, limit.value)
        if wanted is not None and most is not None and wanted > most:
            return limit
    return None


def narrowed(asked: Budget | None, ceiling: Budget) -> Budget:
    """`ceiling` with every limit that `asked` names."""
    return ceiling if asked is None else ceiling.model_copy(update=_named(asked))


def stricter(one: Budget, other: Budget) -> Budget:
    """The lower of each pair of limits; a limit only one of them has is that one's."""
    lower = {}
    for limit in Limit:
        values = [value for value in (getattr(one, limit.value), getattr(other, limit.value)) if value is not None]
        lower[limit.value] = min(values) if values else None
    return Budget(**lower)


def left(budget: Budget, spend: Spend, elapsed: Elapsed) -> Budget:
    """What is left of a budget, as a budget."""
    money = None if budget.cost_micros is None else Decimal(max(0, budget.cost_micros - spend.committed_micros)) / 1_000_000
    return Budget(
        cost_usd=money,
        input_tokens=_count_left(budget.input_tokens, spend.input_tokens),
        output_tokens=_count_left(budget.output_tokens, spend.output_tokens),
        model_calls=_count_left(budget.model_calls, spend.model_calls),
        tool_calls=_count_left(budget.tool_calls, spend.tool_calls),
        turns=_count_left(budget.turns, spend.turns),
        wall_time=None if budget.wall_time is None else max(timedelta(0), budget.wall_time - elapsed.wall),
        working_time=None if budget.working_time is None else max(timedelta(0), budget.working_time - elapsed.working),
    )


def _count_left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def together(one: Spend, other: Spend) -> Spend:
    """What two runs have used."""
    return one.plus(**other.model_dump())


def raised(budget: Budget, new: Budget) -> Budget:
    """`budget` with the limits that `new` names. `lowers` tells beforehand whether that is a raise."""
    return budget.model_copy(update=_named(new))


def lowers(budget: Budget, new: Budget) -> Limit | None:
    """The first limit that `new` would not raise: it is lower, equal, or unlimited already."""
    for name, value in _named(new).items():
        current = getattr(budget, name)
        if current is None or value <= current:
            return Limit(name)
    return None


def _named(budget: Budget) -> dict[str, Decimal | int | timedelta]:
    return {limit.value: getattr(budget, limit.value) for limit in Limit if getattr(budget, limit.value) is not None}


def _check_count(limit: Limit, allowed: int | None, used: int, needed: int) -> LimitReached | None:
    if allowed is None or used + needed <= allowed:
        return None
    return LimitReached(limit=limit, allowed=f"{allowed:,}", used=f"{used:,}", needed=f"{needed:,}")


def _check_duration(limit: Limit, allowed: timedelta | None, used: timedelta) -> LimitReached | None:
    if allowed is None or used < allowed:
        return None
    return LimitReached(limit=limit, allowed=str(allowed), used=str(used), needed="more time")
