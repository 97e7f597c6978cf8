"""Does everything that happens to a run change its state as it should, and nothing else?"""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from durable_agents.domain.approvals import Approval, Standing, consent, expiry
from durable_agents.domain.budgets import Budget, Spend
from durable_agents.domain.identifiers import ApprovalId, Micros, UserId
from durable_agents.domain.run_state import (
    REJECTED_KEPT,
    SETTLED_KEPT,
    TIMELINE_KEPT,
    RunState,
    WorkClock,
    asked,
    budget_raised,
    carried,
    closed,
    counted_message,
    escalated,
    judged,
    noted,
    received,
    rejected,
    undisputed,
)
from durable_agents.domain.runs import BudgetRaise
from tests.domain.strategies import NOW, approval, checked, decision

HOUR = timedelta(hours=1)
START = RunState(started_at=NOW)


def waiting_for(*approvals: Approval) -> RunState:
    """A run that asks for these."""
    state = START
    for one in approvals:
        state = asked(state, NOW, one)
    return state


def number(index: int) -> Approval:
    """One of many approvals."""
    return approval(("boss",), path=f"1.{index}", id=f"ap-{index}")


class NaiveClock:
    """What the work clock should say, by looking at every call in every interval."""

    def __init__(self) -> None:
        self.now = NOW
        self.waited = timedelta(0)
        self.calls: list[str] = []

    def pass_time(self, length: timedelta) -> None:
        """Time goes by; it is waiting if there are calls and each of them waits."""
        if self.calls and all(call == "waiting" for call in self.calls):
            self.waited += length
        self.now += length


@checked
@given(st.lists(st.tuples(st.integers(0, 3600), st.integers(0, 5), st.sampled_from(["begin", "switch", "end"])), max_size=40))
def test_waiting_counts_only_while_every_unfinished_call_waits(events: list[tuple[int, int, str]]) -> None:
    """Working time is a budget: a run that works in one call while another waits is working."""
    naive, clock = NaiveClock(), WorkClock()
    for seconds, which, what in events:
        naive.pass_time(timedelta(seconds=seconds))
        if what == "begin":
            naive.calls.append("working")
            clock = clock.changed(naive.now, unfinished=1)
        elif naive.calls:
            index = which % len(naive.calls)
            if what == "switch":
                begins = naive.calls[index] == "working"
                naive.calls[index] = "waiting" if begins else "working"
                clock = clock.changed(naive.now, waiting=1 if begins else -1)
            elif naive.calls[index] == "working":
                del naive.calls[index]
                clock = clock.changed(naive.now, unfinished=-1)
        assert clock.waited_until(naive.now) == naive.waited
        later = NaiveClock()
        later.calls, later.now, later.waited = naive.calls, naive.now, naive.waited
        later.pass_time(HOUR)
        assert clock.waited_until(naive.now + HOUR) == later.waited


def test_working_time_stands_still_while_a_human_is_awaited_wall_time_does_not() -> None:
    """A weekend's wait must not use up the work budget, but the deadline of the whole run goes on."""
    clock = WorkClock().changed(NOW, unfinished=1).changed(NOW + HOUR, waiting=1)
    state = START.model_copy(update={"clock": clock})
    elapsed = state.elapsed(NOW + 50 * HOUR)
    assert (elapsed.wall, elapsed.working) == (50 * HOUR, HOUR)


def test_a_wait_goes_on_over_continue_as_new() -> None:
    """The next execution has no call in flight yet; the human is awaited all the same, and the wait is counted once."""
    clock = WorkClock().changed(NOW, unfinished=1).changed(NOW + HOUR, waiting=1)
    clock = clock.changed(NOW + 2 * HOUR, waiting=-1).changed(NOW + 2 * HOUR, unfinished=-1)
    interrupted = carried(START.model_copy(update={"clock": clock}))
    assert interrupted.elapsed(NOW + 2 * HOUR).working == HOUR
    again = interrupted.clock.changed(NOW + 2 * HOUR, unfinished=1).changed(NOW + 2 * HOUR, waiting=1)
    assert again.waited_until(NOW + 3 * HOUR) == 2 * HOUR


def test_the_first_valid_decision_wins() -> None:
    """A second voice, also of the same person, changes nothing and can be seen among the rejected."""
    one = number(1)
    state = received(waiting_for(one), NOW, "submit_approval", decision(one, "boss", decision="deny", reason="no"))
    assert state.decided[one.id].approved is False
    for by in ("boss", "BOSS"):
        after = received(state, NOW, "submit_approval", decision(one, by))
        assert after.decided == state.decided
        assert after.rejected_count == state.rejected_count + 1
        assert "first valid decision won" in after.rejected[-1].reason


def test_a_closed_approval_takes_no_decision_any_more() -> None:
    """Settled is settled, whoever says what; and an id nobody asked for is unknown."""
    one = number(1)
    decided = received(waiting_for(one), NOW, "submit_approval", decision(one))
    state = closed(decided, NOW, decided.decided[one.id])
    assert (state.approvals, state.decided, state.settled) == ((), {}, (one.id,))
    assert judged(state, NOW, decision(one)).reason.startswith("it is settled already")
    assert judged(START, NOW, decision(one)).reason.startswith("no approval of that id")
    assert received(state, NOW, "submit_approval", decision(one)).decided == {}


