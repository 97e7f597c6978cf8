"""Can anybody who reaches the executor make it act without consent, whatever the run was made to believe?

Whoever may write to a Temporal namespace may also run a worker and hand `run_tool` any consent they like. So the executor is
asked here directly, with real rows and real keys, as a workflow would ask it that was told something false.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import audit
from activities.signatures import SigningKey, generate
from activities.tool_calls import ToolActivities
from durable_agents import Approval, ApprovalDecision, RunHandle
from durable_agents.domain.approvals import ApprovalKind, Consent, consent
from durable_agents.domain.identifiers import ApprovalId, TenantId, UserId
from durable_agents.domain.signatures import Bound, signed
from durable_agents.domain.tool_calls import ToolCallRequest, ToolSettled
from tests.support.scripts import tell, turns
from tests.support.signing import add_key, revoke_key
from tests.support.waiting import pending
from tests.support.world import World

pytestmark = pytest.mark.timeout(180)
RUNS, CALLS, REAL = 20, 16, 10
ACME = TenantId("acme")


@dataclass
class Thief:
    """Somebody with a worker, who has seen decisions go by."""

    bound: Callable[[Approval], Bound]
    keys: dict[str, SigningKey]
    chance: random.Random = field(default_factory=lambda: random.Random(11))

    def said(self, approval: Approval, by: str = "ann", word: str = "approve", *, key: str = "ann", **where: str) -> Consent:
        """What a run would believe after this decision, signed for this place."""
        decision = ApprovalDecision.model_validate({"approval_id": approval.id, "decision": word, "by": by})
        bound = self.bound(approval).model_copy(update=where)
        now = datetime.now(UTC)
        one = signed(
            decision, bound, self.keys[key], nonce=f"{self.chance.getrandbits(128):032x}", expires_at=now + timedelta(hours=1)
        )
        return consent(approval, one, now)


Attack = Callable[[Thief, Approval, Approval], Consent]


def _with(given: Consent, **changes: object) -> Consent:
    return given.model_copy(update=changes)


def _signature_of(given: Consent, other: Consent) -> Consent:
    return given.model_copy(update={"signature": other.signature})


def _out_of_date(thief: Thief, mine: Approval, _: Approval) -> Consent:
    given = thief.said(mine)
    assert given.signature is not None
    return _with(given, decided_at=given.signature.expires_at)


def _altered(thief: Thief, mine: Approval, _: Approval) -> Consent:
    given = thief.said(mine)
    assert given.signature is not None
    place = thief.chance.randrange(128)
    digit = "0" if given.signature.value[place] != "0" else "1"
    value = given.signature.value[:place] + digit + given.signature.value[place + 1 :]
    return _with(given, signature=given.signature.model_copy(update={"value": value}))


ATTACKS: dict[str, tuple[Attack, str]] = {
    "unsigned": (lambda thief, mine, _: _with(thief.said(mine), signature=None), "not signed"),
    "a yes made of a no": (lambda thief, mine, _: _with(thief.said(mine, word="deny"), approved=True), "does not fit"),
    "a yes made of silence": (
        lambda thief, mine, _: _with(thief.said(mine), expired=True, by=UserId("deadline"), signature=None),
        "not among",
    ),
    "another call's signature": (lambda thief, mine, other: _signature_of(thief.said(mine), thief.said(other)), "does not fit"),
    "another call's consent": (lambda thief, _, other: thief.said(other), "bound to another call"),
    "another kind's consent": (
        lambda thief, mine, _: _with(thief.said(mine), kind=ApprovalKind.OUTCOME),
        "bound to another call",
    ),
    "an id nobody asked about": (
        lambda thief, mine, _: _with(thief.said(mine), approval_id=ApprovalId("ap-0000000000000000")),
        "bound to another call",
    ),
    "another reason": (lambda thief, mine, _: _with(thief.said(mine), reason="do it twice"), "does not fit"),
    "in another's name": (lambda thief, mine, _: _with(thief.said(mine), by=UserId("bob")), "is not bob's"),
    "a key nobody registered": (lambda thief, mine, _: thief.said(mine, key="self-made"), "no key"),
    "a stranger's key": (lambda thief, mine, _: thief.said(mine, key="mallory"), "is not ann's"),
    "a stranger": (lambda thief, mine, _: thief.said(mine, "mallory", key="mallory"), "not among"),
    "who asked": (lambda thief, mine, _: thief.said(mine, "Requester", key="requester"), "who asked"),
    "a revoked key": (lambda thief, mine, _: thief.said(mine, key="old"), "is revoked"),
    "another tenant's key": (lambda thief, mine, _: thief.said(mine, key="rival"), "no key"),
    "for another tenant": (lambda thief, mine, _: thief.said(mine, tenant="rival"), "does not fit"),
    "for another namespace": (lambda thief, mine, _: thief.said(mine, namespace="staging"), "does not fit"),
    "for an older run": (lambda thief, mine, _: thief.said(mine, first_execution="older"), "does not fit"),
    "for an older policy": (lambda thief, mine, _: thief.said(mine, policy_digest="0" * 64), "does not fit"),
    "for another tool": (lambda thief, mine, _: thief.said(mine, tool="echo"), "does not fit"),
    "out of date": (_out_of_date, "usable until"),
    "altered": (_altered, "does not fit"),
}


@dataclass(frozen=True)
class Scene:
    """Runs whose calls all wait, without a worker, and the executor beside them."""

    asked: list[tuple[RunHandle, Approval]]
    thief: Thief
    tools: ToolActivities

    async def execute(self, number: int, given: Consent) -> str:
        """What became of a call with this consent: its result and rule, or the error."""
        run, approval = self.asked[number]
        turn, _, index = approval.path.partition(".")
        request = ToolCallRequest(tenant=ACME, run_id=run.id, turn=int(turn), index=int(index), consent=given)
        try:
            outcome = await ActivityEnvironment().run(self.tools.run_tool, request)
        except ApplicationError as error:
            return f"{'final' if error.non_retryable else 'passing'}: {error}"
        assert isinstance(outcome, ToolSettled), outcome
        return f"{outcome.result} {outcome.rule}"


async def scene(world: World, runs: int, calls: int) -> Scene:
    """So many runs, each with so many calls that want a signed decision."""
    keys = {name: await add_key(world, name) for name in ("ann", "mallory", "requester")}
    keys |= {"old": await add_key(world, "ann"), "rival": await add_key(world, "ann", "rival"), "self-made": generate()}
    await revoke_key(world, keys["old"])
    await world.script(turns([tell("SIGNED")] * calls, "done"))
    asked: list[tuple[RunHandle, Approval]] = []
    places: dict[ApprovalId, Bound] = {}
    async with world.worker(cached=100):
        for run in [await world.start() for _ in range(runs)]:
            for approval in await pending(run, calls):
                asked.append((run, approval))
                places[approval.id] = await run.bound_to(approval)
            await world.client.temporal.get_workflow_handle(run.id).terminate()
    tools = ToolActivities(world.resources.database, world.resources.catalog)
    return Scene(asked, Thief(lambda approval: places[approval.id], keys), tools)


async def test_no_forged_consent_makes_the_executor_act_and_each_is_audited_with_its_reason(world: World) -> None:
    """310 tries of 22 kinds with real rows and keys, then ten real decisions, which are the only ones that do anything."""
    here = await scene(world, RUNS, CALLS)
    names, used = sorted(ATTACKS), Counter[str]()
    attacked = len(here.asked) - REAL
    for number in range(attacked):
        (_, mine), (_, other) = here.asked[number], here.asked[number + 1]
        name = names[number % len(names)]
        attack, reason = ATTACKS[name]
        said = await here.execute(number, attack(here.thief, mine, other))
        assert reason in said, (name, said)
        assert said.startswith(("refused", "final")), (name, said)
        used[name] += 1
    assert (len(used), used.total()) == (len(ATTACKS), 310)
    assert (await world.shop_counts())["messages"] == 0
    refused = await world.rows("select body->>'refused' from audit_entry where event = 'consent_refused'")
    mismatched = sum(count for name, count in used.items() if ATTACKS[name][1] == "bound to another call")
    assert len(refused) == attacked - mismatched
    assert all(row[0] for row in refused)
    assert await world.rows("select 1 from used_nonce") == []
    for number in range(attacked, len(here.asked)):
        assert (await here.execute(number, here.thief.said(here.asked[number][1]))).startswith("ok")
    assert (await world.shop_counts())["messages"] == REAL
    assert len(await world.rows("select 1 from used_nonce")) == REAL
    async with world.resources.database.transaction(ACME) as connection:
        assert await audit.verify(connection, ACME) is None


async def test_a_decision_that_has_had_its_effect_has_no_other(world: World) -> None:
    """Replayed at its own call it changes nothing; its nonce, taken for another decision, buys nothing."""
    here = await scene(world, 1, 2)
    (_, mine), (_, other) = here.asked
    given = here.thief.said(mine)
    assert (await here.execute(0, given)).startswith("ok")
    assert (await here.execute(0, given)).startswith("ok"), "the recorded outcome, again"
    assert (await world.shop_counts())["messages"] == 1
    assert given.signature is not None
    again = ApprovalDecision.model_validate({"approval_id": other.id, "decision": "approve", "by": "ann"})
    soon = datetime.now(UTC) + timedelta(hours=1)
    second = signed(again, here.thief.bound(other), here.thief.keys["ann"], nonce=given.signature.nonce, expires_at=soon)
    assert "used before" in await here.execute(1, consent(other, second, datetime.now(UTC)))
    assert (await world.shop_counts())["messages"] == 1
