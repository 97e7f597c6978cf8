"""How do tests sign decisions, rightly and wrongly?"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from activities import approver_keys, signatures
from activities.signatures import SigningKey
from durable_agents.domain.approvals import Approval, ApprovalDecision
from durable_agents.domain.identifiers import TenantId, UserId
from durable_agents.domain.run_state import RunState, received, verified
from durable_agents.domain.signatures import ApproverKey, Bound, decision_problem, signed
from tests.support.world import World

DAY = timedelta(days=1)


def registered(key: SigningKey, approver: str, now: datetime, *, revoked: bool = False) -> ApproverKey:
    """The key as the database has it."""
    return ApproverKey(
        key=key.key,
        approver=UserId(approver),
        public=key.public,
        added_by="admin",
        added_at=now - DAY,
        revoked_by="admin" if revoked else None,
        revoked_at=now if revoked else None,
    )


def sign(decision: ApprovalDecision, bound: Bound, key: SigningKey, now: datetime, nonce: str = "0" * 32) -> ApprovalDecision:
    """The decision with its signature, usable for a day."""
    return signed(decision, bound, key, nonce=nonce, expires_at=now + DAY)


@dataclass(frozen=True)
class Gate:
    """What the gate of a run does when decisions arrive, without a run."""

    bound: Bound
    keys: tuple[ApproverKey, ...]

    def deliver(self, state: RunState, now: datetime, decision: ApprovalDecision) -> RunState:
        """A decision arrives and, if need be, is verified."""
        return self.verify(received(state, now, "submit_approval", decision))

    def verify(self, state: RunState) -> RunState:
        """Verify all that is not."""
        for wanted in dict.fromkeys(one.decision.approval_id for one in state.unverified):
            state = verified(state, wanted, [self._problem(one.decision, one.at) for one in state.to_verify(wanted)])
        return state

    def _problem(self, decision: ApprovalDecision, at: datetime) -> str:
        wanted = decision.signature.key if decision.signature is not None else None
        key = next((one for one in self.keys if one.key == wanted), None)
        return decision_problem(decision, self.bound, key, at, signatures.verify) or ""


async def add_key(world: World, approver: str, tenant: str = "acme") -> SigningKey:
    """A key of an approver, registered."""
    key = signatures.generate()
    async with world.resources.database.transaction(TenantId(tenant)) as connection:
        assert await approver_keys.add(connection, TenantId(tenant), approver, key.public, "admin") == key.key
    return key


async def revoke_key(world: World, key: SigningKey, tenant: str = "acme") -> None:
    """End it."""
    async with world.resources.database.transaction(TenantId(tenant)) as connection:
        assert await approver_keys.revoke(connection, TenantId(tenant), key.key, "admin")


def alter(approval: Approval, **changes: object) -> Approval:
    """Another approval, which somebody might sign instead."""
    return approval.model_copy(update=changes)
