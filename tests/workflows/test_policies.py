"""Does a policy that the business changes hold from the next decision on, in every run under way, for its tenant alone?"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from pydantic import JsonValue

from activities import audit, policies
from activities.postgres import Database
from activities.providers.interface import ModelProvider, ProviderAnswer, ProviderRequest
from durable_agents import RunHandle, RunStatus
from durable_agents.domain.approvals import ApprovalKind
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Digest, TenantId
from durable_agents.domain.permissions import Policy
from tests.support.scripts import Call, refund, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World

ACME = TenantId("acme")
BY_ANN: dict[str, Any] = {"l": {"rungs": [{"approvers": ["ann"], "within": "4h"}]}}
BY_BOB: dict[str, Any] = {"l": {"rungs": [{"approvers": ["bob"], "within": "4h"}]}}
ALLOWS: dict[str, Any] = {"rules": [{"allow": "*"}]}
LOCKS: dict[str, Any] = {"rules": []}
ASKS_ANN: dict[str, Any] = {"rules": [{"ask": "issue_refund", "ladder": "l"}, {"allow": "*"}], "ladders": BY_ANN}
ASKS_BOB: dict[str, Any] = ASKS_ANN | {"ladders": BY_BOB}
Put = Callable[..., Coroutine[Any, Any, int]]


@pytest.fixture
async def put(world: World) -> AsyncIterator[Put]:
    """Puts a policy in force, as the command line does."""
    own = await Database.open(world.database.app, max_size=1)

    async def put_in_force(document: dict[str, Any], tenant: str = "acme", agent: str = "clerk") -> int:
        policy = Policy.model_validate(document)
        async with own.transaction(TenantId(tenant)) as connection:
            version, _ = await policies.put(connection, TenantId(tenant), agent, policy, "boss", "a test")
        return version

    yield put_in_force
    await own.close()


async def outcomes(world: World) -> list[tuple[str, str]]:
    """Result and rule of each call, in order."""
    rows = await world.rows(
        "select outcome ->> 'result' as result, coalesce(outcome ->> 'rule', '') as rule from tool_dispatch order by turn, index"
    )
    return [(row["result"], row["rule"]) for row in rows]


async def decided(world: World) -> list[tuple[int, str]]:
    """Policy version and ruling of each decision, in order."""
    rows = await world.rows("select policy_version, ruling from policy_decision order by turn, index, policy_version")
    return [(row["policy_version"], row["ruling"]) for row in rows]


class Watched:
    """The provider itself; notes what each request offers, and lets the business act between two requests."""

    def __init__(self, provider: ModelProvider) -> None:
        self._provider = provider
        self.before: dict[int, Callable[[], Awaitable[object]]] = {}
        """What happens before the n-th request (from 1) is answered."""
        self.offered: list[list[str]] = []

    async def complete(self, request: ProviderRequest) -> ProviderAnswer:
        """Send it."""
        self.offered.append(sorted(spec.name for spec in request.tools))
        if (act := self.before.get(len(self.offered))) is not None:
            await act()
        return await self._provider.complete(request)

    async def close(self) -> None:
        """Close it."""
        await self._provider.close()


@pytest.fixture
def watched(world: World) -> Watched:
    """Between a worker and its provider."""
    world.resources.providers["anthropic"] = made = Watched(world.resources.providers["anthropic"])
    return made


def digest_of(document: dict[str, Any]) -> Digest:
    """The digest of a policy."""
    return digest(Policy.model_validate(document).document())


async def events(world: World, event: str) -> list[dict[str, Any]]:
    """The bodies of a kind of audit entries."""
    rows = await world.rows("select body::text from audit_entry where event = $1 order by sequence", event)
    return [json.loads(row["body"]) for row in rows]


async def finish(world: World, run: RunHandle) -> None:
    """The run ends well, replays, and its tenant's log verifies."""
    assert (await run.result()).status is RunStatus.COMPLETED
    await world.replay(run)
    own = await Database.open(world.database.app, max_size=1)
    try:
        async with own.transaction(ACME) as connection:
            assert await audit.verify(connection, ACME) is None
    finally:
        await own.close()


