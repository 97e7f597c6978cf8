"""What stands at the gates of the providers, and how does an operator change it while everything runs?

Straight in the database that workers ask before each request, so a change holds from the next request on.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import get_args

from pydantic import JsonValue

from activities import audit, provider_limits
from activities.account_limits import OF_NO_RUN
from activities.postgres import Connection, Database, DatabaseError
from activities.provider_limits import KnownGate
from durable_agents.domain.model_calls import Provider
from durable_agents.domain.provider_gates import LONGEST_DELAY, SYSTEM_TENANT
from durable_agents.settings import read_settings
from starter.cli.database import database_url
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_actor
from starter.cli.options import Session
from starter.cli.screen import Screen

_SEEN_WAITING = LONGEST_DELAY * 1.5
"""Whoever waits looks again within this time."""
_HEADINGS = ("provider", "model", "key", "breaker", "failures", "open until", "paused until", "requests/min", "tokens/min",
             "waiting")  # fmt: skip


async def show(session: Session) -> ExitCode:
    """List every gate and limit."""
    async with _gates() as connection:
        found = [_described(gate) for gate in await provider_limits.known(connection)]
    screen = Screen(as_json=session.as_json)
    if found:
        names = [heading.replace(" ", "_").replace("/min", "_per_minute") for heading in _HEADINGS]
        screen.table(_HEADINGS, ([_cell(gate[name]) for name in names] for gate in found))
    else:
        screen.line("no request has passed a gate yet, and no limit is set")
    screen.document(list(found))
    return ExitCode.OK


async def set_limits(session: Session, provider: str, model: str, requests: int | None, tokens: int | None) -> ExitCode:
    """Set the limits that are given; the others stay."""
    if requests is None and tokens is None:
        raise CliError("no limit given: add --requests-per-minute or --tokens-per-minute, or use `limits clear`")
    _check(provider, model)
    async with _gates() as connection:
        await provider_limits.set_limits(connection, provider, model, requests, tokens)
        await _audit(connection, provider, model, {"requests_per_minute": requests, "tokens_per_minute": tokens})
    given = {"requests_per_minute": requests, "tokens_per_minute": tokens}
    said = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in given.items() if value is not None)
    return _done(session, provider, model, f"{provider} {model}: at most {said}", {**given})


async def clear(session: Session, provider: str, model: str) -> ExitCode:
    """Remove the limits."""
    _check(provider, model)
    async with _gates() as connection:
        removed = await provider_limits.clear_limits(connection, provider, model)
        if removed:
            await _audit(connection, provider, model, {"cleared": True})
    if not removed:
        raise CliError(f"{provider} {model} has no limits: `limits` lists those there are", ExitCode.NOT_FOUND)
    return _done(session, provider, model, f"{provider} {model}: no limits", {})


async def force(session: Session, provider: str, model: str, *, is_open: bool) -> ExitCode:
    """Hold everything back, or let requests through again and forget failures and pauses."""
    _check(provider, model)
    async with _gates() as connection:
        await provider_limits.force(connection, provider, model, is_open=is_open)
        await _audit(connection, provider, model, {"forced_open": is_open})
    said = "nothing goes through until `limits close`" if is_open else "requests go through again, slowly at first"
    return _done(session, provider, model, f"{provider} {model}: {said}", {"forced_open": is_open})


async def _audit(connection: Connection, provider: str, model: str, change: dict[str, JsonValue]) -> None:
    body = {"provider": provider, "model": model, **change, "by": read_actor(None)}
    await audit.append(connection, SYSTEM_TENANT, OF_NO_RUN, "provider_limit_changed", body)


@asynccontextmanager
async def _gates() -> AsyncIterator[Connection]:
    """A transaction on the rows that belong to no tenant.

    Raises:
        CliError: there is no database, or it does not let us in.
    """
    url = database_url(read_settings())
    if url is None:
        raise CliError("no database: set DATABASE_URL, or start `dev`")
    try:
        database = await Database.open(url, max_size=1)
    except DatabaseError as error:
        raise CliError(str(error), ExitCode.NOT_REACHABLE) from error
    try:
        async with database.transaction(SYSTEM_TENANT) as connection:
            yield connection
    finally:
        await database.close()


def _check(provider: str, model: str) -> None:
    """A name that no gate can have would be kept without a word, and hold nothing back."""
    if provider not in get_args(Provider):
        raise CliError(f"{provider!r} is no provider: use {' or '.join(get_args(Provider))}")
    if not model or len(model) > 120 or not model.isprintable():
        raise CliError(f"{model!r} is no model's id: use it as it stands in agent.yaml")


def _described(known: KnownGate) -> dict[str, JsonValue]:
    gate, limits, now = known.sight.gate, known.sight.limits, known.sight.now
    seen = known.turned_away_at
    return {
        "provider": known.id.provider,
        "model": known.id.model,
        "key": known.id.key or None,
        "breaker": "forced_open" if limits.forced_open else gate.state(now).value,
        "failures": gate.failures,
        "open_until": _time(gate.open_until),
        "paused_until": _time(gate.paused_until if gate.paused(now) > timedelta(0) else None),
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "recovering_at_per_second": gate.pace(now),
        "requests_per_second": round(known.sight.traffic.per_second, 2),
        "waiting": seen is not None and now - seen < _SEEN_WAITING,
    }


def _time(when: datetime | None) -> str | None:
    return when.isoformat(timespec="seconds") if when is not None else None


def _cell(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _done(session: Session, provider: str, model: str, said: str, facts: dict[str, JsonValue]) -> ExitCode:
    screen = Screen(as_json=session.as_json)
    screen.line(said)
    screen.document({"provider": provider, "model": model, **facts})
    return ExitCode.OK
