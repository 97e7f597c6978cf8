"""Where several people must approve, is it really several, none of them the requester, and does one no end it?"""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from durable_agents.domain.approvals import (
    Consent,
    Ladder,
    Rung,
    agreeing,
    consent,
    escalated,
    right_problem,
    same_person,
)
from durable_agents.domain.run_state import RunState, accepted, asked, received, undisputed
from tests.domain.strategies import NOW, approval, checked, decision

HOUR, LIFE = timedelta(hours=1), NOW + timedelta(minutes=1)


def of(quorum: int, *approvers: str, more: tuple[Rung, ...] = ()) -> Ladder:
    """A ladder whose first rung wants so many."""
    return Ladder(rungs=(Rung(approvers=approvers or ("*",), within=HOUR, quorum=quorum), *more))


def say(state: RunState, *by: str, word: str = "approve") -> RunState:
    """These people say it, one after another."""
    for person in by:
        (request,) = state.approvals
        state = received(state, LIFE, "submit_approval", decision(request, person, decision=word))
    return state


def waiting(ladder: Ladder) -> RunState:
    """A run that asks."""
    return asked(RunState(started_at=NOW), NOW, approval(ladder=ladder))


def outcome(state: RunState) -> Consent | None:
    """What was decided."""
    return next(iter(state.decided.values()), None)


def test_as_many_different_people_as_the_rung_says_must_approve() -> None:
    """Two of three, and both are in the record."""
    state = say(waiting(of(2, "bob", "carl", "dora")), "bob")
    assert outcome(state) is None
    assert state.doing == "approved by bob, 1 of 2: refund amount=250"
    given_ = outcome(say(state, "dora"))
    assert given_ is not None
    assert (given_.approved, given_.people, given_.by) == (True, "bob, dora", "dora")
    assert right_problem(given_, of(2, "bob", "carl", "dora"), "ann") is None
    assert given_.audited()["by"] == "bob, dora"


@checked
@given(
    st.lists(
        st.sampled_from(["bob", "BOB", "b\u200bob", "carl", "Carl", "dora", "ann@corp.example", "ANN+x@corp.example"]), max_size=8
    ),
    st.integers(2, 4),
)
def test_nobody_counts_twice_and_the_requester_never(people: list[str], quorum: int) -> None:
    """Two spellings are one person; the requester's is no voice at all."""
    state = waiting(of(quorum))
    for person in people:
        if outcome(state) is None:
            state = say(state, person)
    different: list[str] = []
    for person in people:
        if person.casefold()[:3] != "ann" and not any(same_person(person, other) for other in different):
            different.append(person)
    assert (outcome(state) is not None) == (len(different) >= quorum)
    if outcome(state) is None:
        assert state.rejected_count == len(people) - len(different)


def test_the_first_no_ends_it_also_from_who_has_approved() -> None:
    """Who has second thoughts before the others have spoken must be heard."""
    for by in ("carl", "bob"):
        given_ = outcome(say(say(waiting(of(3)), "bob"), by, word="deny"))
        assert given_ is not None
        assert (given_.approved, given_.people) == (False, by)
        assert right_problem(given_, of(3), "ann") is None


def test_the_next_rung_asks_anew() -> None:
    """A voice was given to be one of those people; on another rung it would be one of others."""
    ladder = of(2, "bob", "carl", more=(Rung(approvers=("carl", "dora"), within=HOUR, quorum=2),))
    (request,) = say(waiting(ladder), "carl").approvals
    assert len(request.agreed) == 1
    following = escalated(request, NOW + HOUR)
    assert following is not None
    assert following.agreed == ()
    assert agreeing(following, consent(following, decision(following, "dora"), LIFE)) is not None


def test_late_voices_of_several_people_are_all_arbitrated() -> None:
    """With every worker down beyond the deadline, two yeses in time are still two."""
    (request,) = (state := waiting(of(2, "bob", "carl"))).approvals
    for by in ("bob", "bob", "carl", "carl"):
        state = received(state, NOW + HOUR, "submit_approval", decision(request, by))
    assert [one.by for one in state.disputed[request.id]] == ["bob", "carl"]
    assert state.rejected_count == 2
    for _ in range(2):
        first = state.disputed[request.id][0]
        state = accepted(undisputed(state, request.id), LIFE, "submit_approval", first)
    assert state.disputed == {}
    assert outcome(state) is not None


def voice(by: str, **changes: Any) -> Consent:
    """Somebody's, as a run would hand it on."""
    request = approval(ladder=of(2))
    return consent(request, decision(request, by), LIFE).model_copy(update=changes)


@pytest.mark.parametrize(
    ("given_", "problem"),
    [
        (voice("carl", others=(voice("bob"),)), None),
        (voice("carl"), "too few"),
        (voice("carl", others=(voice("CARL"),)), "too few"),
        (voice("carl", others=(voice("ann@corp.example"),)), "who asked"),
        (voice("carl", others=(voice("zoe"),)), "not among"),
        (voice("carl", others=(voice("bob", approved=False),)), "do not say the same"),
        (voice("carl", approved=False), None),
    ],
)
def test_the_executor_counts_again(given_: Consent, problem: str | None) -> None:
    """A run that was made to believe that one is two must not act."""
    found = right_problem(given_, of(2, "bob", "carl", "dora"), "ann@corp.example")
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


@pytest.mark.parametrize(
    "rung",
    [{"approvers": ["bob"], "quorum": 2}, {"approvers": ["bob", "BOB"], "quorum": 2}, {"quorum": 0}, {"quorum": 11}],
    ids=str,
)
def test_a_quorum_that_cannot_be_met_is_refused_when_it_is_read(rung: dict[str, Any]) -> None:
    """Else the mistake shows as a request that can only expire."""
    with pytest.raises(ValidationError):
        Rung.model_validate({"within": "1h"} | rung)
    assert Rung.model_validate({"within": "1h", "approvers": ["@finance"], "quorum": 2}).quorum == 2
    assert "quorum" not in Rung.model_validate({"within": "1h"}).model_dump()