async def test_a_rule_tightened_between_two_calls_of_one_run_holds_for_the_second(
    world: World, watched: Watched, put: Put
) -> None:
    """Whoever closes a door means now: a run of days must not go on under what was true when it was admitted."""
    await world.script(turns(refund("50.00"), refund("60.00"), "done"))
    watched.before[2] = lambda: put(LOCKS)
    async with world.worker():
        run = await world.start()
        await finish(world, run)
    assert (await world.shop_counts())["refunds"] == 1
    assert await outcomes(world) == [("ok", ""), ("refused", "no rule allows it")]
    assert await decided(world) == [(0, "allow"), (1, "deny")]
    assert "issue_refund" in watched.offered[1]
    assert len(watched.offered[1]) > 1
    assert watched.offered[2] == ["issue_refund"], "the conversation has calls of it, and no other tool is left"
    rows = await world.rows("select outcome ->> 'policy_digest' as digest from tool_dispatch order by turn")
    assert [row["digest"] for row in rows] == [None, digest_of(LOCKS)]
    (dispatched,) = await events(world, "tool_dispatched")
    ((admitted,),) = await world.rows("select terms ->> 'policy_digest' from run")
    assert dispatched["policy"] == admitted != digest_of(LOCKS)
    assert [body["policy"] for body in await events(world, "tool_settled")] == [admitted, digest_of(LOCKS)]


async def test_a_rule_loosened_in_between_asks_nobody_any_more_and_what_was_narrowed_comes_back(
    world: World, watched: Watched, put: Put
) -> None:
    """Both ways alike; and a request that offers more than the one that was counted still fits what was held for it."""
    await world.script(turns(refund("50.00"), refund("250.00"), tell("END"), "done"))
    await put(ALLOWS)

    async def only_refunds() -> None:
        await put({"rules": [{"allow": "issue_refund"}]})

    watched.before[1] = only_refunds
    watched.before[3] = lambda: put(ALLOWS)
    async with world.worker():
        run = await world.start()
        await finish(world, run)
        assert "policy version 1" in (await run.timeline())[0].what
    assert await outcomes(world) == [("ok", ""), ("ok", ""), ("ok", "")]
    assert await decided(world) == [(2, "allow"), (2, "allow"), (3, "allow")]
    everything = watched.offered[0]
    assert watched.offered == [everything, ["issue_refund"], ["issue_refund"], everything]
    assert await world.rows("select from model_attempt where overrun_micros > 0") == []
    withheld = [row[0] for row in await world.rows("select outcome ->> 'withheld_tokens' from model_call order by call")]
    assert [int(tokens or 0) > 500 for tokens in withheld] == [False, True, True, False]


async def test_what_was_not_offered_at_admission_is_not_called_later(world: World, watched: Watched, put: Put) -> None:
    """The run's requests are bounded by what it was admitted with: a tool that opens later is for later runs."""
    await put({"rules": [{"allow": "echo"}]})
    await world.script(turns(refund("50.00"), "done"))
    watched.before[1] = lambda: put(ALLOWS)
    async with world.worker():
        run = await world.start()
        await finish(world, run)
    assert await outcomes(world) == [("refused", "unknown tool")]
    assert watched.offered == [["echo"], ["echo"]]
    assert (await world.shop_counts())["refund_requests"] == 0


