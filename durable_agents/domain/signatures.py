"""Did this approver really decide this, about this call of this run, and not before or elsewhere?

A signature covers everything that could be exchanged: whose run it is and where, what is asked, down to the digest of the
arguments, and what was said by whom. It is checked when the decision arrives, and again by whoever acts on it, from what is about
to be done.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from durable_agents.domain.approvals import Approval, ApprovalDecision, ApprovalKind, Consent, Signature, same_person
from durable_agents.domain.canonical import canonical_json, digest
from durable_agents.domain.identifiers import ApprovalId, Digest, KeyId, RunId, TenantId, UserId

DOMAIN = "durable-agents/decision/1"
USABLE_FOR = timedelta(days=1)
"""So long after it was signed a decision may arrive, at most; the approval's own deadline holds as well."""
PUBLIC_KEY = r"^[0-9a-f]{64}$"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Verify = Callable[[str, bytes, str], bool]
"""Ed25519: does this signature (hex) of these bytes belong to this public key (hex)?"""


class Signer(Protocol):
    """Who can sign: holds the private key, or knows the device that does."""

    @property
    def key(self) -> KeyId:
        """The id of its public key."""
        ...

    def sign(self, message: bytes) -> str:
        """The Ed25519 signature of these bytes, in hex."""
        ...


class ApproverKey(BaseModel):
    """A public key and whose it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: KeyId
    approver: UserId
    public: str = Field(pattern=PUBLIC_KEY)
    """Hex."""
    added_by: str
    added_at: AwareDatetime
    revoked_by: str | None = None
    revoked_at: AwareDatetime | None = None


class Bound(BaseModel):
    """What a decision is about: one request of one run, wherever it may be shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant: TenantId
    namespace: str
    """Temporal's."""
    run_id: RunId
    first_execution: str
    """Temporal's id of the run's first execution: an older or later run of the same key is another."""
    approval_id: ApprovalId
    kind: ApprovalKind
    tool: str
    digest: Digest
    """Of the arguments and everything else the approval is bound to."""
    policy_digest: Digest

    @classmethod
    def to(cls, approval: Approval, *, tenant: TenantId, namespace: str, run_id: RunId, first_execution: str) -> "Bound":
        """Bound to what is asked."""
        return cls(
            tenant=tenant,
            namespace=namespace,
            run_id=run_id,
            first_execution=first_execution,
            approval_id=approval.id,
            kind=approval.kind,
            tool=approval.tool,
            digest=approval.digest,
            policy_digest=approval.policy_digest,
        )


def key_id(public: str) -> KeyId:
    """The id of a public key (hex)."""
    return KeyId(f"k-{digest(['durable-agents/key/1', public])[:16]}")


def signed_form(
    bound: Bound,
    *,
    decision: Literal["approve", "deny"],
    by: str,
    reason: str,
    key: KeyId,
    nonce: str,
    expires_at: datetime,
) -> bytes:
    """The bytes that are signed: canonical JSON, and nothing else of ours is canonical JSON with this `domain`."""
    return canonical_json(
        {
            "domain": DOMAIN,
            "tenant": bound.tenant,
            "namespace": bound.namespace,
            "run": bound.run_id,
            "first_execution": bound.first_execution,
            "approval": bound.approval_id,
            "kind": bound.kind.value,
            "tool": bound.tool,
            "arguments": bound.digest,
            "policy": bound.policy_digest,
            "decision": decision,
            "by": by,
            "reason": reason,
            "key": key,
            "nonce": nonce,
            "expires_micros": (expires_at - _EPOCH) // timedelta(microseconds=1),
        }
    )


def signed(decision: ApprovalDecision, bound: Bound, signer: Signer, *, nonce: str, expires_at: datetime) -> ApprovalDecision:
    """The decision with its signature. `nonce`: 32 hex digits of chance."""
    form = signed_form(
        bound, decision=decision.decision, by=decision.by, reason=decision.reason,
        key=signer.key, nonce=nonce, expires_at=expires_at,
    )  # fmt: skip
    signature = Signature(key=signer.key, nonce=nonce, expires_at=expires_at, value=signer.sign(form))
    return decision.model_copy(update={"signature": signature})


def decision_problem(
    decision: ApprovalDecision, bound: Bound, key: ApproverKey | None, arrived: datetime, verify: Verify
) -> str | None:
    """What is wrong with a decision's signature; None: nothing, or there is none. `key`: the one of its id, if there is one."""
    if decision.signature is None:
        return None
    return _problem(decision.signature, bound, key, arrived, verify, decision.decision, decision.by, decision.reason)


def consent_problem(consent: Consent, bound: Bound, key: ApproverKey | None, verify: Verify) -> str | None:
    """The same of a decision that counted, as whoever acts on it sees it."""
    if consent.signature is None:
        return None
    word: Literal["approve", "deny"] = "approve" if consent.approved else "deny"
    return _problem(consent.signature, bound, key, consent.decided_at, verify, word, consent.by, consent.reason)


def _problem(
    signature: Signature,
    bound: Bound,
    key: ApproverKey | None,
    arrived: datetime,
    verify: Verify,
    decision: Literal["approve", "deny"],
    by: str,
    reason: str,
) -> str | None:
    if key is None or key.key != signature.key:
        return f"no key {signature.key} is registered here"
    if key.revoked_at is not None:
        return f"key {key.key} is revoked"
    if not same_person(key.approver, by):
        return f"key {key.key} is not {by}'s"
    if arrived >= signature.expires_at:
        return f"it was usable until {signature.expires_at.isoformat(timespec='seconds')}"
    form = signed_form(
        bound, decision=decision, by=by, reason=reason,
        key=signature.key, nonce=signature.nonce, expires_at=signature.expires_at,
    )  # fmt: skip
    if not verify(key.public, form, signature.value):
        return "its signature does not fit: what it says, or what it is about, is not what was signed"
    return None
