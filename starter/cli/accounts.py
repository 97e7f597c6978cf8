"""What may a user, an agent, a tenant and everything together spend, what is used of it, and how does an operator change it?

Straight in the database on which runs draw, so a change holds from the next request on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pydantic import JsonValue, TypeAdapter, ValidationError

from activities import account_limits, ledger
from activities.account_limits import Limit, Standing
from durable_agents.domain.accounts import EACH, Account, AccountName, Amount, Period, Scope
from durable_agents.domain.identifiers import Key, TenantId
from durable_agents.domain.prices import format_usd
from durable_agents.domain.provider_gates import SYSTEM_TENANT
from starter.cli.database import open_database
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_actor, read_count, read_name, read_usd
from starter.cli.options import Session
from starter.cli.screen import Screen

_BUSY = "the database takes too long: look at `accounts` for what was done, and run the command again"
_HEADINGS = ("scope", "name", "period", "limit", "drawn", "token limit", "tokens drawn", "used", "changed by")


@dataclass(frozen=True)
class Which:
    """The account that is meant, and whose."""

    tenant: TenantId
    scope: Scope
    name: str
    period: Period

    @property
    def home(self) -> TenantId:
        """Where its rows stand."""
        return account_limits.home(self.tenant, self.scope)

    def __str__(self) -> str:
        who = {Scope.TENANT: f"tenant {self.tenant}", Scope.ALL: "everything together"}
        named = "each" if self.name == EACH else self.name
        return f"{who.get(self.scope, f'{self.scope} {named} of tenant {self.tenant}')} a {self.period}"


def read_which(words: Sequence[str], tenant: str | None) -> Which:
    """An account as it was typed: SCOPE [NAME] PERIOD.

    Raises:
        CliError: there can be no such account.
    """
    first, last = words[0], words[-1]
    if first not in set(Scope):
        raise CliError(f"{first[:40]!r} is no scope: use {', '.join(Scope)}")
    scope, named = Scope(first), first in (Scope.USER, Scope.AGENT)
    if len(words) != (3 if named else 2):
        wanted = f"{scope} NAME PERIOD, with '*' in quotes for each {scope}" if named else f"{scope} PERIOD, without a name"
        raise CliError(f"{len(words)} words for an account: write {wanted}")
    if last not in set(Period):
        raise CliError(f"{last[:40]!r} is no period: use {', '.join(Period)}")
    if scope is Scope.ALL and tenant is not None:
        raise CliError("everything together is above all tenants: leave out --tenant, or use the scope tenant")
    return Which(_tenant(tenant), scope, _name(scope, words[1]) if named else "", Period(last))


def _tenant(tenant: str | None) -> TenantId:
    return TenantId(read_name("default" if tenant is None else tenant, "a tenant"))


def _name(scope: Scope, name: str) -> str:
    """A name that no user or agent can have would be kept without a word, and limit nothing."""
    if name == EACH:
        return name
    if scope is Scope.AGENT:
        return read_name(name, "an agent")
    try:
        return TypeAdapter(Key).validate_python(name)
    except ValidationError:
        wanted = "letters, digits and . _ : @ / + -, at most 120, or '*' for each"
        raise CliError(f"{name[:40]!r} is no name of a user: use {wanted}") from None


async def show(session: Session, tenant: str | None) -> ExitCode:
    """List every account and limit of a tenant, and those of everything together."""
    whose = _tenant(tenant)
    async with open_database(_BUSY) as database:
        async with database.transaction(SYSTEM_TENANT) as connection:
            day = await ledger.today(connection)
            found = await account_limits.standings(connection, SYSTEM_TENANT, day)
        async with database.transaction(whose) as connection:
            found += await account_limits.standings(connection, whose, day)
    of_each = {(one.limit.scope, one.limit.period): one.limit for one in found if one.limit.name == EACH}
    described = [_described(one, of_each.get((one.limit.scope, one.limit.period)), day) for one in found]
    screen = Screen(as_json=session.as_json)
    if found:
        screen.table(_HEADINGS, [_cells(one) for one in described])
    screen.line(f"tenant {whose}, {day} in UTC" if found else f"tenant {whose} has drawn nothing yet, and no limit is set")
    screen.document({"tenant": whose, "day": str(day), "accounts": [*described]})
    return ExitCode.OK


async def set_limit(session: Session, which: Which, usd: str | None, tokens: str | None, by: str | None) -> ExitCode:
    """Set the limits that are given, and call back what runs have drawn ahead."""
    if usd is None and tokens is None:
        raise CliError("no limit given: add --usd or --tokens, or use `accounts clear`")
    micros = None if usd is None else read_usd(usd, "--usd")
    count, who = None if tokens is None else read_count(tokens, "--tokens"), read_actor(by)
    async with open_database(_BUSY) as database:
        async with database.transaction(which.home) as connection:
            wanted = Limit(which.scope, which.name, which.period, micros, count)
            now = await account_limits.set_limit(connection, which.home, wanted, who)
        back = await account_limits.call_back(database, which.tenant, which.scope, which.name)
    return _done(session, which, now, back)


async def clear(session: Session, which: Which, by: str | None) -> ExitCode:
    """Remove the limits."""
    who = read_actor(by)
    async with open_database(_BUSY) as database:
        async with database.transaction(which.home) as connection:
            key = (which.scope, which.name, which.period)
            removed = await account_limits.clear_limit(connection, which.home, *key, who)
        if not removed:
            raise CliError(f"{which} has no limit: `accounts` lists those there are", ExitCode.NOT_FOUND)
        back = await account_limits.call_back(database, which.tenant, which.scope, which.name)
    return _done(session, which, Limit(which.scope, which.name, which.period, None, None), back)


def _done(session: Session, which: Which, now: Limit, back: Amount) -> ExitCode:
    said = [] if now.micros is None else [format_usd(now.micros)]
    said += [] if now.tokens is None else [f"{now.tokens:,} tokens"]
    screen = Screen(as_json=session.as_json)
    screen.line(f"{which}: {'at most ' + ' and '.join(said) if said else 'no limit of its own'}")
    screen.line(f"called back {format_usd(back.micros)} and {back.tokens:,} tokens that runs had drawn and not used")
    screen.document({
        "tenant": which.tenant, "scope": which.scope, "name": which.name, "period": which.period, "limit_micros": now.micros,
        "limit_tokens": now.tokens, "called_back_micros": back.micros, "called_back_tokens": back.tokens,
    })  # fmt: skip
    return ExitCode.OK


def _described(standing: Standing, of_each: Limit | None, day: date) -> dict[str, JsonValue]:
    own = standing.limit
    holds = of_each if own.micros is None and own.tokens is None and of_each is not None else own
    account = Account(AccountName(own.scope, own.name, own.period, day), standing.drawn, holds.micros, holds.tokens)
    shared = own.period is Period.RUN or own.name == EACH  # each run, user or agent has its own
    unlimited = holds.micros is None and holds.tokens is None
    return {
        "scope": own.scope,
        "name": own.name,
        "period": own.period,
        "limit_micros": holds.micros,
        "limit_tokens": holds.tokens,
        "limit_of": holds.name,
        "drawn_micros": None if shared else standing.drawn.micros,
        "drawn_tokens": None if shared else standing.drawn.tokens,
        "used_percent": None if shared or unlimited else account.used_percent(standing.drawn),
        "changed_by": standing.changed_by,
    }


def _cells(one: dict[str, JsonValue]) -> list[str]:
    mark = " (of each)" if one["limit_of"] == EACH != one["name"] else ""
    usd = {
        name: "-" if (value := one[name]) is None else format_usd(int(str(value))) for name in ("limit_micros", "drawn_micros")
    }
    count = {name: "-" if (value := one[name]) is None else f"{value:,}" for name in ("limit_tokens", "drawn_tokens")}
    return [
        str(one["scope"]),
        str(one["name"]) or "-",
        str(one["period"]),
        usd["limit_micros"] + (mark if one["limit_micros"] is not None else ""),
        usd["drawn_micros"],
        count["limit_tokens"] + (mark if one["limit_tokens"] is not None else ""),
        count["drawn_tokens"],
        "-" if one["used_percent"] is None else f"{one['used_percent']} %",
        str(one["changed_by"] or "-"),
    ]