async def test_a_yes_given_under_another_policy_is_no_yes_and_the_new_policys_people_are_asked(world: World, put: Put) -> None:
    """Ann may no longer say yes to this: what she said before the change is kept, and executes nothing."""
    await put(ASKS_ANN)
    await world.script(turns(refund(), "done"))
    async with world.worker():
        run = await world.start()
        (first,) = await pending(run)
        assert first.policy_digest == digest_of(ASKS_ANN)
        await put(ASKS_BOB)
        await run.approve(first.id, by="ann")

        async def asked_again() -> bool:
            return any(one.id != first.id for one in await run.pending_approvals())

        await eventually(asked_again)
        (second,) = await run.pending_approvals()
        assert (second.approvers, second.policy_digest) == (("bob",), digest_of(ASKS_BOB))
        assert second.digest != first.digest
        assert (await world.shop_counts())["refund_requests"] == 0
        await run.approve(second.id, by="ann")
        await run.approve(second.id, by="bob")
        await finish(world, run)
    assert (await world.shop_counts())["refunds"] == 1
    void, valid = await events(world, "approval_decided")
    assert (void["by"], void["approved"], void["policy_changed_to"]) == ("ann", True, digest_of(ASKS_BOB))
    assert (valid["by"], "policy_changed_to" in valid) == ("bob", False)
    (dispatched,) = await events(world, "tool_dispatched")
    assert (dispatched["approval"], dispatched["policy"]) == (second.id, digest_of(ASKS_BOB))
    assert await decided(world) == [(1, "ask"), (2, "ask")]


@pytest.mark.parametrize(
    ("says", "changed", "outcome", "refunds"),
    [
        ("approve", ALLOWS, ("ok", ""), 1),
        ("approve", LOCKS, ("refused", "no rule allows it"), 0),
        ("deny", ALLOWS, ("refused", "denied by ann"), 0),
    ],
)
async def test_after_a_change_the_policy_in_force_decides_and_a_no_stays_a_no(
    world: World, put: Put, says: str, changed: dict[str, Any], outcome: tuple[str, str], refunds: int
) -> None:
    """A yes given before decides nothing: the call is made by the new policy's own right, or not. A no needs no policy."""
    await put(ASKS_ANN)
    await world.script(turns(refund("50.00"), "done"))
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        await put(changed)
        await (run.approve if says == "approve" else run.deny)(approval.id, by="ann")
        await finish(world, run)
    assert await outcomes(world) == [outcome]
    assert (await world.shop_counts())["refunds"] == refunds
    assert [body["approval"] for body in await events(world, "tool_dispatched")] == [None] * refunds
    (row,) = await world.rows("select decided_by, approved from approval")
    assert tuple(row) == ("ann", says == "approve")


async def test_going_back_to_an_earlier_policy_revives_no_earlier_yes(world: World, put: Put) -> None:
    """Ann's yes was void when the policy changed; that it changes back does not mend it, and the run can still be decided."""
    await world.script(turns(refund(), "done"))
    await put(ASKS_ANN)
    asked = []
    async with world.worker():
        run = await world.start()
        for following in (ASKS_BOB, ASKS_ANN, ASKS_ANN):
            (approval,) = await pending(run)
            assert approval.id not in asked
            asked.append(approval.id)
            await put(following)
            await run.approve(approval.id, by=approval.approvers[0])

            async def moved_on(last: str = approval.id) -> bool:
                return all(one.id != last for one in await run.pending_approvals())

            await eventually(moved_on)
        await finish(world, run)
    assert len(asked) == 3
    assert (await world.shop_counts())["refunds"] == 1
    (dispatched,) = await events(world, "tool_dispatched")
    assert dispatched["approval"] == asked[2]


async def test_a_change_while_the_outcome_is_asked_changes_nothing_about_the_facts(world: World, put: Put) -> None:
    """Whether a message was sent is no question of policy: the answer counts, fails no run and is not asked for twice."""
    await world.script(turns(tell(), "done"))
    await world.fault(path="/messages", after_effect="500", times=1)
    async with world.worker():
        run = await world.start()
        (approval,) = await pending(run)
        assert approval.kind is ApprovalKind.OUTCOME
        await put(LOCKS)
        await run.approve(approval.id, by="ann", reason="it was sent")
        await finish(world, run)
    assert await outcomes(world) == [("ok", "resolved by ann")]


