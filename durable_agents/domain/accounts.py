"""Whose money does a run spend, how much of it may it draw now, and when must somebody hear of it?

A run draws on four accounts at once: its user's, its agent's, its tenant's, and the one of everything together; each may have a
limit a run, a day and a month (UTC), in money and in tokens. All of them have room, or nothing is drawn. A run draws in tranches,
so that its accounts are written seldom, and returns what it did not use.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from enum import StrEnum
from typing import NamedTuple

from durable_agents.domain.prices import format_usd

EACH = "*"
"""The name under which each user or agent without a limit of its own finds one. No user and no agent is called so."""
TRANCHE_CALLS = 4
"""How many calls like the next one a tranche covers."""
SPARE_TRANCHES = 16
"""Below so many tranches of room, a run draws what its next call needs and no more: near a limit nothing may lie idle."""
THRESHOLDS = (50, 80, 100)
"""Percent of a limit at which people are told, once each."""
MOST = 10**15
"""A billion dollars, or as many tokens: whoever asks for more has mistyped."""


class Scope(StrEnum):
    """Whose account."""

    USER = "user"
    AGENT = "agent"
    TENANT = "tenant"
    ALL = "all"


class Period(StrEnum):
    """For how long a limit counts; days and months are UTC's."""

    RUN = "run"
    DAY = "day"
    MONTH = "month"


class Amount(NamedTuple):
    """Micro-dollars and tokens, always together."""

    micros: int
    tokens: int

    def plus(self, other: "Amount") -> "Amount":
        """Both together."""
        return Amount(self.micros + other.micros, self.tokens + other.tokens)

    def minus(self, other: "Amount") -> "Amount":
        """What is left; may be negative."""
        return Amount(self.micros - other.micros, self.tokens - other.tokens)

    def times(self, factor: int) -> "Amount":
        """So many times as much."""
        return Amount(self.micros * factor, self.tokens * factor)

    def covers(self, other: "Amount") -> bool:
        """Is it at least as much in both?"""
        return self.micros >= other.micros and self.tokens >= other.tokens

    def at_least(self, other: "Amount") -> "Amount":
        """The larger of each."""
        return Amount(max(self.micros, other.micros), max(self.tokens, other.tokens))


NOTHING = Amount(0, 0)


class AccountName(NamedTuple):
    """Which account, for which period; `starts` is the first day of it."""

    scope: Scope
    name: str
    period: Period
    starts: date

    def __str__(self) -> str:
        who = {Scope.TENANT: "the tenant", Scope.ALL: "everything together"}.get(self.scope, f"{self.scope} {self.name}")
        when = {Period.RUN: "in one run", Period.DAY: f"on {self.starts}", Period.MONTH: f"in {self.starts:%Y-%m}"}[self.period]
        return f"{who} {when}"


class Account(NamedTuple):
    """An account as it stands, locked."""

    name: AccountName
    drawn: Amount
    limit_micros: int | None
    limit_tokens: int | None

    def room_for(self, amount: Amount) -> bool:
        """Does it have so much left?"""
        after = self.drawn.plus(amount)
        return (amount.micros <= 0 or self.limit_micros is None or after.micros <= self.limit_micros) and (
            amount.tokens <= 0 or self.limit_tokens is None or after.tokens <= self.limit_tokens
        )

    def used_percent(self, drawn: Amount) -> int:
        """How much of its limit would be used, rounded down, if so much were drawn; 0 without a limit."""
        shares = [
            100 if limit == 0 else used * 100 // limit
            for used, limit in ((drawn.micros, self.limit_micros), (drawn.tokens, self.limit_tokens))
            if limit is not None and (limit > 0 or used > 0)
        ]
        return max(shares, default=0)


class Crossing(NamedTuple):
    """An account has reached so many percent of its limit."""

    account: Account
    percent: int


class Draw(NamedTuple):
    """What is drawn from every account."""

    amount: Amount
    crossings: tuple[Crossing, ...]
    used_percent: int
    """How much of the account that is nearest its limit is used now."""


class NoRoom(NamedTuple):
    """The first account that has no room for what is needed."""

    account: Account
    needed: Amount

    @property
    def explanation(self) -> str:
        """One line for people: whose limit, what is used, what the next step would need."""
        account = self.account
        parts = []
        if not account.room_for(Amount(self.needed.micros, 0)):
            used, limit, most = account.drawn.micros, account.limit_micros or 0, self.needed.micros
            parts.append(f"{format_usd(used)} of {format_usd(limit)} used, the next step needs up to {format_usd(most)} more")
        if not account.room_for(Amount(0, self.needed.tokens)):
            used, limit, most = account.drawn.tokens, account.limit_tokens or 0, self.needed.tokens
            parts.append(f"{used:,} of {limit:,} tokens used, the next step needs up to {most:,} more")
        return f"{account.name}: {'; '.join(parts)}"

    @property
    def crossings(self) -> tuple[Crossing, ...]:
        """Whoever is refused for want of room stands at the limit; of a limit a run, the run itself says so."""
        return () if self.account.name.period is Period.RUN else (Crossing(self.account, 100),)


def draw(accounts: Sequence[Account], needed: Amount, wanted: Amount) -> Draw | NoRoom:
    """How much to draw, at least `needed`, at most `wanted`, from all accounts alike.

    Near any limit it is `needed` alone: what one run keeps for later would be missing to another now.
    """
    for account in accounts:
        if not account.room_for(needed):
            return NoRoom(account, needed)
    tranche = wanted.at_least(needed)
    plenty = all(account.room_for(tranche.times(SPARE_TRANCHES)) for account in accounts)
    amount = tranche if plenty else needed
    used = max((account.used_percent(account.drawn.plus(amount)) for account in accounts), default=0)
    return Draw(amount, tuple(_crossings(accounts, amount)), used)


def wanted(call: Amount, allowance: int | None) -> Amount:
    """What a run would like to keep for calls like this one: never more money than it may spend at all."""
    tranche = call.times(TRANCHE_CALLS)
    return tranche if allowance is None else Amount(min(tranche.micros, allowance), tranche.tokens)


def windows(user: str, agent: str, day: date) -> tuple[AccountName, ...]:
    """The accounts of a tenant that a run draws on, in the order in which they are locked."""
    owners = ((Scope.AGENT, agent), (Scope.TENANT, ""), (Scope.USER, user))
    return tuple(name for scope, owner in owners for name in of_periods(scope, owner, day))


def of_periods(scope: Scope, name: str, day: date) -> tuple[AccountName, AccountName]:
    """An account on a day, and in the month of that day."""
    return AccountName(scope, name, Period.DAY, day), AccountName(scope, name, Period.MONTH, day.replace(day=1))


def _crossings(accounts: Iterable[Account], amount: Amount) -> Iterator[Crossing]:
    for account in (one for one in accounts if one.name.period is not Period.RUN):
        before, after = account.used_percent(account.drawn), account.used_percent(account.drawn.plus(amount))
        yield from (Crossing(account, percent) for percent in THRESHOLDS if before < percent <= after)
