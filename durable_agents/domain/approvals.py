"""What may a human decide, until when, who may, and does a decision that arrives count?

The first valid decision wins, duplicates are inert, late ones are refused, the deadline is the workflow's time, the default
is no. An approval's digest binds it to one tool, one set of canonical arguments, one run, one policy. Who really said it is
`signatures`.
"""

import unicodedata
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from durable_agents.domain.canonical import Words, digest, inert, visible
from durable_agents.domain.durations import Duration
from durable_agents.domain.identifiers import ApprovalId, CallPath, Digest, KeyId, Person, RunId, UserId

ANYBODY = "*"
UNSIGNED = "it is not signed, and the policy wants it signed"
MAX_MESSAGE_BYTES = 16 * 1024
"""A decision is a few hundred bytes; anything larger is not one."""


class Rung(BaseModel):
    """Who is asked, and for how long, before the next rung is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    approvers: tuple[str, ...] = (ANYBODY,)
    """User ids; `*` is anybody but the requester."""
    within: Duration = Field(gt=timedelta(0), le=timedelta(days=3660))
    quorum: int = Field(default=1, ge=1, le=10, exclude_if=lambda quorum: quorum == 1)
    """So many different people must approve; the first of them who denies ends it."""

    remind: Duration | None = Field(default=None, gt=timedelta(0), exclude_if=lambda remind: remind is None)
    """So long after they were asked they are reminded, once."""

    @model_validator(mode="after")
    def _reminds_in_time(self) -> "Rung":
        if self.remind is not None and self.remind >= self.within:
            raise ValueError("`remind` comes after `within` is over: nobody would be reminded")
        return self

    @model_validator(mode="after")
    def _can_be_met(self) -> "Rung":
        people = {_identity(name) for name in self.approvers}
        countable = ANYBODY not in people and not any(name.startswith("@") for name in people)
        if self.quorum > 1 and countable and len(people) < self.quorum:
            raise ValueError(f"{self.quorum} people must approve, and {len(people)} may")
        return self

    @property
    def asked(self) -> str:
        """Who is asked, as a person reads it."""
        who = "anybody but the requester" if ANYBODY in self.approvers else ", ".join(self.approvers)
        return who if self.quorum == 1 else f"{self.quorum} of {who}"


class Ladder(BaseModel):
    """Who is asked, in order, and what follows when nobody answers or somebody says no."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rungs: tuple[Rung, ...] = Field(min_length=1, max_length=10)
    on_denial: Literal["tell_model", "end"] = "tell_model"
    on_expiry: Literal["deny", "end"] = "deny"
    signed: bool = Field(default=False, exclude_if=lambda signed: not signed)
    """Only signed decisions count. Else whoever may write to Temporal may decide in anybody's name."""


class ApprovalKind(StrEnum):
    """What a human is asked for."""

    TOOL_CALL = "tool_call"  # may the call be made?
    OUTCOME = "outcome"  # an effect's outcome is unknown: did it happen?
    TOP_UP = "top_up"  # a limit is reached: may the run have more?
    TAKE_OVER = "take_over"  # the run's models are at their end: will a human take it over?


class Signature(BaseModel):
    """That the approver said it: Ed25519 over `signatures.signed_form`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: KeyId = Field(pattern=r"^k-[0-9a-f]{16}$")
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Chance, so that no two decisions are one; used up with the effect."""
    expires_at: AwareDatetime
    """It must reach the run before."""
    value: str = Field(pattern=r"^[0-9a-f]{128}$")


class Consent(BaseModel):
    """A decision that counted: what the executor checks again and records beside the effect."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    approval_id: ApprovalId
    kind: ApprovalKind
    approved: bool
    by: UserId
    reason: str
    digest: Digest
    decided_at: AwareDatetime
    expired: bool = False
    """Nobody decided in time: `approved` is False and `by` names the deadline."""
    signature: Signature | None = Field(default=None, exclude_if=lambda signature: signature is None)
    others: tuple["Consent", ...] = Field(default=(), exclude_if=lambda others: not others)
    """Where several must approve: those who did before."""

    @property
    def voices(self) -> tuple["Consent", ...]:
        """Everybody's, in the order in which they came."""
        return (*self.others, self)

    @property
    def people(self) -> str:
        """Everybody's names."""
        return ", ".join(voice.by for voice in self.voices)

    def audited(self) -> dict[str, JsonValue]:
        """The decision as the audit log keeps it."""
        keys = [voice.signature.key for voice in self.voices if voice.signature is not None]
        key: dict[str, JsonValue] = {"key": ", ".join(keys)} if keys else {}
        return {
            "approval": self.approval_id,
            "kind": self.kind,
            "approved": self.approved,
            "expired": self.expired,
            "by": self.people,
            "reason": inert(self.reason, 200),
            "digest": self.digest,
            **key,
        }


