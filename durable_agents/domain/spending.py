"""What was spent on what, what does a finished task cost, and which runs spend far more than their agent usually does?

Amounts are those of the physical requests to providers, so every request stands in exactly one group and sums are exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from durable_agents.domain.identifiers import Micros, RunId, TenantId

NORM_OF = 200
"""How many of an agent's last ended runs say what is normal (their median)."""
NORM_FROM = 20
"""With fewer ended runs nothing is normal yet."""
FACTOR = 5
"""A run is anomalous above so many times the norm."""
LEAST_COST = Micros(10_000)
"""Below one cent a multiple of the usual cost is nobody's worry."""
LEAST_TOKENS = 10_000
"""Below so many tokens neither is a multiple of the usual tokens."""
OTHERS = "(others)"
"""The group of all groups that a top list leaves out."""


class Dimension(StrEnum):
    """What spending can be grouped by."""

    TENANT = "tenant"
    USER = "user"
    AGENT = "agent"
    VERSION = "version"
    RUN = "run"
    STEP = "step"
    """The turn; `(no answer)` while the call has no outcome."""
    MODEL = "model"
    PROVIDER = "provider"
    TOOL = "tool"
    """The tools that the call's answer asked for, several as `a+b`; `(answer)` for none, `(no answer)` for a call without one."""
    DAY = "day"
    """In UTC, of the moment the request left."""

    @property
    def is_ordered(self) -> bool:
        """Has it an order of its own, that a list is better read in?"""
        return self in (Dimension.DAY, Dimension.STEP)


@dataclass(frozen=True)
class Amounts:
    """What can be added up exactly over any groups. Money in micro-dollars."""

    cost_micros: int = 0
    """Settled, at most what was held."""
    unknown_micros: int = 0
    """Still held: requests under way, and those whose outcome nobody knows."""
    overrun_micros: int = 0
    """What providers counted beyond the hold; not part of the cost."""
    calls: int = 0
    """Physical requests, those included that brought nothing."""
    input_tokens: int = 0
    """Cached ones included."""
    cached_input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        """Both together."""
        return Amounts(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """In the order of the fields."""
        return (self.cost_micros, self.unknown_micros, self.overrun_micros, self.calls, self.input_tokens,
                self.cached_input_tokens, self.output_tokens)  # fmt: skip


@dataclass(frozen=True)
class Spending:
    """One group, or everything (then `group` is empty)."""

    group: tuple[str, ...]
    """One name for each dimension."""
    amounts: Amounts
    runs: int | None
    """Distinct runs that made a request here; None where groups were thrown together, for a run can be in several."""
    completed: int | None
    """Those of them that ended completed or degraded; a run that stood in for another is no task of its own."""

    @property
    def per_completed_micros(self) -> Micros | None:
        """What a completed task costs: all that was billed here, failed runs included, over the completed ones; rounded up."""
        return per_completed(self.amounts.cost_micros + self.amounts.overrun_micros, self.completed)


def per_completed(cost_micros: int, completed: int | None) -> Micros | None:
    """Cost over tasks, rounded up to a whole micro-dollar; None when no task was completed."""
    return Micros(-(-cost_micros // completed)) if completed else None


def dimensions(text: str) -> tuple[Dimension, ...]:
    """`user,model` as dimensions.

    Raises:
        ValueError: one is none, or stands there twice; the message says which.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in set(Dimension):
            raise ValueError(f"{name[:40]!r} is nothing to group by: use {', '.join(Dimension)}")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands there twice: name each once")
    return tuple(Dimension(name) for name in names)


def ranked(groups: Iterable[Spending], by: Sequence[Dimension], top: int | None = None) -> list[Spending]:
    """Dearest first, or in the order of days and steps when those come first. With `top` the rest is one group, `(others)`."""
    dearest = sorted(groups, key=_dearest_first)
    if top is not None and len(dearest) > top:
        return [*dearest[:top], _together(dearest[top:], len(by))]
    if top is None and by and by[0].is_ordered:
        return sorted(dearest, key=lambda one: _natural(one.group[0]))
    return dearest


def total(groups: Iterable[Spending]) -> Amounts:
    """The sum of all groups."""
    summed = Amounts()
    for one in groups:
        summed = summed.plus(one.amounts)
    return summed


def _together(rest: Sequence[Spending], width: int) -> Spending:
    return Spending((OTHERS, *[""] * (width - 1)), total(rest), None, None)


def _dearest_first(one: Spending) -> tuple[int, int, tuple[tuple[int, str], ...]]:
    amounts = one.amounts
    spent = amounts.cost_micros + amounts.overrun_micros
    return -spent, -amounts.unknown_micros, tuple(_natural(name) for name in one.group)


def _natural(name: str) -> tuple[int, str]:
    """Step 10 comes after step 9; days are all of one length."""
    return len(name), name


@dataclass(frozen=True)
class RunSpending:
    """What one run has cost, overrun included, and used so far. Tokens are input and output together."""

    tenant: TenantId
    run: RunId
    agent: str
    user: str
    status: str
    cost_micros: int
    tokens: int


@dataclass(frozen=True)
class Norm:
    """What runs of an agent usually cost and use."""

    cost_micros: int
    tokens: int
    runs: int
    """How many say so."""


@dataclass(frozen=True)
class Anomaly:
    """A run far above its agent's norm, in cost or in tokens."""

    spent: RunSpending
    norm: Norm
    by_cost: bool
    by_tokens: bool

    @property
    def cost_times_tenths(self) -> int | None:
        """How many times the usual cost, in tenths, rounded down; None when runs of this agent usually cost nothing."""
        return _tenths(self.spent.cost_micros, self.norm.cost_micros)

    @property
    def tokens_times_tenths(self) -> int | None:
        """How many times the usual tokens, in tenths, rounded down."""
        return _tenths(self.spent.tokens, self.norm.tokens)


def norm(ended: Sequence[tuple[int, int]]) -> Norm | None:
    """The medians of the cost and the tokens of an agent's ended runs, newest first; None while there are too few.

    Of an even number the lower middle one: an amount that occurred, and an integer.
    """
    latest = ended[:NORM_OF]
    if len(latest) < NORM_FROM:
        return None
    middle = (len(latest) - 1) // 2
    costs, tokens = sorted(cost for cost, _ in latest), sorted(tokens for _, tokens in latest)
    return Norm(costs[middle], tokens[middle], len(latest))


def anomaly(spent: RunSpending, usual: Norm | None, factor: int = FACTOR, least: Micros = LEAST_COST) -> Anomaly | None:
    """Is this run far above its agent's norm? Exactly `factor` times is not above."""
    if usual is None:
        return None
    by_cost = spent.cost_micros > factor * usual.cost_micros and spent.cost_micros >= least
    by_tokens = spent.tokens > factor * usual.tokens and spent.tokens >= LEAST_TOKENS
    return Anomaly(spent, usual, by_cost, by_tokens) if by_cost or by_tokens else None


def worst_first(found: Iterable[Anomaly]) -> list[Anomaly]:
    """By cost, then tokens."""
    return sorted(found, key=lambda one: (-one.spent.cost_micros, -one.spent.tokens, one.spent.run))


def _tenths(value: int, usual: int) -> int | None:
    return value * 10 // usual if usual else None
