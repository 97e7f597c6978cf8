"""Can a tool call's row be begun twice, settled twice, or changed by an attempt that was overtaken?"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from activities import dispatches
from activities.heartbeat import STALE_ATTEMPT
from activities.postgres import Connection, Database
from durable_agents.domain.approvals import ApprovalKind, Consent, Ladder, Rung
from durable_agents.domain.canonical import digest
from durable_agents.domain.effects import Dispatch, DispatchState, Effect, effect_key
from durable_agents.domain.identifiers import ApprovalId, CallPath, RunId, TenantId, UserId
from durable_agents.domain.tool_calls import ConsentNeeded, ToolCallRequest, ToolSettled
from tests.domain.strategies import NOW
from tests.support.world import TestDatabase

ACME, RUN = TenantId("acme"), RunId("run:acme:k")
CALL = ToolCallRequest(tenant=ACME, run_id=RUN, turn=1, index=0)
KEY = effect_key(ACME, RUN, "first", CallPath("1.0"))
FIRST, SECOND, THIRD = 1000, 2000, 3000
OK = ToolSettled(result="ok", preview="done", message_bytes=4)
ARGUMENTS = digest({"amount": "250"})
ASKED = ConsentNeeded(
    approval_id=ApprovalId("ap-1"), approval_kind=ApprovalKind.TOOL_CALL, tool="refund", title="t", facts={}, model_says="",
    digest=digest("bound"), policy_digest=digest("policy"), ladder=Ladder(rungs=(Rung(within=timedelta(hours=1)),)),
)  # fmt: skip
Step = Callable[[Connection], Awaitable[object]]


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Database]:
    """A database with one admitted run."""
    found = await Database.open(database.app)
    async with found.transaction(ACME) as connection:
        await connection.execute(
            "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
            " values ($1, $2, 'first', 'd', 'a', 'v', 'u', '{}')", ACME, RUN,
        )  # fmt: skip
    yield found
    await found.close()


def begin(fence: int, arguments: str = ARGUMENTS, tries: int = 0) -> Step:
    """An attempt that found so many tries writes down that it is about to send."""
    return lambda connection: dispatches.begin(
        connection, CALL, key=KEY, tool="refund", effect=Effect.AT_MOST_ONCE, arguments=digest(arguments), fence=fence,
        tries=tries,
    )  # fmt: skip


def mark(state: DispatchState, fence: int) -> Step:
    """An attempt writes down what it knows without an outcome."""
    return lambda connection: dispatches.mark(connection, CALL, state, fence)


def settle(fence: int, outcome: ToolSettled = OK) -> Step:
    """An attempt writes down its outcome."""
    return lambda connection: dispatches.settle(connection, CALL, outcome, key=KEY, tool="refund", fence=fence)


async def does(database: Database, *steps: Step) -> None:
    """Steps, each in a transaction of its own."""
    for step in steps:
        async with database.transaction(ACME) as connection:
            await step(connection)


async def refuses(database: Database, *steps: Step) -> None:
    """Each of these steps is refused as overtaken, and changes nothing."""
    before = await row(database)
    for step in steps:
        with pytest.raises(ApplicationError) as refused:
            await does(database, step)
        assert refused.value.type == STALE_ATTEMPT
        assert await row(database) == before


async def row(database: Database) -> tuple[Dispatch, ToolSettled | None] | None:
    """The call's row."""
    async with database.transaction(ACME) as connection:
        return await dispatches.find(connection, CALL)


async def test_a_call_goes_from_dispatched_to_settled(opened: Database) -> None:
    """The row before the effect, the outcome after."""
    assert await row(opened) is None
    await does(opened, begin(FIRST))
    assert await row(opened) == (
        Dispatch(
            state=DispatchState.DISPATCHED, effect=Effect.AT_MOST_ONCE, arguments_digest=digest(ARGUMENTS), tries=1, fence=FIRST
        ),
        None,
    )
    await does(opened, settle(FIRST))
    found = await row(opened)
    assert found is not None
    assert (found[0].state, found[1]) == (DispatchState.SETTLED, OK)


async def test_a_settled_call_is_final(opened: Database) -> None:
    """No attempt, however new, opens it again or writes another outcome."""
    await does(opened, begin(FIRST), settle(FIRST))
    other = OK.model_copy(update={"result": "error"})
    await refuses(
        opened, begin(SECOND, tries=1), settle(SECOND, other), settle(FIRST, other), mark(DispatchState.UNKNOWN, SECOND)
    )


