"""Does only the right decision count: of the right person, about the right call, in time?"""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from durable_agents.domain.approvals import (
    Approval,
    ApprovalDecision,
    ApprovalKind,
    Ladder,
    Rung,
    Standing,
    approval_digest,
    approval_id,
    consent,
    escalated,
    expiry,
    judge,
    same_person,
)
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import CallPath, RunId
from tests.domain.strategies import NOW, approval, checked, decision

HOUR = timedelta(hours=1)
MOMENT = timedelta(microseconds=1)
ANYBODY, NAMED = approval(), approval(("boss", "carl@corp.example"))


@pytest.mark.parametrize(
    ("asked", "by", "after", "changes", "standing"),
    [
        (ANYBODY, "boss", MOMENT, {}, Standing.COUNTS),
        (ANYBODY, "boss", MOMENT, {"decision": "deny"}, Standing.COUNTS),
        (ANYBODY, "boss", MOMENT, {"digest": ANYBODY.digest}, Standing.COUNTS),
        (ANYBODY, "boss", HOUR - MOMENT, {}, Standing.COUNTS),
        (ANYBODY, "boss", HOUR, {}, Standing.LATE),
        (ANYBODY, "boss", HOUR + MOMENT, {}, Standing.LATE),
        (ANYBODY, "boss", MOMENT, {"digest": digest("other")}, Standing.REFUSED),
        (ANYBODY, "boss", HOUR, {"digest": digest("other")}, Standing.REFUSED),
        (ANYBODY, "ann@corp.example", MOMENT, {}, Standing.REFUSED),
        (ANYBODY, "ann@corp.example", MOMENT, {"decision": "deny"}, Standing.REFUSED),
        (ANYBODY, "ANN@Corp.Example", MOMENT, {}, Standing.REFUSED),
        (ANYBODY, "ann+else@corp.example", MOMENT, {}, Standing.REFUSED),
        (ANYBODY, "\uff41\uff4e\uff4e@corp.example", MOMENT, {}, Standing.REFUSED),  # full-width letters
        (ANYBODY, "ann\uff0belse\uff20corp.example", MOMENT, {}, Standing.REFUSED),  # full-width + and @
        (ANYBODY, " ann@corp.example\u2029", MOMENT, {}, Standing.REFUSED),
        (ANYBODY, "a\u200bnn@corp.example", MOMENT, {}, Standing.REFUSED),  # zero-width space
        (ANYBODY, "ann\u00ad@corp.example", MOMENT, {}, Standing.REFUSED),  # soft hyphen
        (ANYBODY, "ann@corp.example\u3164", MOMENT, {}, Standing.REFUSED),  # Hangul filler
        (NAMED, "boss", MOMENT, {}, Standing.COUNTS),
        (NAMED, "BOSS", MOMENT, {}, Standing.COUNTS),
        (NAMED, "carl+work@corp.example", MOMENT, {}, Standing.COUNTS),
        (NAMED, "mallory", MOMENT, {}, Standing.REFUSED),
        (NAMED, "mallory", HOUR, {}, Standing.REFUSED),
        (NAMED, "*", MOMENT, {}, Standing.REFUSED),
        (NAMED, "boss2", MOMENT, {}, Standing.REFUSED),
        (approval(("ann@corp.example",)), "ann@corp.example", MOMENT, {}, Standing.REFUSED),
    ],
)
def test_only_the_right_decision_counts(
    asked: Approval, by: str, after: timedelta, changes: dict[str, Any], standing: Standing
) -> None:
    """Each row is a way to get consent that was not given."""
    judgement = judge(asked, decision(asked, by, **changes), NOW + after)
    assert judgement.standing is standing
    assert bool(judgement.reason) == (standing is not Standing.COUNTS)


@checked
@given(
    st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cf"]), min_size=1, max_size=30),
    st.timedeltas(min_value=-HOUR, max_value=3 * HOUR),
)
def test_nothing_counts_at_or_after_the_deadline_or_from_the_requester(by: str, after: timedelta) -> None:
    """Whoever says it and whenever: the deadline is the workflow's, and nobody consents to their own request."""
    asked = approval(requester=by)
    assert judge(asked, decision(asked, by), NOW + after).standing is Standing.REFUSED
    other = approval(requester="somebody-else-entirely")
    assert (judge(other, decision(other, by), NOW + after).standing is Standing.COUNTS) == (after < HOUR)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ann", "Ann", True),
        ("straße", "STRASSE", True),
        ("ann@a.example", "ann+x@a.example", True),
        ("ann+x@a.example", "ann+y@a.example", True),
        ("\ufb01nn", "finn", True),  # a ligature
        ("ann", "anna", False),
        ("ann@a.example", "ann@b.example", False),
        ("a+b", "a", False),  # no address, so + is part of the name
        ("", "", True),
    ],
)
def test_one_person_is_known_under_every_spelling(one: str, other: str, same: bool) -> None:
    """A second account is a person; a second spelling is not."""
    assert same_person(one, other) is same
    assert same_person(other, one) is same


