"""Which policy holds for an agent now, who put it there, and what was decided by it?

Read in the transaction of each decision and kept nowhere else: a change holds from the next decision of every worker on. What
cannot be read denies.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue, ValidationError

from activities import audit
from activities.postgres import Connection
from durable_agents.domain.agents import PinnedAgent
from durable_agents.domain.artifacts import belongs_in_artifact
from durable_agents.domain.canonical import canonical_json, digest, escape_json, inert, restore_json
from durable_agents.domain.identifiers import Digest, Micros, RunId, TenantId, UserId
from durable_agents.domain.permissions import Call, Policy, Ruling, Verdict
from durable_agents.domain.tool_calls import ToolCallRequest
from durable_agents.domain.tools import Risk, describe_errors

_OF_NO_RUN = RunId("")
"""In the audit log: what happened to a tenant and not to a run of it."""
_REASON = 200
"""Characters."""
_IN_FORCE = """
select f.version, v.document, v.digest from policy_in_force f left join policy_version v using (tenant, agent, version)
where f.tenant = $1 and f.agent = $2
"""
_SO_FAR = """
select now() as now, (select count(*) from tool_dispatch where tenant = $1 and run_id = $2 and turn < $3) as earlier_calls,
    (select coalesce(sum(case when state in ('dispatched', 'unknown') then hold_micros else cost_micros + overrun_micros end), 0)
     from model_attempt where tenant = $1 and run_id = $2)::bigint as spent_micros
"""
_DECISIONS = """
select * from (
    select distinct on (run_id, turn, index) * from policy_decision
    where tenant = $1 and agent = $2 and created_at >= $3 order by run_id, turn, index, policy_version desc
) latest order by created_at desc, run_id, turn, index limit $4
"""


@dataclass(frozen=True)
class InForce:
    """The policy that holds."""

    version: int
    """0: the agent's own policy.yaml, and nobody has ever put another."""
    digest: Digest
    policy: Policy | None
    """None: it cannot be read, and nothing is allowed."""
    problem: str = ""
    """Why it cannot be read, with the remedy."""


@dataclass(frozen=True)
class PolicyVersion:
    """One version as it was put in force."""

    version: int
    document: JsonValue
    """None: the agent's own policy.yaml."""
    digest: Digest | None
    changed_by: str
    reason: str
    created_at: datetime


@dataclass(frozen=True)
class SoFar:
    """What the conditions of a policy can know of the run."""

    now: datetime
    """By the database's clock, the same for all workers."""
    spent_micros: Micros
    calls: int


@dataclass(frozen=True)
class Decided:
    """A decision as it was recorded."""

    run_id: RunId
    path: str
    at: datetime
    version: int
    ruling: Ruling
    reason: str
    tool: str
    user: str
    call: Call | None
    """What the rules looked at; None: it was too large to be kept."""


async def in_force(connection: Connection, tenant: TenantId, own: PinnedAgent) -> InForce:
    """The policy that holds for an agent; where none was put, the one it was pinned with."""
    agent = own.definition.name
    row = await connection.fetchrow(_IN_FORCE, tenant, agent)
    if row is None:
        return InForce(0, own.policy_digest, own.policy)
    if row["digest"] is None:
        return InForce(row["version"], own.policy_digest, own.policy)
    try:
        return InForce(row["version"], row["digest"], read_document(row["document"], row["digest"]))
    except ValueError as error:
        problem = f"version {row['version']} of the policy of {agent} cannot be read ({error}): put another with `policy put`"
        return InForce(row["version"], row["digest"], None, problem)


async def in_force_until_commit(connection: Connection, tenant: TenantId, own: PinnedAgent) -> InForce:
    """`in_force`, and no change of it commits before this transaction does: what is decided here is right when it is written."""
    await connection.execute("select pg_advisory_xact_lock_shared(hashtextextended($1, 0))", _lock(tenant, own.definition.name))
    return await in_force(connection, tenant, own)


def read_document(document: JsonValue, expected: Digest) -> Policy:
    """A stored policy. Raises ValueError with one line when it is none, or not the one with the expected digest."""
    if digest(document) != expected:
        raise ValueError("it is not what was put")
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        raise ValueError(describe_errors(error)) from None


