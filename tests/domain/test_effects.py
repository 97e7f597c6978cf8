"""Is there any way for an effect to be sent twice, or to be given up silently?"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_agents.domain.canonical import digest
from durable_agents.domain.effects import (
    MAX_TRIES,
    Dispatch,
    DispatchState,
    Effect,
    NextStep,
    certainly_nothing_happened,
    effect_key,
    next_step,
)
from durable_agents.domain.identifiers import CallPath, EffectKey, RunId, TenantId
from tests.domain.strategies import checked

SAME, OTHER = digest("same"), digest("other")
MINE = 1000
STALE = MINE + 1
EARLIER = MINE - 1
D, N, S, U = DispatchState.DISPATCHED, DispatchState.NOT_SENT, DispatchState.SETTLED, DispatchState.UNKNOWN
CALL, ASK, GIVE_UP = NextStep.CALL, NextStep.DECLARE_UNKNOWN, NextStep.GIVE_UP

OPEN = {
    Effect.READ: (CALL, GIVE_UP, GIVE_UP),
    Effect.IDEMPOTENT: (CALL, ASK, ASK),
    Effect.RECONCILABLE: (NextStep.RECONCILE, NextStep.RECONCILE, ASK),
    Effect.AT_MOST_ONCE: (ASK, ASK, ASK),
}
"""What follows an open dispatch while there are tries left, after MAX_TRIES, and after twice as many."""


def expected(effect: Effect, state: DispatchState, tries: int, arguments: str, fence: int) -> NextStep:
    """The table, in the order in which the rows exclude each other."""
    if arguments != SAME:
        return NextStep.REFUSE_OTHER_ARGUMENTS
    if state is S:
        return NextStep.RETURN_RECORDED
    if state is U:
        return ASK
    if fence > MINE:
        return NextStep.REFUSE_STALE
    if state is N:
        return CALL if tries < MAX_TRIES else GIVE_UP
    return OPEN[effect][0 if tries < MAX_TRIES else 1 if tries < 2 * MAX_TRIES else 2]


EVERY = list(itertools.product(Effect, DispatchState, range(2 * MAX_TRIES + 2), (SAME, OTHER), (EARLIER, MINE, STALE)))


def test_the_whole_table() -> None:
    """Effect class × what the row says × tries × arguments × fence: nothing is left to chance."""
    for effect, state, tries, arguments, fence in EVERY:
        row = Dispatch(state=state, effect=effect, arguments_digest=arguments, tries=tries, fence=fence)
        step = next_step(effect, row, SAME, MINE)
        assert step is expected(effect, state, tries, arguments, fence), (effect, row)
    assert len(EVERY) == 4 * 4 * 10 * 2 * 3


@pytest.mark.parametrize("effect", Effect)
def test_the_first_attempt_calls(effect: Effect) -> None:
    """No row means that nobody has sent anything."""
    assert next_step(effect, None, SAME, MINE) is CALL


@checked
@given(
    st.sampled_from(Effect),
    st.sampled_from(DispatchState),
    st.integers(0, 100),
    st.sampled_from([SAME, OTHER]),
    st.integers(0, 2000),
)
def test_what_was_perhaps_sent_is_never_sent_blindly(
    effect: Effect, state: DispatchState, tries: int, arguments: str, fence: int
) -> None:
    """The one sentence the whole module exists for."""
    row = Dispatch(state=state, effect=effect, arguments_digest=arguments, tries=tries, fence=fence)
    step = next_step(effect, row, SAME, MINE)
    if step is CALL:
        assert state is N or (state is D and effect in (Effect.READ, Effect.IDEMPOTENT))
        assert arguments == SAME
        assert fence <= MINE
        assert tries < MAX_TRIES
    if effect is Effect.AT_MOST_ONCE and state in (D, U):
        assert step in (ASK, NextStep.REFUSE_STALE, NextStep.REFUSE_OTHER_ARGUMENTS)
    if step is NextStep.RECONCILE:
        assert effect is Effect.RECONCILABLE
    if step is GIVE_UP:
        assert state is N or effect is Effect.READ  # anything else may have acted; giving up would hide it


@pytest.mark.parametrize(("sent_as", "declared_now"), list(itertools.combinations(Effect, 2)))
def test_a_tool_declared_anew_promises_nothing_for_what_was_sent_before(sent_as: Effect, declared_now: Effect) -> None:
    """A looser class from today on must not repeat yesterday's effect; a stricter one holds at once."""
    looser, stricter = sorted((sent_as, declared_now), key=list(Effect).index)
    row = Dispatch(state=D, effect=stricter, arguments_digest=SAME, tries=1, fence=EARLIER)
    assert next_step(looser, row, SAME, MINE) is ASK
    assert next_step(stricter, row.model_copy(update={"effect": looser}), SAME, MINE) is OPEN[stricter][0]


