"""Is a loop seen, and only a loop?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from durable_agents.domain.loops import LONGEST_CYCLE, LoopGuard, repetition


@given(st.lists(st.text("abc", min_size=1, max_size=1), max_size=30), st.integers(1, LONGEST_CYCLE), st.integers(2, 6))
def test_any_cycle_repeated_at_the_end_is_found(before: list[str], cycle: int, rounds: int) -> None:
    """Whatever came before, a pattern of up to four calls repeated n times counts as at least n rounds."""
    pattern = [f"call-{index}" for index in range(cycle)]
    assert repetition((*before, *pattern * rounds)).rounds >= rounds


@given(st.integers(0, 60))
def test_calls_that_differ_are_never_a_loop(length: int) -> None:
    """A run that makes progress must not be warned, however long it is."""
    assert repetition(tuple(f"call-{index}" for index in range(length))).rounds <= 1


def test_a_repetition_that_was_left_behind_is_no_loop() -> None:
    """What counts is the end: a run that broke out goes on."""
    assert repetition(("a", "a", "a", "a", "b")).rounds == 1


@pytest.mark.parametrize("given", [{"warn": 5}, {"warn": 9, "stop": 4}, {"long": 6}, {"too_long": 3}])
def test_a_guard_that_would_stop_a_run_untold_is_refused(given: dict[str, int]) -> None:
    """The model gets its chance before the run ends: an agent's file that takes it away says so at once, not at night."""
    with pytest.raises(ValidationError, match="the model is never told"):
        LoopGuard.model_validate(given)