class Approval(BaseModel):
    """An open request to a human."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: ApprovalId
    kind: ApprovalKind
    path: CallPath
    tool: str
    title: str
    facts: dict[str, str]
    """The canonical arguments, each value inert and truncated with a mark."""
    model_says: str = ""
    """The model's own words, untrusted: inert, and to be shown as untrusted."""
    digest: Digest
    policy_digest: Digest
    requester: UserId
    ladder: Ladder
    rung: int = 0
    requested_at: AwareDatetime
    deadline: AwareDatetime
    """The end of the current rung, absolute, in workflow time."""
    agreed: tuple[Consent, ...] = Field(default=(), exclude_if=lambda agreed: not agreed)
    """Who has approved on this rung, while more must."""
    reminded: bool = Field(default=False, exclude_if=lambda reminded: not reminded)
    """Have those who are asked now been reminded?"""

    @property
    def quorum(self) -> int:
        """How many different people must approve now."""
        return self.ladder.rungs[self.rung].quorum

    @property
    def approvers(self) -> tuple[str, ...]:
        """Who may decide now."""
        return self.ladder.rungs[self.rung].approvers

    @property
    def asked(self) -> str:
        """Who may decide now, as a person reads it."""
        return self.ladder.rungs[self.rung].asked

    @property
    def remind_at(self) -> datetime | None:
        """When those who are asked now are to be reminded; None: they are not, or have been."""
        after = self.ladder.rungs[self.rung].remind
        return None if after is None or self.reminded else self.asked_since + after

    @property
    def asked_since(self) -> datetime:
        """When the current rung began to be asked."""
        return self.deadline - self.ladder.rungs[self.rung].within


class ApprovalDecision(BaseModel):
    """The payload of `submit_approval` and `decide_approval`. `digest` may be left out; if present it must be the request's.

    A signature that is present must be right, also where none is needed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    approval_id: ApprovalId = Field(min_length=1, max_length=100)
    decision: Literal["approve", "deny"]
    by: Person
    reason: Words = Field(default="", max_length=2000)
    digest: Digest | None = Field(default=None, max_length=64)
    signature: Signature | None = Field(default=None, exclude_if=lambda signature: signature is None)

    @property
    def excerpt(self) -> str:
        """The decision as one line for those who look for it among the rejected."""
        return f"{self.decision} {self.approval_id} by {self.by}"

    @classmethod
    def read(cls, data: bytes) -> "ApprovalDecision":
        """The payload of a signal as a decision. Raises ValueError with one line."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError(f"{len(data)} bytes are no decision")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'payload'}: {first['msg']}") from None


class Standing(StrEnum):
    """Does a decision count?"""

    COUNTS = "counts"
    LATE = "late"
    REFUSED = "refused"