def life(effect: Effect, outcomes: list[DispatchState]) -> list[NextStep]:
    """The steps of attempts that follow each other, each leaving the row in the given state."""
    row, steps = None, list[NextStep]()
    for number, left in enumerate(outcomes, start=1):
        step = next_step(effect, row, SAME, MINE + number)
        steps.append(step)
        if step not in (CALL, NextStep.RECONCILE):
            break
        tries = 1 if row is None else row.tries + 1
        row = Dispatch(state=left, effect=effect, arguments_digest=SAME, tries=tries, fence=MINE + number)
    return steps


@checked
@given(st.sampled_from(Effect), st.lists(st.sampled_from([D, N]), min_size=30, max_size=30))
def test_every_life_of_a_call_ends(effect: Effect, outcomes: list[DispatchState]) -> None:
    """However its attempts die, a call is settled, given up or handed to a human: never tried for ever."""
    steps = life(effect, outcomes)
    assert steps[-1] in (ASK, GIVE_UP)
    assert len(steps) <= 2 * MAX_TRIES + 1
    if effect is Effect.AT_MOST_ONCE and D in outcomes[: len(steps) - 1]:
        assert steps[-1] is ASK
        assert outcomes[: len(steps) - 1].count(D) == 1


def test_only_a_call_that_nobody_sent_is_certain_to_have_done_nothing() -> None:
    """`Unavailable this time` says nothing about the try before."""
    row = Dispatch(state=D, effect=Effect.IDEMPOTENT, arguments_digest=SAME, tries=1, fence=MINE)
    assert certainly_nothing_happened(None)
    assert certainly_nothing_happened(row.model_copy(update={"state": N}))
    assert not certainly_nothing_happened(row)
    assert not certainly_nothing_happened(row.model_copy(update={"state": U}))


parts = st.tuples(*[st.text(alphabet="ab:.1", min_size=1, max_size=4)] * 4)


def key(of: tuple[str, ...]) -> EffectKey:
    """The key of these four parts."""
    tenant, run, first, path = of
    return effect_key(TenantId(tenant), RunId(run), first, CallPath(path))


@checked
@given(parts, parts)
def test_keys_are_stable_and_distinct(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Two calls with one key: the second does nothing. One call with two keys: it acts twice."""
    assert (key(one) == key(other)) == (one == other)
    assert len(key(one)) == 64


def test_parts_of_a_key_cannot_be_shifted_into_each_other() -> None:
    """Tenant `ab` with run `c` is not tenant `a` with run `bc`; nor is call 1.11 call 11.1."""
    alike = [("ab", "c", "d", "e"), ("a", "bc", "d", "e"), ("a", "b", "cd", "e"), ("a", "b", "c", "de"), ("abcde", "", "", "")]
    assert len({key(parts_) for parts_ in alike}) == len(alike)
    assert key(("t", "r", "x", "1.11")) != key(("t", "r", "x", "11.1"))


def test_a_key_is_the_same_in_every_release() -> None:
    """A deployment between two tries of a refund must not change its key; this value is frozen."""
    frozen = "0eb58b592b27513048ad"
    assert key(("acme", "run:acme:order-A-1001", "5f2c", "3.0")).startswith(frozen)