async def put(
    connection: Connection, tenant: TenantId, agent: str, policy: Policy | None, by: str, reason: str
) -> tuple[int, bool]:
    """Put a policy in force, or with None the agent's own again. The version in force now, and whether that is a change.

    Waits for the decisions under way: once the transaction has committed, none is made under the policy before it.
    """
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", _lock(tenant, agent))
    row = await connection.fetchrow(_IN_FORCE, tenant, agent)
    before, old = (0, None) if row is None else (row["version"], row["digest"])
    document = None if policy is None else policy.document()
    new = None if document is None else digest(document)
    if old == new and (row is None or row["document"] == document):  # the same again, unless what is there was altered
        return before, False
    await connection.execute(
        "insert into policy_version values ($1, $2, $3, $4, $5, $6, $7)",
        tenant, agent, before + 1, document, new, by, reason,
    )  # fmt: skip
    await connection.execute(
        "insert into policy_in_force values ($1, $2, $3) on conflict (tenant, agent) do update set version = excluded.version",
        tenant, agent, before + 1,
    )  # fmt: skip
    body: dict[str, JsonValue] = {
        "agent": agent, "version": before + 1, "digest": new, "version_before": before, "digest_before": old, "by": by,
        "reason": reason,
    }  # fmt: skip
    await audit.append(connection, tenant, _OF_NO_RUN, "policy_changed", body)
    return before + 1, True


async def versions(connection: Connection, tenant: TenantId, agent: str) -> list[PolicyVersion]:
    """Every version that was put, the newest first: the first is in force."""
    rows = await connection.fetch(
        "select version, document, digest, changed_by, reason, created_at from policy_version"
        " where tenant = $1 and agent = $2 order by version desc",
        tenant, agent,
    )  # fmt: skip
    return [PolicyVersion(**row) for row in rows]


async def last_known(connection: Connection, tenant: TenantId, agent: str) -> PinnedAgent | None:
    """The agent as its newest run has it; None: the tenant has never run it."""
    pinned = await connection.fetchval(
        "select v.pinned from run join agent_version v on v.tenant = run.tenant and v.version = run.agent_version"
        " where run.tenant = $1 and run.agent = $2 order by run.created_at desc limit 1",
        tenant, agent,
    )  # fmt: skip
    return None if pinned is None else PinnedAgent.model_validate(pinned)


async def so_far(connection: Connection, call: ToolCallRequest) -> SoFar:
    """What the run has used before this call. Calls of one turn differ by their place, so they cannot race for a number."""
    row = await connection.fetchrow(_SO_FAR, call.tenant, call.run_id, call.turn)
    assert row is not None
    return SoFar(now=row["now"], spent_micros=Micros(row["spent_micros"]), calls=row["earlier_calls"] + call.index)


async def record(connection: Connection, request: ToolCallRequest, force: InForce, call: Call, verdict: Verdict) -> None:
    """Keep a decision and what it was made on; of a call that is tried again under the same version, the first."""
    await connection.execute(
        "insert into policy_decision values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) on conflict do nothing",
        request.tenant, request.run_id, request.turn, request.index, force.version, call.agent, call.user, call.tool,
        verdict.ruling, verdict.rule, inert(verdict.reason, _REASON), force.digest, _written(call),
    )  # fmt: skip


async def decisions(connection: Connection, tenant: TenantId, agent: str, since: datetime, limit: int) -> AsyncIterator[Decided]:
    """The last decision on each tool call since then, the newest call first."""
    async for row in connection.cursor(_DECISIONS, tenant, agent, since, limit):
        yield Decided(
            run_id=RunId(row["run_id"]),
            path=f"{row['turn']}.{row['index']}",
            at=row["created_at"],
            version=row["policy_version"],
            ruling=Ruling(row["ruling"]),
            reason=row["reason"],
            tool=row["tool"],
            user=row["user_id"],
            call=_read(tenant, agent, row["user_id"], row["tool"], row["facts"]),
        )


def _written(call: Call) -> str | None:
    """What a call's rules looked at, as JSON: PostgreSQL's own JSON would make whole numbers of large amounts."""
    try:
        arguments = escape_json(dict(call.arguments))  # type: ignore[arg-type]  # `plain` made JSON of them, or it raises
        facts: JsonValue = {
            "args": arguments, "risk": call.risk, "resource": call.resource, "spent_micros": call.spent_micros,
            "calls": call.calls, "now": call.now.isoformat(),
        }  # fmt: skip
        text = canonical_json(facts).decode()
    except (ValueError, TypeError):
        return None
    return None if belongs_in_artifact(text) else text


def _read(tenant: TenantId, agent: str, user: str, tool: str, facts: str | None) -> Call | None:
    if facts is None:
        return None
    found = json.loads(facts)
    arguments = restore_json(found["args"])
    assert isinstance(arguments, dict)
    risk: Risk = found["risk"]
    return Call(
        tool=tool,
        risk=risk,
        resource=found["resource"],
        arguments=arguments,
        user=UserId(user),
        tenant=tenant,
        agent=agent,
        spent_micros=Micros(found["spent_micros"]),
        calls=found["calls"],
        now=datetime.fromisoformat(found["now"]),
    )


def _lock(tenant: TenantId, agent: str) -> str:
    return f"policy/{tenant}/{agent}"