class Judgement(BaseModel):
    """Whether a decision counts, and why not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    standing: Standing
    reason: str = ""


def approval_digest(
    *,
    run: RunId,
    path: CallPath,
    kind: ApprovalKind,
    tool: str,
    arguments: dict[str, JsonValue],
    policy_digest: Digest,
    policy_version: int = 0,
) -> Digest:
    """What an approval is bound to. Change one argument, the tool, the policy or the run, and the digest is another.

    The version counts beside the policy's words: who goes back to an earlier policy has changed it twice.
    """
    version: dict[str, JsonValue] = {"policy_version": policy_version} if policy_version else {}
    return digest(
        {
            "domain": "durable-agents/approval/1",
            "run": run,
            "path": path,
            "kind": kind.value,
            "tool": tool,
            "arguments": dict(arguments),
            "policy": policy_digest,
            **version,
        }
    )


def approval_id(bound_to: Digest) -> ApprovalId:
    """The id of the approval with this digest: altered arguments make another id."""
    return ApprovalId(f"ap-{bound_to[:16]}")


def judge(approval: Approval, decision: ApprovalDecision, now: datetime) -> Judgement:
    """Does this decision count for this open approval at workflow time `now`?"""
    if (refusal := _refusal(approval, decision)) is not None:
        return Judgement(standing=Standing.REFUSED, reason=refusal)
    if now >= approval.deadline:
        return Judgement(standing=Standing.LATE, reason=f"the deadline was {approval.deadline.isoformat(timespec='seconds')}")
    return Judgement(standing=Standing.COUNTS)


def _refusal(approval: Approval, decision: ApprovalDecision) -> str | None:
    """Why it counts at no time."""
    if decision.digest is not None and decision.digest != approval.digest:
        return "it is bound to other arguments than the ones waiting"
    if same_person(decision.by, approval.requester):
        return "who asked for the run cannot approve it"
    if not among(decision.by, approval.approvers):
        return f"{decision.by} is not among the approvers asked now"
    if approval.ladder.signed and decision.signature is None:
        return UNSIGNED
    if decision.decision == "approve" and any(same_person(decision.by, voice.by) for voice in approval.agreed):
        return f"{decision.by} has approved it already, {len(approval.agreed)} of {approval.quorum} have"
    return None


def right_problem(consent: Consent, ladder: Ladder, requester: str) -> str | None:
    """Why these people may not have decided this, whatever a run believes; None: they may. Silence is always a no."""
    if consent.expired and not consent.approved:
        return None
    voices = consent.voices
    asked = [rung for rung in ladder.rungs if all(among(voice.by, rung.approvers) for voice in voices)]
    people = {_identity(voice.by) for voice in voices}
    enough = not consent.approved or len(people) >= min((rung.quorum for rung in asked), default=1)
    held_against_it = (
        (any(same_person(voice.by, requester) for voice in voices), "who asked for the run cannot approve it"),
        (any(voice.approved is not consent.approved for voice in voices), "they do not say the same"),
        (not asked, f"{consent.people} is not among the approvers"),
        (not enough, f"too few have approved: {consent.people}"),
        (ladder.signed and any(voice.signature is None for voice in voices), UNSIGNED),
    )
    return next((reason for is_so, reason in held_against_it if is_so), None)


def escalated(approval: Approval, now: datetime) -> Approval | None:
    """The approval on its next rung, asked from `now` on; None when there is no further rung."""
    following = approval.rung + 1
    if following >= len(approval.ladder.rungs):
        return None
    deadline = now + approval.ladder.rungs[following].within
    return approval.model_copy(update={"rung": following, "deadline": deadline, "agreed": (), "reminded": False})


def agreeing(approval: Approval, voice: Consent) -> Approval | None:
    """The approval with one more who has approved; None: nobody else needs to."""
    agreed = (*approval.agreed, voice)
    return approval.model_copy(update={"agreed": agreed}) if len(agreed) < approval.quorum else None


def consent(approval: Approval, decision: ApprovalDecision, decided_at: datetime) -> Consent:
    """The decision as the executor gets it."""
    return Consent(
        approval_id=approval.id,
        kind=approval.kind,
        approved=decision.decision == "approve",
        by=decision.by,
        reason=decision.reason,
        digest=approval.digest,
        decided_at=decided_at,
        signature=decision.signature,
        others=approval.agreed if decision.decision == "approve" else (),
    )


def expiry(approval: Approval, now: datetime) -> Consent:
    """What follows when nobody decided in time: no."""
    return Consent(
        approval_id=approval.id,
        kind=approval.kind,
        approved=False,
        by=UserId("deadline"),
        reason=f"nobody decided before {approval.deadline.isoformat(timespec='seconds')}",
        digest=approval.digest,
        decided_at=now,
        expired=True,
    )


def among(person: str, approvers: Iterable[str]) -> bool:
    """Is this one of the people who are asked?"""
    return any(name == ANYBODY or same_person(person, name) for name in approvers)


def same_person(one: str, other: str) -> bool:
    """Are these the same user id, whatever the case, the Unicode spelling, invisible characters, or a `+tag` before the @?"""
    return _identity(one) == _identity(other)


def _identity(name: str) -> str:
    spelled = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    folded = "".join(filter(visible, spelled)).strip()
    local, at, host = folded.partition("@")
    return f"{local.partition('+')[0]}@{host}" if at else folded