def test_a_late_decision_is_kept_for_arbitration_once() -> None:
    """It may have arrived in time while every worker was down; the history knows. The first one is asked about."""
    one = number(1)
    late = NOW + HOUR
    first = received(waiting_for(one), late, "submit_approval", decision(one, reason="first"))
    assert first.disputed[one.id][0].reason == "first"
    assert first.decided == {}
    second = received(first, late, "submit_approval", decision(one, reason="second"))
    assert second.disputed == first.disputed
    assert second.rejected[-1].reason.startswith("the deadline was")
    assert undisputed(second, one.id).disputed == {}


def test_junk_does_not_block_the_real_decision() -> None:
    """Whoever floods a run with refused decisions must not keep the approver's from counting."""
    one = number(1)
    state = waiting_for(one)
    for index in range(500):
        state = received(state, NOW, "submit_approval", decision(one, f"mallory{index}"))
        state = rejected(state, NOW, "submit_aproval", "there is no such signal", "{}")
    assert state.rejected_count == 1000
    assert len(state.rejected) == REJECTED_KEPT
    counted = received(state, NOW, "submit_approval", decision(one))
    assert counted.decided[one.id].approved


def test_one_decision_touches_one_approval() -> None:
    """Parallel calls wait side by side."""
    one, two = number(1), number(2)
    state = received(waiting_for(one, two), NOW, "submit_approval", decision(one))
    assert set(state.decided) == {one.id}
    after = closed(state, NOW, state.decided[one.id])
    assert after.approvals == (two,)
    assert judged(after, NOW, decision(two)).standing is Standing.COUNTS


def test_asking_again_keeps_the_deadline_that_runs() -> None:
    """A run that continues as new asks for the same approval again; the clock of the first asking must not start over."""
    one = number(1)
    state = waiting_for(one)
    again = asked(state, NOW + HOUR, one.model_copy(update={"deadline": NOW + 9 * HOUR}))
    assert again == state
    moved = escalated(state, NOW, one.model_copy(update={"rung": 0, "deadline": NOW + 2 * HOUR}))
    assert moved.approvals[0].deadline == NOW + 2 * HOUR


def test_silence_closes_with_expired() -> None:
    """The timeline must say that nobody decided, not that somebody denied."""
    one = number(1)
    state = closed(waiting_for(one), NOW + HOUR, expiry(one, NOW + HOUR))
    assert state.timeline[-1].what.startswith("expired by deadline: nobody decided")
    denied = closed(waiting_for(one), NOW, consent(one, decision(one, decision="deny"), NOW))
    assert denied.timeline[-1].what == "denied by boss"


def test_a_raise_is_in_the_budget_and_in_the_timeline() -> None:
    """Who topped a run up, and why, must be visible afterwards."""
    change = BudgetRaise(budget=Budget(turns=20), by=UserId("boss"), reason="more work")
    state = budget_raised(START.model_copy(update={"budget": Budget(turns=10, tool_calls=5)}), NOW, change)
    assert state.budget == Budget(turns=20, tool_calls=5)
    assert state.timeline[-1].what == "budget raised by boss: more work"


def flooded(now: datetime) -> RunState:
    """A state after ten thousand of everything, each as large as a sender can make it."""
    state = START.model_copy(update={"spend": Spend(cost_micros=Micros(5))})
    loud = "\u202eü" * 1000
    for index in range(TIMELINE_KEPT + SETTLED_KEPT):
        one = number(index)
        state = noted(asked(state, now, one), now, loud)
        state = received(state, now, "submit_approval", decision(one, "m" * 120, reason=loud))
        state = received(state, now, "submit_approval", decision(one, "boss", reason=loud))
        state = rejected(counted_message(state), now, "x", loud, loud)
        state = closed(state, now, state.decided[ApprovalId(one.id)])
    return state


def test_state_stays_bounded_whatever_is_sent() -> None:
    """State goes along when a run continues as new and answers queries: at 2 MB the server refuses both, for ever."""
    state = flooded(NOW)
    assert (len(state.timeline), len(state.rejected), len(state.settled)) == (TIMELINE_KEPT, REJECTED_KEPT, SETTLED_KEPT)
    assert state.approvals == ()
    assert state.decided == {}
    assert len(state.model_dump_json()) < 128 * 1024
    assert len(carried(state).model_dump_json()) < 48 * 1024


def test_what_others_wrote_is_inert_wherever_it_is_kept() -> None:
    """Timeline and rejected messages are printed on terminals and in the Web UI by people who did not ask for the message."""
    one = number(1)
    nasty = "\x1b[2J\u202e<img src=x>|`"
    state = received(waiting_for(one), NOW, "submit_approval", decision(one, "m\u202e<img src=x>|`"))
    state = noted(state, NOW, nasty)
    decided = consent(one, decision(one, reason=nasty), NOW)
    state = closed(state, NOW, decided)
    lines = [entry.what for entry in state.timeline] + [
        text for entry in state.rejected for text in (entry.reason, entry.excerpt)
    ]
    assert all(line.isprintable() and not set(line) & set("`|<>") for line in [*lines, state.doing])


def test_what_is_carried_over_is_what_the_run_needs() -> None:
    """Open approvals, money and budget go along; counters of this execution begin anew."""
    one = number(1)
    state = counted_message(waiting_for(one)).model_copy(update={"spend": Spend(cost_micros=Micros(5))})
    following = carried(state)
    assert (following.approvals, following.spend, following.messages_received) == ((one,), state.spend, 0)
    assert RunState.model_validate_json(following.model_dump_json()) == following
