"""Which requests to models were made, for whom and at what cost, as the tables have it?

Reads alone: `model_attempt` has the money, `run` has who, `model_call` has the turn, the tokens and what was asked for. Each
function belongs into a transaction of the tenant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from activities.postgres import Connection
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.spending import NORM_OF, Amounts, Dimension, RunSpending, Spending

_PATIENCE = 300
"""Seconds that a report may take."""

_COLUMNS = {
    Dimension.TENANT: "a.tenant",
    Dimension.USER: "r.user_id",
    Dimension.AGENT: "r.agent",
    Dimension.VERSION: "r.agent_version",
    Dimension.RUN: "a.run_id",
    Dimension.STEP: "coalesce(c.turn::text, '(no answer)')",
    Dimension.MODEL: "a.model",
    Dimension.PROVIDER: "a.provider",
    Dimension.TOOL: "case when c.outcome ->> 'kind' = 'answer' then coalesce((select string_agg(distinct asked ->> 'tool', '+'"
    " order by asked ->> 'tool') from jsonb_array_elements(c.outcome -> 'calls') as asked), '(answer)') else '(no answer)' end",
    Dimension.DAY: "to_char(a.dispatched_at at time zone 'UTC', 'YYYY-MM-DD')",
}
_IN_RANGE = (
    "a.tenant = $1 and ($2::timestamptz is null or a.dispatched_at >= $2) and ($3::timestamptz is null or a.dispatched_at < $3)"
    " and ($4::text is null or r.agent = $4) and ($5::text is null or r.user_id = $5) and ($6::text is null or r.run_id = $6)"
)
# What a call used belongs to its last attempt: none is made once there is an outcome.
_GROUPED = """
select {names} grouping({first}) = 1 as is_total,
    sum(cost_micros) as cost_micros, sum(overrun_micros) as overrun_micros,
    sum(hold_micros) filter (where state in ('dispatched', 'unknown')) as unknown_micros, count(run_id) as calls,
    sum((usage ->> 'input_tokens')::bigint) as input_tokens,
    sum((usage ->> 'cached_input_tokens')::bigint) as cached_input_tokens,
    sum((usage ->> 'output_tokens')::bigint) as output_tokens,
    count(distinct run_id) as runs,
    count(distinct run_id) filter (where status in ('completed', 'degraded') and payer is null) as completed
from (
    select {columns}, a.run_id, a.state, a.hold_micros, a.cost_micros, a.overrun_micros, r.status, r.payer,
        case when not exists (select from model_attempt as later where later.tenant = a.tenant and later.run_id = a.run_id
                              and later.call = a.call and later.attempt > a.attempt)
             then c.outcome -> 'usage' end as usage
    from model_attempt as a join run as r using (tenant, run_id) left join model_call as c using (tenant, run_id, call)
    where {in_range}
) as spent
group by grouping sets (({groups}), ())
"""
_COST = "(select coalesce(sum(cost_micros + overrun_micros), 0) from model_attempt where tenant = r.tenant and run_id = r.run_id)"
_TOKENS = (
    "(select coalesce(sum((outcome -> 'usage' ->> 'input_tokens')::bigint + (outcome -> 'usage' ->> 'output_tokens')::bigint), 0)"
    " from model_call where tenant = r.tenant and run_id = r.run_id)"
)
_JUDGED = f"""
select r.tenant, r.run_id, r.agent, r.user_id, r.status, {_COST} as cost_micros, {_TOKENS} as tokens
from run as r where exists (
    select from model_attempt as a where a.run_id = r.run_id and {_IN_RANGE} and a.tenant = r.tenant)
"""  # noqa: S608 - columns of our own
_LATEST = f"""
select {_COST} as cost_micros, {_TOKENS} as tokens
from (select * from run where tenant = $1 and agent = $2 and ended_at is not null order by ended_at desc limit {NORM_OF}) as r
order by r.ended_at desc
"""  # noqa: S608 - columns of our own


@dataclass(frozen=True)
class Wanted:
    """Which requests are wanted: `since` included, `until` excluded; None is any."""

    since: datetime | None = None
    until: datetime | None = None
    agent: str | None = None
    user: str | None = None
    run: str | None = None

    @property
    def arguments(self) -> tuple[datetime | str | None, ...]:
        """For the placeholders from $2 on."""
        return self.since, self.until, self.agent, self.user, self.run


async def grouped(
    connection: Connection, tenant: TenantId, by: Sequence[Dimension], wanted: Wanted
) -> tuple[list[Spending], Spending]:
    """Every group with what it spent, in no order, and everything as the database itself adds it up: of one snapshot."""
    query = _GROUPED.format(
        names="".join(f"g{index}, " for index in range(len(by))),
        first="g0",
        columns=", ".join(f"{_COLUMNS[dimension]} as g{index}" for index, dimension in enumerate(by)),
        in_range=_IN_RANGE,
        groups=", ".join(f"g{index}" for index in range(len(by))),
    )
    await _take_time(connection)
    rows = await connection.fetch(query, tenant, *wanted.arguments, timeout=_PATIENCE)
    (everything,) = (_spending(row, 0) for row in rows if row["is_total"])
    return [_spending(row, len(by)) for row in rows if not row["is_total"]], everything


async def runs(connection: Connection, tenant: TenantId, wanted: Wanted) -> list[RunSpending]:
    """Every run with a request in the range, and all that it has spent, ended or not."""
    await _take_time(connection)
    return [
        RunSpending(
            tenant=TenantId(row["tenant"]),
            run=RunId(row["run_id"]),
            agent=row["agent"],
            user=row["user_id"],
            status=row["status"],
            cost_micros=int(row["cost_micros"]),
            tokens=int(row["tokens"]),
        )
        for row in await connection.fetch(_JUDGED, tenant, *wanted.arguments, timeout=_PATIENCE)
    ]


async def latest(connection: Connection, tenant: TenantId, agent: str) -> list[tuple[int, int]]:
    """Cost and tokens of the agent's last ended runs, newest first."""
    rows = await connection.fetch(_LATEST, tenant, agent, timeout=_PATIENCE)
    return [(int(row["cost_micros"]), int(row["tokens"])) for row in rows]


async def _take_time(connection: Connection) -> None:
    """A report over a year is no query of a worker."""
    await connection.execute(f"set local statement_timeout = '{_PATIENCE}s'")


def _spending(row: asyncpg.Record, width: int) -> Spending:
    names = ("cost_micros", "unknown_micros", "overrun_micros", "calls", "input_tokens", "cached_input_tokens", "output_tokens")
    amounts = Amounts(*(int(row[name] or 0) for name in names))
    return Spending(tuple(row[f"g{index}"] for index in range(width)), amounts, row["runs"], row["completed"])
