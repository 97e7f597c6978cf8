"""Does nothing but what an approver really signed, for exactly this request, count as their decision?"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from activities import signatures
from durable_agents.domain.approvals import (
    UNSIGNED,
    ApprovalDecision,
    ApprovalKind,
    Consent,
    Ladder,
    Signature,
    consent,
    expiry,
    right_problem,
)
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import ApprovalId, Digest, RunId, TenantId, UserId
from durable_agents.domain.run_state import SETTLED_BEFORE, RunState, asked, closed, received
from durable_agents.domain.runs import CancelRequest
from durable_agents.domain.signatures import Bound, consent_problem, decision_problem, key_id, signed, signed_form
from tests.domain.strategies import NOW, approval, decision, ladder
from tests.support.signing import Gate, registered, sign

MOMENT = timedelta(microseconds=1)
MANY = settings(max_examples=2500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
"""More than 2,000 attacks, each with real Ed25519."""
RACES = settings(max_examples=1000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

SIGNED = Ladder(rungs=ladder(("bob", "carl"), ("*",)).rungs, signed=True)
REQUEST = approval(ladder=SIGNED)
OTHER = approval(path="1.1", ladder=SIGNED)
WHERE: dict[str, Any] = {"tenant": "acme", "namespace": "default", "run_id": "run:acme:k", "first_execution": "e-1"}
BOUND = Bound.to(REQUEST, **WHERE)
BOB, CARL, ANN, MALLORY, STOLEN, SELF_MADE = (signatures.generate() for _ in range(6))
KEYS = (
    registered(BOB, "bob", NOW),
    registered(CARL, "carl", NOW),
    registered(ANN, "ann@corp.example", NOW),
    registered(MALLORY, "mallory", NOW),
    registered(STOLEN, "bob", NOW, revoked=True),
)
GATE = Gate(BOUND, KEYS)
WAITING = asked(RunState(started_at=NOW), NOW, REQUEST)
LIFE = NOW + timedelta(minutes=1)

ELSEWHERE: dict[str, Any] = {
    "tenant": TenantId("rival"),
    "namespace": "staging",
    "run_id": RunId("run:acme:k2"),
    "first_execution": "e-0",
    "approval_id": OTHER.id,
    "kind": ApprovalKind.OUTCOME,
    "tool": "refund_all",
    "digest": digest("other arguments"),
    "policy_digest": digest("an older policy"),
}


def right(by: str = "bob", **changes: Any) -> ApprovalDecision:
    """What bob really says, and signs."""
    return sign(decision(REQUEST, by, **changes), BOUND, {"bob": BOB, "carl": CARL}[by], LIFE)


def with_signature(of: ApprovalDecision, **changes: Any) -> ApprovalDecision:
    """The same with something of its signature changed."""
    assert of.signature is not None
    return of.model_copy(update={"signature": Signature.model_validate(of.signature.model_dump() | changes)})


def flipped(text: str, place: int) -> str:
    """One hex digit of a text changed."""
    place %= len(text)
    return text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]


def test_a_rightly_signed_decision_counts() -> None:
    """The control of everything below: were nothing to count, nothing forged would either."""
    for word in ("approve", "deny"):
        after = GATE.deliver(WAITING, LIFE, right(decision=word))
        given_ = after.decided[REQUEST.id]
        assert (given_.approved, given_.by, given_.decided_at) == (word == "approve", "bob", LIFE)
        assert consent_problem(given_, BOUND, KEYS[0], signatures.verify) is None
        assert right_problem(given_, SIGNED, REQUEST.requester) is None


@pytest.mark.parametrize("change", ELSEWHERE.items(), ids=lambda change: str(change[0]))
def test_a_signature_covers_where_and_what(change: tuple[str, Any]) -> None:
    """Whatever of this could be exchanged, somebody would exchange: a yes to a small refund for one to a large one."""
    other = BOUND.model_copy(update=dict([change]))
    said = decision(REQUEST, "bob")
    assert decision_problem(sign(said, BOUND, BOB, LIFE), BOUND, KEYS[0], LIFE, signatures.verify) is None
    problem = decision_problem(sign(said, other, BOB, LIFE), BOUND, KEYS[0], LIFE, signatures.verify)
    assert problem is not None
    assert "does not fit" in problem


def test_a_signature_covers_who_said_what_and_until_when() -> None:
    """The reason too: the model reads it."""
    form: dict[str, Any] = {
        "decision": "approve",
        "by": "bob",
        "reason": "r",
        "key": BOB.key,
        "nonce": "0" * 32,
        "expires_at": NOW,
    }
    changes: dict[str, Any] = {
        "decision": "deny", "by": "bobby", "reason": "", "key": CARL.key, "nonce": "1" * 32, "expires_at": NOW + MOMENT,
    }  # fmt: skip
    forms = {signed_form(BOUND, **(form | {name: value})) for name, value in changes.items()}
    assert len(forms | {signed_form(BOUND, **form)}) == len(changes) + 1
    assert set(Bound.model_fields) == set(ELSEWHERE), "a field that the tests above do not exchange"


def _unsigned(_: int, word: str) -> ApprovalDecision:
    return decision(REQUEST, "bob", decision=word)


def _elsewhere(place: int, word: str) -> ApprovalDecision:
    name = list(ELSEWHERE)[place % len(ELSEWHERE)]
    return sign(decision(REQUEST, "bob", decision=word), BOUND.model_copy(update={name: ELSEWHERE[name]}), BOB, LIFE)


def _said_otherwise(place: int, word: str) -> ApprovalDecision:
    other = "deny" if word == "approve" else "approve"
    change = ({"decision": other}, {"reason": "because"}, {"by": UserId("carl")})[place % 3]
    return right(decision=word).model_copy(update=change)


def _signature_changed(place: int, word: str) -> ApprovalDecision:
    one = right(decision=word)
    assert one.signature is not None
    change = (
        {"value": flipped(one.signature.value, place)},
        {"nonce": flipped(one.signature.nonce, place)},
        {"expires_at": one.signature.expires_at + timedelta(microseconds=place + 1)},
        {"key": CARL.key},
        {"key": key_id(SELF_MADE.public)},
        {"value": f"{place:0128x}"},
    )[place % 6]
    return with_signature(one, **change)


def _other_key(place: int, word: str) -> ApprovalDecision:
    key = (SELF_MADE, MALLORY, ANN, STOLEN, CARL)[place % 5]
    return sign(decision(REQUEST, "bob", decision=word), BOUND, key, LIFE)


def _not_asked(place: int, word: str) -> ApprovalDecision:
    by, key = (("mallory", MALLORY), ("ann@corp.example", ANN), ("ANN+x@corp.example", ANN))[place % 3]
    return sign(decision(REQUEST, by, decision=word), BOUND, key, LIFE)


def _other_request(place: int, word: str) -> ApprovalDecision:
    if place % 2:
        return sign(decision(OTHER, "bob", decision=word), Bound.to(OTHER, **WHERE), BOB, LIFE)
    return sign(decision(REQUEST, "bob", decision=word, digest=OTHER.digest), BOUND, BOB, LIFE)


def _out_of_date(_: int, word: str) -> ApprovalDecision:
    return signed(decision(REQUEST, "bob", decision=word), BOUND, BOB, nonce="0" * 32, expires_at=LIFE)


ATTACKS: dict[str, tuple[Callable[[int, str], ApprovalDecision], tuple[str, ...]]] = {
    "unsigned": (_unsigned, (UNSIGNED,)),
    "signed for something else": (_elsewhere, ("does not fit",)),
    "altered after signing": (_said_otherwise, ("does not fit", "is not carl's")),
    "signature altered": (_signature_changed, ("does not fit", "is not bob's", "no key")),
    "another's key": (_other_key, ("no key", "is not bob's", "revoked")),
    "not one of the approvers": (_not_asked, ("not among", "who asked")),
    "about another request": (_other_request, ("no approval", "other arguments")),
    "signature out of date": (_out_of_date, ("usable until",)),
}


@MANY
@given(st.sampled_from(sorted(ATTACKS)), st.integers(min_value=0, max_value=2**40), st.sampled_from(["approve", "deny"]))
def test_no_forged_altered_or_under_privileged_decision_counts_and_each_is_kept_with_its_reason(
    name: str, place: int, word: str
) -> None:
    """Nobody but an approver who was asked, with their own key, about this very request: 2,500 tries."""
    make, reasons = ATTACKS[name]
    after = GATE.deliver(WAITING, LIFE, make(place, word))
    assert (after.decided, after.disputed, after.unverified) == ({}, {}, ())
    assert (after.rejected_count, len(after.rejected)) == (1, 1)
    assert any(reason in after.rejected[0].reason for reason in reasons), after.rejected[0]
    assert GATE.deliver(after, LIFE, right()).decided[REQUEST.id].approved, "the real one still counts"


@MANY
@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400)), st.sampled_from(["bob", "carl"]))
def test_a_late_or_replayed_decision_counts_for_nothing(after: timedelta, by: str) -> None:
    """At the deadline it is over, with the best signature; and what has counted once counts never again."""
    late = GATE.deliver(WAITING, REQUEST.deadline + after, right(by))
    assert late.decided == {}
    said = right(by)
    decided = GATE.deliver(WAITING, LIFE, said).decided[REQUEST.id]
    over = closed(GATE.deliver(WAITING, LIFE, said), LIFE, decided)
    again = GATE.deliver(over, LIFE + after, said)
    assert (again.decided, again.disputed, again.unverified) == ({}, {}, ())
    assert again.rejected[-1].reason == SETTLED_BEFORE


def test_a_decision_that_arrived_in_time_counts_however_long_verifying_takes() -> None:
    """The deadline is judged by the arrival: a database that is away must not turn a yes into a no."""
    before = received(WAITING, REQUEST.deadline - MOMENT, "submit_approval", right())
    assert [one.at for one in before.unverified] == [REQUEST.deadline - MOMENT]
    assert GATE.verify(before).decided[REQUEST.id].decided_at == REQUEST.deadline - MOMENT


def test_what_is_not_verified_when_its_approval_is_over_is_over_too() -> None:
    """Were it kept, a run could never continue as new; were it dropped, its sender would not see why."""
    waiting = received(WAITING, LIFE, "submit_approval", right())
    after = closed(waiting, LIFE, expiry(REQUEST, LIFE))
    assert after.unverified == ()
    assert [entry.reason for entry in after.rejected] == [SETTLED_BEFORE]


def test_a_cancel_while_a_signature_is_verified_comes_first() -> None:
    """Who has cancelled must not see the effect happen afterwards."""
    waiting = received(WAITING, LIFE, "submit_approval", right())
    after = GATE.verify(waiting.model_copy(update={"cancel": CancelRequest()}))
    assert after.decided == {}
    assert "cancelled" in after.rejected[-1].reason


Step = tuple[str, str, bool, int]
steps = st.lists(
    st.tuples(st.sampled_from(["approve", "deny"]), st.sampled_from(["bob", "carl"]), st.booleans(), st.integers(0, 3)),
    min_size=2,
    max_size=8,
)


@RACES
@given(steps, st.booleans())
def test_approve_against_deny_ends_in_exactly_one_outcome_the_first_valid_one(taken: list[Step], must_sign: bool) -> None:
    """1,000 races, signed and unsigned among each other, forged ones between, verified sooner or later: one outcome."""
    request = REQUEST.model_copy(update={"ladder": SIGNED.model_copy(update={"signed": must_sign})})
    state = asked(RunState(started_at=NOW), NOW, request)
    expected: tuple[bool, str] | None = None
    outcomes = []
    for number, (word, by, signs, what) in enumerate(taken):
        said = decision(request, by, decision=word)
        valid = signs or not must_sign
        if signs:
            said = sign(said, BOUND, {"bob": BOB, "carl": CARL}[by] if what else SELF_MADE, LIFE, f"{number:032x}")
            valid = bool(what)
        if valid and expected is None:
            expected = (word == "approve", by)
        state = received(state, LIFE + number * MOMENT, "submit_approval", said)
        if what == 1:
            state = GATE.verify(state)
        if request.id in state.decided and what == 2:
            outcomes.append(state.decided[request.id])
            state = closed(state, LIFE, outcomes[-1])
    state = GATE.verify(state)
    if request.id in state.decided:
        outcomes.append(state.decided[request.id])
        state = closed(state, LIFE, outcomes[-1])
    assert [(one.approved, one.by) for one in outcomes] == ([] if expected is None else [expected])
    assert (state.decided, state.unverified) == ({}, ())
    assert state.rejected_count == len(taken) - len(outcomes)


def given_by(by: str, **changes: Any) -> Consent:
    """What a run would hand to the executor."""
    return consent(REQUEST, right("bob"), LIFE).model_copy(update={"by": UserId(by), **changes})


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        (given_by("bob"), None),
        (given_by("bob", signature=None), UNSIGNED),
        (given_by("ann@corp.example"), "who asked"),
        (given_by("ANN+x@corp.example", signature=None), "who asked"),
        (given_by("zoe"), None),  # of the second rung: anybody
        (expiry(REQUEST, LIFE), None),
        (expiry(REQUEST, LIFE).model_copy(update={"approved": True}), UNSIGNED),
    ],
)
def test_the_executor_asks_again_who_may(given_: Consent, problem: str | None) -> None:
    """It believes no run: only silence needs nobody's right, and silence is a no."""
    assert (right_problem(given_, SIGNED, REQUEST.requester) or "").startswith(problem or "")
    assert (right_problem(given_, SIGNED, REQUEST.requester) is None) == (problem is None)