BOUND: dict[str, Any] = {
    "run": RunId("run:acme:k"),
    "path": CallPath("1.0"),
    "kind": ApprovalKind.TOOL_CALL,
    "tool": "refund",
    "arguments": {"order": "A-1", "amount": "250"},
    "policy_digest": digest("policy"),
}


@pytest.mark.parametrize(
    "change",
    [
        {"run": RunId("run:acme:k2")},
        {"path": CallPath("1.1")},
        {"kind": ApprovalKind.OUTCOME},
        {"tool": "refund_all"},
        {"arguments": {"order": "A-1", "amount": "251"}},
        {"arguments": {"order": "A-1", "amount": 250}},
        {"arguments": {"order": "A-1", "amount": "250", "to": "mallory"}},
        {"arguments": {"order": "A-1"}},
        {"policy_digest": digest("policy 2")},
    ],
    ids=str,
)
def test_consent_is_bound_to_everything_that_was_shown(change: dict[str, Any]) -> None:
    """What was approved is what is executed: change anything, and it is another approval."""
    one, other = approval_digest(**BOUND), approval_digest(**(BOUND | change))
    assert one != other
    assert approval_id(one) != approval_id(other)


def test_the_order_of_arguments_does_not_unbind_consent() -> None:
    """PostgreSQL orders the keys of a jsonb its own way; that is not another call."""
    turned = BOUND | {"arguments": {"amount": "250", "order": "A-1"}}
    assert approval_digest(**turned) == approval_digest(**BOUND)


def test_escalation_asks_the_next_rung_from_now_on_and_the_old_one_no_more() -> None:
    """A person on the next rung gets the whole time; one on the last rung has had theirs."""
    first = approval(("boss",), ("ceo",))
    late = NOW + 2 * HOUR
    second = escalated(first, late)
    assert second is not None
    assert (second.rung, second.deadline, second.approvers) == (1, late + HOUR, ("ceo",))
    assert (second.id, second.digest) == (first.id, first.digest)
    assert judge(second, decision(second, "boss"), late).standing is Standing.REFUSED
    assert judge(second, decision(second, "ceo"), late).standing is Standing.COUNTS
    assert judge(first, decision(first, "ceo"), NOW).standing is Standing.REFUSED
    assert escalated(second, late + HOUR) is None


def test_silence_is_a_no() -> None:
    """The default must be the safe answer, and say whose it was."""
    asked = approval()
    silent = expiry(asked, NOW + HOUR)
    assert (silent.approved, silent.expired, silent.by, silent.digest) == (False, True, "deadline", asked.digest)
    assert "nobody decided" in silent.reason


@pytest.mark.parametrize(("word", "approved"), [("approve", True), ("deny", False)])
def test_consent_carries_the_requests_digest_not_the_senders(word: str, approved: bool) -> None:
    """The executor compares with what the run asked for; a sender cannot put another digest in."""
    asked = approval()
    given_ = consent(asked, decision(asked, "boss", decision=word, reason="why"), NOW)
    assert (given_.approved, given_.digest, given_.kind, given_.by, given_.expired) == (
        approved,
        asked.digest,
        asked.kind,
        "boss",
        False,
    )


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"approval_id": "a", "decision": "approve"},
        {"approval_id": "a", "decision": "yes", "by": "b"},
        {"approval_id": "a", "decision": True, "by": "b"},
        {"approval_id": "a", "decision": "APPROVE", "by": "b"},
        {"approval_id": "", "decision": "approve", "by": "b"},
        {"approval_id": "a", "decision": "approve", "by": ""},
        {"approval_id": "a", "decision": "approve", "by": "b\x00"},
        {"approval_id": "a", "decision": "approve", "by": "b\n"},
        {"approval_id": "a", "decision": "approve", "by": "b", "approved": True},
        {"approval_id": "a" * 101, "decision": "approve", "by": "b"},
        {"approval_id": "a", "decision": "approve", "by": "b" * 121},
        {"approval_id": "a", "decision": "approve", "by": "b", "reason": "c" * 2001},
        {"approval_id": "a", "decision": "approve", "by": "b", "digest": "d" * 65},
        {"approval_id": None, "decision": "approve", "by": "b"},
        [],
        "approve",
        None,
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_payload_that_is_no_decision_is_refused(payload: object) -> None:
    """A guess at what somebody meant is not consent."""
    with pytest.raises(ValidationError):
        ApprovalDecision.model_validate(payload)


@pytest.mark.parametrize("within", ["0s", "-1h", "3661d"])
def test_a_rung_has_a_deadline_that_can_be_met(within: str) -> None:
    """A deadline of zero denies at once, one beyond ten years never comes."""
    with pytest.raises(ValidationError):
        Rung.model_validate({"within": within})


def test_a_ladder_has_rungs() -> None:
    """Without one there is nobody to ask, and a run that waits for nobody waits for ever."""
    for rungs in ([], [{"within": "1h"}] * 11):
        with pytest.raises(ValidationError):
            Ladder.model_validate({"rungs": rungs})
