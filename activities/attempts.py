"""What is written down about each physical request to a model, so that none is paid for twice and none is forgotten?

A row is committed before the request leaves, with the most it can cost. Its outcome is committed with what came of it. A row
that stays `dispatched` when another attempt begins becomes `unknown`: its money stays held, no timer frees it.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pydantic import TypeAdapter

from activities import ledger
from activities.heartbeat import stale_attempt
from activities.ledger import Held, Payer
from activities.postgres import Connection
from durable_agents.domain.accounts import NOTHING, Amount, NoRoom
from durable_agents.domain.identifiers import Micros
from durable_agents.domain.model_calls import ModelCallRequest, ModelOutcome, PinnedModel

_OUTCOME: TypeAdapter[ModelOutcome] = TypeAdapter(ModelOutcome)


GRACE = timedelta(seconds=120)
"""How long after its model's timeout an attempt may still write down what came of it: twice what its transactions may take."""


@dataclass(frozen=True)
class OwnAttempt:
    """An attempt that this very try has opened before: the answer to its COMMIT was lost."""

    number: int
    dispatched_at: datetime


@dataclass(frozen=True)
class Attempts:
    """What earlier physical attempts of one logical call have left."""

    tries: int
    unknown_micros: Micros
    """Held for attempts whose outcome nobody knows."""
    own: OwnAttempt | None = None


async def recorded(connection: Connection, call: ModelCallRequest) -> ModelOutcome | None:
    """The outcome of this logical call, if it has one already."""
    found = await connection.fetchval(
        "select outcome from model_call where tenant = $1 and run_id = $2 and call = $3", call.tenant, call.run_id, call.call
    )
    return None if found is None else _OUTCOME.validate_python(found)


async def abandon_open(connection: Connection, call: ModelCallRequest, payer: Payer, fence: int) -> Attempts:
    """Mark what older attempts left open as unknown, and sum up.

    Raises:
        ApplicationError: a newer attempt is at work; this one must not act.
    """
    rows = await connection.fetch(
        "select attempt, state, fence, hold_micros, hold_tokens, dispatched_at, (dispatched_at at time zone 'utc')::date as day"
        " from model_attempt where tenant = $1 and run_id = $2 and call = $3 order by attempt for update",
        call.tenant, call.run_id, call.call,
    )  # fmt: skip
    if any(row["fence"] > fence for row in rows):
        raise stale_attempt()
    unknown, own = 0, None
    for row in rows:
        if row["state"] == "dispatched" and row["fence"] == fence:
            own = OwnAttempt(row["attempt"], row["dispatched_at"])
        elif row["state"] == "dispatched":
            await _lose(connection, call, payer, row["attempt"], row["day"], Amount(row["hold_micros"], row["hold_tokens"]))
        if row["state"] == "unknown" or (row["state"] == "dispatched" and row["fence"] != fence):
            unknown += row["hold_micros"]
    return Attempts(tries=len(rows), unknown_micros=Micros(unknown), own=own)


async def _lose(connection: Connection, call: ModelCallRequest, payer: Payer, attempt: int, day: date, hold: Amount) -> None:
    await connection.execute(
        "update model_attempt set state = 'unknown', failure = coalesce(failure, 'lost'), settled_at = now()"
        " where tenant = $1 and run_id = $2 and call = $3 and attempt = $4",
        call.tenant, call.run_id, call.call, attempt,
    )  # fmt: skip
    await ledger.lose(connection, payer, ledger.transfer(call.run_id, call.call, attempt, payer), day, hold)


async def dispatch(
    connection: Connection,
    call: ModelCallRequest,
    payer: Payer,
    attempt: int,
    fence: int,
    model: PinnedModel,
    hold: Amount,
    allowance: int | None,
) -> tuple[datetime, Held] | NoRoom:
    """Hold the most that a request can cost, and write down that it is about to leave; when, by the database's clock."""
    held = await ledger.hold(connection, payer, ledger.transfer(call.run_id, call.call, attempt, payer), None, hold, allowance)
    if isinstance(held, NoRoom):
        return held
    dispatched_at: datetime = await connection.fetchval(
        "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros, hold_tokens,"
        " gives_up_at) values ($1, $2, $3, $4, $5, $6, $7, 'dispatched', $8, $9, now() + $10) returning dispatched_at",
        call.tenant, call.run_id, call.call, attempt, fence, model.provider, model.model, *hold, model.timeout + GRACE,
    )  # fmt: skip
    return dispatched_at, held


@dataclass(frozen=True)
class Settlement:
    """What came of a physical request."""

    state: str
    """`settled`, `released` or `unknown`."""
    spent: Amount = NOTHING
    failure: str | None = None
    request_id: str | None = None


async def settle(
    connection: Connection, call: ModelCallRequest, payer: Payer, attempt: int, hold: Amount, settlement: Settlement
) -> bool:
    """Write down what came of a request, in its journal and in the ledger; False when this attempt has done just that before.

    Raises:
        ApplicationError: another attempt has taken over and declared this one unknown; it can settle nothing any more.
    """
    spent = settlement.spent
    charged = min(spent.micros, hold.micros)
    day = await connection.fetchval(
        "update model_attempt set state = $5, cost_micros = $6, overrun_micros = $7, failure = $8, request_id = $9, tokens = $10,"
        " settled_at = now() where tenant = $1 and run_id = $2 and call = $3 and attempt = $4 and state = 'dispatched'"
        " returning (dispatched_at at time zone 'utc')::date",
        call.tenant, call.run_id, call.call, attempt, settlement.state, charged, spent.micros - charged,
        settlement.failure, settlement.request_id, spent.tokens,
    )  # fmt: skip
    if day is None:
        if await _is_written(connection, call, attempt, settlement):
            return False
        raise stale_attempt()
    identity = ledger.transfer(call.run_id, call.call, attempt, payer)
    match settlement.state:
        case "settled":
            await ledger.settle(connection, payer, identity, day, hold, spent)
        case "released":
            await ledger.release(connection, payer, identity, day, hold)
        case _:
            await ledger.lose(connection, payer, identity, day, hold)
    return True


async def _is_written(connection: Connection, call: ModelCallRequest, attempt: int, settlement: Settlement) -> bool:
    """Only the answer to its COMMIT was lost. The number is this attempt's alone; who gave it up has written `lost` beside it."""
    found: bool = await connection.fetchval(
        "select exists (select from model_attempt where tenant = $1 and run_id = $2 and call = $3 and attempt = $4"
        " and state = $5 and failure is not distinct from $6 and request_id is not distinct from $7)",
        call.tenant, call.run_id, call.call, attempt, settlement.state, settlement.failure, settlement.request_id,
    )  # fmt: skip
    return found


async def record(connection: Connection, call: ModelCallRequest, outcome: ModelOutcome) -> None:
    """Make an outcome the outcome of its logical call."""
    await connection.execute(
        "insert into model_call values ($1, $2, $3, $4, $5, $6)",
        call.tenant, call.run_id, call.call, call.turn, call.model, outcome.model_dump(mode="json"),
    )  # fmt: skip