def test_who_is_named_on_no_rung_may_not() -> None:
    """Anybody on a later rung is not anybody on a ladder without one."""
    named = Ladder(rungs=ladder(("bob",), ("carl",)).rungs)
    assert right_problem(given_by("carl"), named, "ann") is None
    assert right_problem(given_by("zoe"), named, "ann") == "zoe is not among the approvers"


@pytest.mark.parametrize(
    "change",
    [{"key": "k-1"}, {"key": "K-" + "0" * 16}, {"nonce": ""}, {"nonce": "g" * 32}, {"value": "00"}, {"value": "g" * 128},
               {"expires_at": "2026-11-20T12:00:00"}, {"expires_at": None}, {"more": 1}], ids=str
)  # fmt: skip
def test_what_is_no_signature_makes_no_decision(change: dict[str, Any]) -> None:
    """A run must not carry, nor its database take, whatever somebody calls a signature."""
    one = right().model_dump(mode="json")
    assert ApprovalDecision.model_validate(one) == right()
    with pytest.raises(ValidationError):
        ApprovalDecision.model_validate(one | {"signature": one["signature"] | change})


def test_an_unsigned_decision_says_nothing_of_signatures_in_history() -> None:
    """What is not there costs no bytes, in every run."""
    assert "signature" not in decision(REQUEST, "bob").model_dump()
    assert "signature" not in consent(REQUEST, decision(REQUEST, "bob"), LIFE).model_dump()
    assert "signed" not in ladder(("bob",)).model_dump()


def test_a_request_of_the_same_digest_is_the_same_wherever_it_is_shown() -> None:
    """The approval alone does not say whose run it is; the place does."""
    there = Bound.to(REQUEST, **(WHERE | {"namespace": "staging"}))
    assert there != BOUND
    assert (there.digest, there.approval_id) == (Digest(BOUND.digest), ApprovalId(BOUND.approval_id))
