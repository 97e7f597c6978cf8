"""Does the ledger add up, what in it is nobody's any more, and what did the requests cost that may have been billed?

Straight in the database, for every tenant that has ever drawn: no worker and no Temporal server is asked.
"""

from dataclasses import asdict, dataclass

from pydantic import JsonValue

from activities import account_limits, reconciliation
from activities.postgres import Connection, Database
from activities.reconciliation import Reconciled, UnknownAttempt
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.prices import format_usd
from durable_agents.domain.provider_gates import SYSTEM_TENANT
from starter.cli.connection import full_run_id
from starter.cli.database import open_database
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_actor, read_name, read_usd
from starter.cli.options import Session
from starter.cli.screen import Screen

LONGEST_REASON = 500
_BUSY = "the database takes too long: run the command again; what was done is done, once"
_HEADINGS = ("run", "call", "attempt", "model", "since", "held", "tokens", "why", "request")


@dataclass(frozen=True)
class Said:
    """What somebody who has seen the bill typed, unread."""

    run: str
    call: int
    attempt: int
    tenant: str
    usd: str
    reason: str
    by: str | None


async def check(session: Session) -> ExitCode:
    """Hold counters against entries, and accounts against each other."""
    found: list[tuple[TenantId, str]] = []
    async with open_database(_BUSY) as database:
        tenants = await account_limits.known_tenants(database)
        for tenant in tenants:
            async with database.transaction(tenant) as connection:
                found += [(tenant, line) async for line in reconciliation.differences(connection, tenant)]
        if await reconciliation.all_differ(database):
            found.append((SYSTEM_TENANT, "the accounts of everything together are not the sum of the tenants' own"))
    screen = Screen(as_json=session.as_json)
    for tenant, line in found:
        screen.line(line if tenant == SYSTEM_TENANT else f"tenant {tenant}: {line}")
    outcome = f"{len(found):,} differences" if found else "accounts, entries and requests agree"
    screen.line(f"checked {len(tenants):,} tenants: {outcome}")
    listed: list[JsonValue] = [{"tenant": tenant, "difference": line} for tenant, line in found]
    screen.document({"tenants": len(tenants), "differences": listed})
    return ExitCode.DIFFERS if found else ExitCode.OK


async def reconcile(session: Session, tenant: str | None) -> ExitCode:
    """One pass over a tenant's ledger, or over all."""
    async with open_database(_BUSY) as database:
        total = Reconciled()
        for one in await _named(database, tenant):
            total = total.plus(await reconciliation.reconcile_tenant(database, one))
    screen = Screen(as_json=session.as_json)
    screen.facts((
        ("flagged as unknown now", f"{total.flagged:,} requests whose worker is gone"),
        ("returned to accounts", f"{format_usd(total.returned_micros)} and {total.returned_tokens:,} tokens that lay idle"),
        ("unknown altogether", f"{total.unknown:,} requests, up to {format_usd(total.unknown_micros)}: see `ledger unknown`"),
        ("differences", f"{len(total.differences):,}"),
    ), indent="")  # fmt: skip
    for line in total.differences:
        screen.line(line)
    screen.document({**asdict(total), "differences": list(total.differences)})
    return ExitCode.DIFFERS if total.differences else ExitCode.OK


async def unknown(session: Session, tenant: str | None) -> ExitCode:
    """List what may have been billed."""
    found: list[UnknownAttempt] = []
    async with open_database(_BUSY) as database:
        for one in await _named(database, tenant):
            async with database.transaction(one) as connection:
                found += await reconciliation.unknown(connection, one)
    screen = Screen(as_json=session.as_json)
    if found:
        screen.table(_HEADINGS, [_cells(one) for one in found])
    held = sum(one.hold.micros for one in found)
    remedy = ": book each with `ledger settle` once the bill is there" if found else ""
    screen.line(f"{len(found):,} requests may have been billed, {format_usd(held)} is held for them{remedy}")
    screen.document([_described(one) for one in found])
    return ExitCode.OK


async def settle(session: Session, said: Said) -> ExitCode:
    """Book what a request has cost after all."""
    run = full_run_id(said.run, said.tenant)
    tenant, micros, by, reason = (
        TenantId(run.split(":")[1]),
        read_usd(said.usd, "--usd"),
        read_actor(said.by),
        said.reason.strip(),
    )
    if not reason or not reason.isprintable() or len(reason) > LONGEST_REASON:
        raise CliError(f"--reason is one line of 1 to {LONGEST_REASON} characters that print: say where the amount stands")
    which = (run, said.call, said.attempt)
    async with open_database(_BUSY) as database, database.transaction(tenant) as connection:
        settled = await reconciliation.settle_unknown(connection, tenant, which, micros, by=by, reason=reason)
        if settled is None:
            raise CliError(await _why_not(connection, tenant, which), ExitCode.NOT_FOUND)
    screen = Screen(as_json=session.as_json)
    beyond = f", and {format_usd(settled.overrun_micros)} beyond it to overrun" if settled.overrun_micros else ""
    screen.line(f"{run} call {said.call}.{said.attempt}: booked {format_usd(settled.cost.micros)} of the"
                f" {format_usd(settled.hold.micros)} that were held{beyond}")  # fmt: skip
    screen.line(
        f"its run has returned {format_usd(settled.returned.micros)} and {settled.returned.tokens:,} tokens to its accounts"
    )
    screen.document({
        "run_id": run, "call": said.call, "attempt": said.attempt, "held_micros": settled.hold.micros,
        "held_tokens": settled.hold.tokens, "cost_micros": settled.cost.micros, "cost_tokens": settled.cost.tokens,
        "overrun_micros": settled.overrun_micros, "returned_micros": settled.returned.micros,
        "returned_tokens": settled.returned.tokens,
    })  # fmt: skip
    return ExitCode.OK


async def _why_not(connection: Connection, tenant: TenantId, which: tuple[RunId, int, int]) -> str:
    run, call, attempt = which
    row = await connection.fetchrow(
        "select state, cost_micros + overrun_micros as cost from model_attempt"
        " where tenant = $1 and run_id = $2 and call = $3 and attempt = $4",
        tenant, run, call, attempt,
    )  # fmt: skip
    state = "there is none" if row is None else {
        "dispatched": "it is under way, or not yet given up",
        "released": "it has cost nothing",
    }.get(row["state"], f"it is settled at {format_usd(row['cost'])}")  # fmt: skip
    return f"request {call}.{attempt} of {run} is not unknown ({state}): `ledger unknown` lists those that are"


async def _named(database: Database, tenant: str | None) -> list[TenantId]:
    return await account_limits.known_tenants(database) if tenant is None else [TenantId(read_name(tenant, "a tenant"))]


def _cells(one: UnknownAttempt) -> list[str]:
    model, since = f"{one.provider} {one.model}", one.dispatched_at.strftime("%Y-%m-%d %H:%M:%SZ")
    held = (format_usd(one.hold.micros), f"{one.hold.tokens:,}")
    return [one.run_id, str(one.call), str(one.attempt), model, since, *held, one.failure or "-", one.request_id or "-"]


def _described(one: UnknownAttempt) -> dict[str, JsonValue]:
    return {
        "run_id": one.run_id,
        "call": one.call,
        "attempt": one.attempt,
        "provider": one.provider,
        "model": one.model,
        "dispatched_at": one.dispatched_at.isoformat(),
        "held_micros": one.hold.micros,
        "held_tokens": one.hold.tokens,
        "failure": one.failure,
        "request_id": one.request_id,
    }
