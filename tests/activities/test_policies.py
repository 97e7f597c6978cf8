"""Is the policy that is read the one that holds, however many change it at once, and is it what was put?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities import policies
from activities.agents import load_agent
from activities.offers import offer
from activities.policies import InForce
from activities.postgres import Connection, Database
from activities.runs import RunRecord
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import RunId, TenantId, UserId
from durable_agents.domain.messages import Message, TextBlock, ToolCallBlock
from durable_agents.domain.model_calls import ModelCallRequest
from durable_agents.domain.permissions import Policy
from durable_agents.domain.prices import TOOLS_PROMPT_TOKENS, most_tokens
from tests.domain.strategies import checked
from tests.support.world import AGENTS, TestDatabase

ACME = TenantId("acme")
CLERK = load_agent(AGENTS / "clerk").pinned
NAMES = [spec.name for spec in CLERK.tools]


def policy(*allowed: str) -> Policy:
    """A policy that allows these tools."""
    return Policy.model_validate({"rules": [{"allow": tool} for tool in allowed]})


async def put(connection: Connection, document: Policy | None, agent: str = "clerk") -> int:
    """The version in force after a put."""
    version, _ = await policies.put(connection, ACME, agent, document, "ann", "why")
    return version


@pytest.fixture
async def own(database: TestDatabase) -> AsyncIterator[Database]:
    """The database as workers use it."""
    opened = await Database.open(database.app, max_size=10)
    yield opened
    await opened.close()


async def test_puts_at_once_each_get_a_version_of_their_own(own: Database) -> None:
    """Two people who change a policy in the same second must both find their version, and one of them in force."""

    async def one(number: int) -> int:
        async with own.transaction(ACME) as connection:
            return await put(connection, policy(f"tool_{number}"))

    assert sorted(await asyncio.gather(*(one(number) for number in range(8)))) == list(range(1, 9))
    async with own.transaction(ACME) as connection:
        versions = await policies.versions(connection, ACME, "clerk")
        force = await policies.in_force(connection, ACME, CLERK)
    assert [one.version for one in versions] == list(range(8, 0, -1))
    assert (force.version, force.digest) == (8, versions[0].digest)


async def test_a_put_waits_for_the_decisions_under_way_and_the_next_one_reads_it(own: Database) -> None:
    """When `put` has returned no call is sent under the old policy: the incident is over, not nearly over."""

    async def change() -> int:
        async with own.transaction(ACME) as connection:
            return await put(connection, policy())

    async with own.transaction(ACME) as deciding, own.transaction(ACME) as another:
        assert (await policies.in_force_until_commit(deciding, ACME, CLERK)).version == 0
        assert (await policies.in_force_until_commit(another, ACME, CLERK)).version == 0
        changing = asyncio.create_task(change())
        async with own.transaction(ACME) as looking:
            while not await looking.fetchval("select count(*) from pg_locks where locktype = 'advisory' and not granted"):
                assert not changing.done()
        async with own.transaction(ACME) as elsewhere:
            assert await put(elsewhere, policy(), agent="another") == 1
        assert (await policies.in_force(deciding, ACME, CLERK)).version == 0
    assert await changing == 1
    async with own.transaction(ACME) as connection:
        assert (await policies.in_force_until_commit(connection, ACME, CLERK)).version == 1


@pytest.mark.parametrize("altered", ["{}", "[]", "null", "5", '{"rules": [{"allow": "*"}]}'])
async def test_a_policy_that_was_altered_is_mended_by_putting_the_same_again(
    own: Database, database: TestDatabase, altered: str
) -> None:
    """It has the digest of what was put, so it looks the same; it must neither be read nor be taken for the same."""
    async with own.transaction(ACME) as connection:
        assert await put(connection, policy("echo")) == 1
        assert await put(connection, policy("echo")) == 1
    owner = await asyncpg.connect(database.admin)
    await owner.execute("update policy_version set document = $1::text::jsonb", altered)
    await owner.close()
    async with own.transaction(ACME) as connection:
        broken = await policies.in_force(connection, ACME, CLERK)
        assert (broken.policy, "it is not what was put" in broken.problem) == (None, True)
        assert await put(connection, policy("echo")) == 2
        assert (await policies.in_force(connection, ACME, CLERK)).policy == policy("echo")


def run_of(*admitted: str) -> RunRecord:
    """A run that was admitted with these tools."""
    terms: Any = type("Terms", (), {"tools": dict.fromkeys(admitted), "at_limit": None})
    payer: Any = None
    return RunRecord(ACME, RunId("r"), "x", UserId("u"), payer, terms, CLERK)


CALL = ModelCallRequest(tenant=ACME, run_id=RunId("r"), call=1, turn=1, model=0, allowance_micros=None)
some = st.lists(st.sampled_from(NAMES), unique=True)


def force(of: Policy | None) -> InForce:
    """A policy in force."""
    return InForce(1, digest("p"), of)


@checked
@given(some, some, some)
def test_no_request_is_larger_than_what_an_earlier_one_was_counted_with(
    admitted: list[str], now: list[str], called: list[str]
) -> None:
    """The bound of a request is what was counted before plus what was added: tools that come back must be in it."""
    blocks = tuple(ToolCallBlock(id=name, tool=name, arguments={}) for name in called)
    conversation = [Message(role="assistant", blocks=(TextBlock(text="x"), *blocks))]
    made = offer(run_of(*admitted), CALL, force(policy(*now)), conversation)
    offered = {spec.name for spec in made.tools}
    assert offered <= set(admitted)
    assert offered == (set(admitted) & set(now) or set(admitted) & set(called))
    everything = [spec.sent() for spec in CLERK.tools if spec.name in admitted]
    hidden = TOOLS_PROMPT_TOKENS if everything and not offered else 0
    sent = most_tokens([spec.sent() for spec in made.tools])
    assert sent + made.withheld_tokens >= most_tokens(everything) + hidden  # type: ignore[arg-type]
    assert (made.withheld_tokens == 0) == (offered == set(admitted))


def test_a_policy_that_cannot_be_read_offers_nothing() -> None:
    """Except what the conversation has calls of: providers refuse it without."""
    assert offer(run_of("echo", "forbidden"), CALL, force(None), []).tools == ()