@pytest.mark.parametrize("how", ["altered", "another release's"])
async def test_a_policy_that_cannot_be_read_denies(world: World, watched: Watched, put: Put, how: str) -> None:
    """What was altered behind everybody's back, or is beyond this code, must not fall back to something looser: default is no."""
    await put(ALLOWS)
    await world.script(turns(refund("50.00"), "done"))

    async def spoil() -> None:
        if how == "altered":
            loosest = '[{"allow": "*"}]'
            await world.change("update policy_version set document = jsonb_set(document, '{rules}', $1::text::jsonb)", loosest)
        else:
            newer: JsonValue = {"rules": [{"allow": "*", "unless": "x"}]}
            statement = "update policy_version set document = $1::text::jsonb, digest = $2"
            await world.change(statement, json.dumps(newer), digest(newer))

    watched.before[1] = spoil
    async with world.worker():
        run = await world.start()
        await finish(world, run)
        again = await (await world.start()).result()
    assert await outcomes(world) == [("refused", "the policy cannot be read")]
    assert watched.offered[1] == ["issue_refund"]
    assert (await world.shop_counts())["refund_requests"] == 0
    assert again.status is RunStatus.FAILED
    assert again.failure is not None
    assert again.failure.kind == "invalid_agent"
    assert "version 1 of the policy of clerk cannot be read" in again.failure.message
    assert "policy put" in again.failure.message


async def test_one_tenants_policy_is_nobody_elses(world: World, put: Put) -> None:
    """Neither the rules nor their versions: a tenant that locks its agents locks nobody else's, nor another agent of its own."""
    await put(LOCKS, tenant="rival")
    await put(LOCKS, agent="router")
    await world.script(turns(refund("50.00"), "done"))
    async with world.worker():
        run = await world.start()
        rivals = await world.start(tenant="rival")
        assert (await rivals.result()).status is RunStatus.COMPLETED
        await finish(world, run)
    rows = await world.rows("select tenant, coalesce(outcome ->> 'rule', '') as rule from tool_dispatch order by tenant")
    assert [tuple(row) for row in rows] == [("acme", ""), ("rival", "unknown tool")]


async def test_conditions_know_what_the_run_has_used_who_asks_and_when(world: World, put: Put) -> None:
    """The facts come from the database, the same for each worker and each attempt."""
    groups = {"groups": {"desk": ["ann", "requester"]}, "roles": {"desk": ["@desk"], "bosses": ["boss"]}}
    when = "calls < 2 && spent > 0 && spent < 1 && now > timestamp('2026-01-01T00:00:00Z') && 'desk' in roles && agent == 'clerk'"
    await put({**groups, "rules": [{"allow": "*", "role": "desk", "when": when}, {"deny": "tell_customer", "role": "bosses"}]})
    echo: Call = ("echo", {"text": "x"})
    await world.script(turns([echo, echo], [echo], "done"))
    async with world.worker():
        run = await world.start()
        await finish(world, run)
    assert [result for result, _ in await outcomes(world)] == ["ok", "ok", "refused"]
    facts = [json.loads(row["facts"]) for row in await world.rows("select facts from policy_decision order by turn, index")]
    assert [one["calls"] for one in facts] == [0, 1, 2]
    assert 0 < facts[0]["spent_micros"] == facts[1]["spent_micros"] < facts[2]["spent_micros"]
    assert facts[0]["args"] == {"text": "x", "times": 1}


async def test_an_agent_whose_ladder_the_policy_lacks_is_not_admitted(world: World, put: Put) -> None:
    """Better now than when its models fail at night and nobody can be asked."""
    await put(ALLOWS, agent="router")
    async with world.worker():
        result = await (await world.start(agent="router")).result()
    assert result.failure is not None
    assert result.failure.kind == "invalid_agent"
    assert "there is no ladder 'operators' in the policy (version 1)" in result.failure.message
