"""What is written down about each tool call, so that no effect happens twice and none is forgotten?

The decisions are `durable_agents.domain.effects`; here are the rows they decide on. Every write is fenced: an attempt that was
overtaken changes nothing.
"""

import asyncpg
from pydantic import TypeAdapter

from activities.heartbeat import stale_attempt
from activities.postgres import Connection
from durable_agents.domain.approvals import Consent, Ladder
from durable_agents.domain.effects import Dispatch, DispatchState, Effect
from durable_agents.domain.identifiers import ApprovalId, Digest, EffectKey
from durable_agents.domain.tool_calls import ConsentNeeded, ToolCallRequest, ToolSettled

_SETTLED: TypeAdapter[ToolSettled] = TypeAdapter(ToolSettled)
NEVER_SENT = "none"
"""The effect of a call that was settled without a dispatch."""


async def find(connection: Connection, call: ToolCallRequest) -> tuple[Dispatch, ToolSettled | None] | None:
    """The call's dispatch row, locked, and its outcome once it has one."""
    row = await connection.fetchrow(
        "select state, effect, arguments_digest, tries, fence, outcome from tool_dispatch"
        " where tenant = $1 and run_id = $2 and turn = $3 and index = $4 for update",
        call.tenant, call.run_id, call.turn, call.index,
    )  # fmt: skip
    return None if row is None else (_dispatch(row), _outcome(row))


async def begin(
    connection: Connection,
    call: ToolCallRequest,
    *,
    key: EffectKey,
    tool: str,
    effect: Effect,
    arguments: Digest,
    fence: int,
    tries: int,
) -> None:
    """Write down that the effect is about to be sent by the attempt with this fence, who found so many tries before its own.

    If there are more by now, whatever was decided from what was found no longer holds.
    """
    begun = await connection.fetchval(
        "insert into tool_dispatch as d (tenant, run_id, turn, index, effect_key, tool, effect, arguments_digest, state,"
        " tries, fence) values ($1, $2, $3, $4, $5, $6, $7, $8, 'dispatched', 1, $9)"
        " on conflict (tenant, run_id, turn, index) do update set state = 'dispatched', tries = d.tries + 1, fence = $9,"
        " dispatched_at = now() where d.fence <= $9 and d.state in ('dispatched', 'not_sent')"
        " and d.tries = $10 and d.arguments_digest = excluded.arguments_digest returning 1",
        call.tenant, call.run_id, call.turn, call.index, key, tool, effect, arguments, fence, tries,
    )  # fmt: skip
    if not begun:
        raise stale_attempt()


async def mark(connection: Connection, call: ToolCallRequest, state: DispatchState, fence: int) -> None:
    """Write down that the last try did nothing, or that nobody knows. The row is this attempt's then: older ones settle nothing.

    What is unknown stays so until it is settled; `not sent` from an attempt that was given up would let the call be made again.
    """
    marked = await connection.fetchval(
        "update tool_dispatch set state = $5, fence = $6 where tenant = $1 and run_id = $2 and turn = $3 and index = $4"
        " and fence <= $6 and state in ('dispatched', $5) returning 1",
        call.tenant, call.run_id, call.turn, call.index, state, fence,
    )  # fmt: skip
    if not marked:
        raise stale_attempt()


async def settle(
    connection: Connection, call: ToolCallRequest, outcome: ToolSettled, *, key: EffectKey, tool: str, fence: int
) -> None:
    """Write down the one final outcome; a call that never came to a dispatch gets its row now."""
    settled = await connection.fetchval(
        "insert into tool_dispatch as d (tenant, run_id, turn, index, effect_key, tool, effect, arguments_digest, state,"
        " tries, fence, outcome, settled_at) values ($1, $2, $3, $4, $5, $6, $9, '', 'settled', 0, $7, $8, now())"
        " on conflict (tenant, run_id, turn, index) do update set state = 'settled', outcome = excluded.outcome,"
        " settled_at = now() where d.fence <= $7 and d.state <> 'settled' returning 1",
        call.tenant, call.run_id, call.turn, call.index, key, tool, fence, outcome.model_dump(mode="json"), NEVER_SENT,
    )  # fmt: skip
    if not settled:
        raise stale_attempt()


async def open_approval(connection: Connection, call: ToolCallRequest, needed: ConsentNeeded) -> bool:
    """Write down what a human is asked. False when it was written down before."""
    opened = await connection.fetchval(
        "insert into approval (tenant, run_id, approval_id, turn, index, kind, tool, digest, policy_digest, request)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing returning 1",
        call.tenant,
        call.run_id,
        needed.approval_id,
        call.turn,
        call.index,
        needed.approval_kind,
        needed.tool,
        needed.digest,
        needed.policy_digest,
        needed.model_dump(mode="json"),
    )
    return bool(opened)


async def asked_under(connection: Connection, call: ToolCallRequest, approval: ApprovalId) -> tuple[Digest, int] | None:
    """Digest and version of the policy under which a human was asked about this call; None: nobody was asked that."""
    row = await connection.fetchrow(
        "select policy_digest, coalesce((request ->> 'policy_version')::int, 0) as version from approval"
        " where tenant = $1 and run_id = $2 and turn = $3 and index = $4 and approval_id = $5",
        call.tenant, call.run_id, call.turn, call.index, approval,
    )  # fmt: skip
    return None if row is None else (Digest(row["policy_digest"]), row["version"])


async def asked_ladder(connection: Connection, call: ToolCallRequest, approval: ApprovalId) -> Ladder | None:
    """Whom the policy wanted asked about this call when it was asked; None: nobody was asked that."""
    ladder = await connection.fetchval(
        "select request -> 'ladder' from approval"
        " where tenant = $1 and run_id = $2 and turn = $3 and index = $4 and approval_id = $5",
        call.tenant, call.run_id, call.turn, call.index, approval,
    )  # fmt: skip
    return None if ladder is None else Ladder.model_validate(ladder)


async def decide_approval(connection: Connection, call: ToolCallRequest, consent: Consent) -> bool:
    """Write down the decision of an approval, once. False when it was written down before, or never asked for."""
    decided = await connection.fetchval(
        "update approval set approved = $4, decided_by = $5, reason = $6, decided_at = $7"
        " where tenant = $1 and run_id = $2 and approval_id = $3 and decided_at is null and digest = $8 returning 1",
        call.tenant,
        call.run_id,
        consent.approval_id,
        consent.approved,
        consent.people,
        consent.reason,
        consent.decided_at,
        consent.digest,
    )
    return bool(decided)


def _dispatch(row: asyncpg.Record) -> Dispatch:
    return Dispatch(
        state=DispatchState(row["state"]),
        effect=None if row["effect"] == NEVER_SENT else Effect(row["effect"]),
        arguments_digest=row["arguments_digest"],
        tries=row["tries"],
        fence=row["fence"],
    )


def _outcome(row: asyncpg.Record) -> ToolSettled | None:
    return None if row["outcome"] is None else _SETTLED.validate_python(row["outcome"])
