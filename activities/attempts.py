"""What is written down about each physical request to a model, so that none is paid for twice and none is forgotten?

A row is committed before the request leaves, with the most it can cost. Its outcome is committed with what came of it. A row
that stays `dispatched` when another attempt begins becomes `unknown`: its money stays held, no timer frees it.
"""

from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter
from temporalio.exceptions import ApplicationError

from activities.heartbeat import stale_attempt
from activities.postgres import Connection
from durable_agents.domain.identifiers import Micros
from durable_agents.domain.model_calls import ModelCallRequest, ModelOutcome, PinnedModel

_OUTCOME: TypeAdapter[ModelOutcome] = TypeAdapter(ModelOutcome)


@dataclass(frozen=True)
class Attempts:
    """What earlier physical attempts of one logical call have left."""

    tries: int
    unknown_micros: Micros
    """Held for attempts whose outcome nobody knows."""


async def recorded(connection: Connection, call: ModelCallRequest) -> ModelOutcome | None:
    """The outcome of this logical call, if it has one already."""
    found = await connection.fetchval(
        "select outcome from model_call where tenant = $1 and run_id = $2 and call = $3", call.tenant, call.run_id, call.call
    )
    return None if found is None else _OUTCOME.validate_python(found)


async def abandon_open(connection: Connection, call: ModelCallRequest, fence: int) -> Attempts:
    """Mark what older attempts left open as unknown, and sum up.

    Raises:
        ApplicationError: a newer attempt is at work; this one must not act.
    """
    rows = await connection.fetch(
        "select state, fence, hold_micros from model_attempt where tenant = $1 and run_id = $2 and call = $3 for update",
        call.tenant, call.run_id, call.call,
    )  # fmt: skip
    if any(row["fence"] > fence for row in rows):
        raise stale_attempt()
    await connection.execute(
        "update model_attempt set state = 'unknown', failure = coalesce(failure, 'lost'), settled_at = now()"
        " where tenant = $1 and run_id = $2 and call = $3 and state = 'dispatched'",
        call.tenant, call.run_id, call.call,
    )  # fmt: skip
    unknown = sum(row["hold_micros"] for row in rows if row["state"] in ("dispatched", "unknown"))
    return Attempts(tries=len(rows), unknown_micros=Micros(unknown))


async def dispatch(
    connection: Connection, call: ModelCallRequest, attempt: int, fence: int, model: PinnedModel, hold: Micros
) -> datetime:
    """Write down that a request is about to leave, and the most it can cost; when that is, by the database's clock."""
    dispatched_at: datetime = await connection.fetchval(
        "insert into model_attempt (tenant, run_id, call, attempt, fence, provider, model, state, hold_micros)"
        " values ($1, $2, $3, $4, $5, $6, $7, 'dispatched', $8) returning dispatched_at",
        call.tenant, call.run_id, call.call, attempt, fence, model.provider, model.model, hold,
    )  # fmt: skip
    return dispatched_at


async def settle(
    connection: Connection,
    call: ModelCallRequest,
    attempt: int,
    state: str,
    *,
    cost: int = 0,
    overrun: int = 0,
    failure: str | None = None,
    request_id: str | None = None,
) -> None:
    """Write down what came of a request.

    Raises:
        ApplicationError: another attempt has taken over and declared this one unknown; it can settle nothing any more.
    """
    settled = await connection.fetchval(
        "update model_attempt set state = $5, cost_micros = $6, overrun_micros = $7, failure = $8, request_id = $9,"
        " settled_at = now() where tenant = $1 and run_id = $2 and call = $3 and attempt = $4 and state = 'dispatched'"
        " returning 1",
        call.tenant, call.run_id, call.call, attempt, state, cost, overrun, failure, request_id,
    )  # fmt: skip
    if not settled:
        raise stale_attempt()


async def record(connection: Connection, call: ModelCallRequest, outcome: ModelOutcome) -> None:
    """Make an outcome the outcome of its logical call."""
    await connection.execute(
        "insert into model_call values ($1, $2, $3, $4, $5, $6)",
        call.tenant, call.run_id, call.call, call.turn, call.model, outcome.model_dump(mode="json"),
    )  # fmt: skip


def retryable(kind: str, message: str) -> ApplicationError:
    """An error after which Temporal starts another attempt."""
    return ApplicationError(message, type=kind)