async def test_a_newer_attempt_takes_the_row_over(opened: Database) -> None:
    """The older one was paused; when it comes back it can neither send again nor say what came of it."""
    await does(opened, begin(FIRST), begin(SECOND, tries=1))
    found = await row(opened)
    assert found is not None
    assert (found[0].tries, found[0].fence) == (2, SECOND)
    late = (begin(FIRST, tries=2), settle(FIRST), mark(DispatchState.NOT_SENT, FIRST), mark(DispatchState.UNKNOWN, FIRST))
    await refuses(opened, *late)
    await does(opened, settle(SECOND))


async def test_an_attempt_that_was_declared_unknown_settles_nothing(opened: Database) -> None:
    """A human is being asked what happened. If the paused worker could still write `not sent`, the call would be made again."""
    await does(opened, begin(FIRST), mark(DispatchState.UNKNOWN, SECOND))
    await refuses(opened, mark(DispatchState.NOT_SENT, FIRST), settle(FIRST), begin(FIRST, tries=1), begin(THIRD, tries=1))
    await does(opened, mark(DispatchState.UNKNOWN, THIRD), settle(THIRD))


async def test_what_is_unknown_never_becomes_not_sent(opened: Database) -> None:
    """Only an outcome ends it: the one a human found out."""
    await does(opened, begin(FIRST), mark(DispatchState.UNKNOWN, FIRST))
    await refuses(opened, mark(DispatchState.NOT_SENT, FIRST), mark(DispatchState.NOT_SENT, THIRD), begin(THIRD, tries=1))


async def test_a_try_that_did_nothing_may_be_followed_by_another(opened: Database) -> None:
    """The tries are counted, so that they end."""
    await does(opened, begin(FIRST), mark(DispatchState.NOT_SENT, FIRST), begin(SECOND, tries=1))
    found = await row(opened)
    assert found is not None
    assert (found[0].state, found[0].tries) == (DispatchState.DISPATCHED, 2)


async def test_other_arguments_never_get_the_same_row(opened: Database) -> None:
    """Same key, other arguments: the second would be sent under the consent for the first."""
    await does(opened, begin(FIRST), mark(DispatchState.NOT_SENT, FIRST))
    await refuses(opened, begin(SECOND, "other", tries=1))


async def test_a_call_that_was_never_sent_gets_its_one_outcome(opened: Database) -> None:
    """Denied, or senseless: it is settled without a dispatch, once."""
    denied = ToolSettled(result="refused", preview="no", message_bytes=2, rule="r", policy_digest=digest("p"))
    await does(opened, settle(FIRST, denied))
    await refuses(opened, settle(FIRST), begin(SECOND))
    found = await row(opened)
    assert found is not None
    assert found[1] == denied


async def test_of_attempts_that_found_no_row_at_once_one_may_send(opened: Database) -> None:
    """Nothing was there to lock when each looked, and each decided to call: only the one that writes it down first may."""
    begun = await asyncio.gather(*(does(opened, begin(SECOND + n)) for n in range(10)), return_exceptions=True)
    assert [end for end in begun if end is None] == [None]
    found = await row(opened)
    assert found is not None
    assert found[0].tries == 1
    ends = await asyncio.gather(*(does(opened, settle(THIRD)) for _ in range(10)), return_exceptions=True)
    assert [end for end in ends if end is None] == [None]


def decided(**changes: object) -> Consent:
    """A human's yes to ASKED."""
    said = Consent(
        approval_id=ASKED.approval_id, kind=ASKED.approval_kind, approved=True, by=UserId("boss"), reason="fine",
        digest=ASKED.digest, decided_at=NOW,
    )  # fmt: skip
    return said.model_copy(update=changes)


async def test_an_approval_is_asked_and_decided_once(opened: Database) -> None:
    """A decision bound to something else, or a second one, changes nothing."""
    async with opened.transaction(ACME) as connection:
        assert not await dispatches.decide_approval(connection, CALL, decided())
        assert await dispatches.open_approval(connection, CALL, ASKED)
        assert not await dispatches.open_approval(connection, CALL, ASKED)
        assert not await dispatches.decide_approval(connection, CALL, decided(digest=digest("other")))
        assert not await dispatches.decide_approval(connection, CALL, decided(approval_id=ApprovalId("ap-2")))
        assert await dispatches.decide_approval(connection, CALL, decided())
        assert not await dispatches.decide_approval(connection, CALL, decided(approved=False, by=UserId("late")))
        found = await connection.fetchrow("select approved, decided_by, digest, request from approval")
    assert found is not None
    assert (found["approved"], found["decided_by"], found["digest"]) == (True, "boss", ASKED.digest)
    assert ConsentNeeded.model_validate(found["request"]) == ASKED
