"""Are groups of spending ranked without losing a micro-dollar, and is a run called anomalous exactly when it is?"""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_agents.domain.identifiers import Micros, RunId, TenantId
from durable_agents.domain.spending import (
    NORM_FROM,
    NORM_OF,
    OTHERS,
    Amounts,
    Dimension,
    Norm,
    RunSpending,
    Spending,
    anomaly,
    dimensions,
    norm,
    per_completed,
    ranked,
    total,
)

UNHURRIED = settings(deadline=None)
"""A busy machine is no finding."""
_COUNT = st.integers(0, 2**70)
_AMOUNTS = st.builds(Amounts, *[_COUNT] * 7)
_GROUPS = st.dictionaries(st.tuples(st.text(max_size=5)), _AMOUNTS, max_size=12).map(
    lambda found: [Spending(group, amounts, 3, 2) for group, amounts in found.items()]
)


def run_of(cost: int, tokens: int = 0) -> RunSpending:
    """A run that spent so much."""
    return RunSpending(TenantId("acme"), RunId("run:acme:k"), "clerk", "ann", "completed", cost, tokens)


@UNHURRIED
@given(groups=_GROUPS, top=st.none() | st.integers(1, 15), by=st.sampled_from([Dimension.DAY, Dimension.USER]))
def test_whatever_is_listed_adds_up_to_everything(groups: list[Spending], top: int | None, by: Dimension) -> None:
    """A top list that drops its rest, or a ranking that loses a group, is a report finance cannot use twice."""
    listed = ranked(groups, [by], top)
    assert total(listed) == total(groups)
    assert len(listed) == min(len(groups), (top or 99) + 1)
    if top is not None and len(groups) > top:
        assert (listed[-1].group, listed[-1].runs, listed[-1].per_completed_micros) == ((OTHERS,), None, None)


def test_days_and_steps_come_in_their_order_and_all_else_dearest_first() -> None:
    """Step 10 before step 2 cannot be read; a list by user is read from its top."""
    cheap, dear = Amounts(cost_micros=1), Amounts(cost_micros=9)
    steps = [Spending((name,), amounts, 1, 1) for name, amounts in (("10", dear), ("2", cheap), ("(no answer)", dear))]
    assert [one.group[0] for one in ranked(steps, [Dimension.STEP])] == ["2", "10", "(no answer)"]
    assert [one.group[0] for one in ranked(steps, [Dimension.USER])] == ["10", "(no answer)", "2"]


@UNHURRIED
@given(cost=st.integers(0, 2**70), completed=st.integers(1, 10**9))
def test_the_cost_of_a_completed_task_is_exact_and_rounded_up(cost: int, completed: int) -> None:
    """A float would be wrong beyond 2^53; rounding down would sell below cost."""
    each = per_completed(cost, completed)
    assert each is not None
    assert each - 1 < Fraction(cost, completed) <= each


def test_nothing_completed_has_no_cost_of_a_completed_task() -> None:
    """Zero would be the cheapest agent of all."""
    assert per_completed(5, 0) is None
    assert per_completed(5, None) is None
    assert Spending((), Amounts(cost_micros=5, overrun_micros=2), 3, 2).per_completed_micros == 4, "the overrun is paid too"


@pytest.mark.parametrize(
    ("text", "words"), [("luck", "nothing to group by"), ("", "nothing"), ("user,user", "twice"), ("user,", "nothing")]
)
def test_a_grouping_that_cannot_be_is_named(text: str, words: str) -> None:
    """Grouping by a misspelt name would answer another question."""
    with pytest.raises(ValueError, match=words):
        dimensions(text)
    assert dimensions("user, model") == (Dimension.USER, Dimension.MODEL)


def test_nothing_is_normal_before_there_are_enough_runs_and_only_the_last_count() -> None:
    """A median of three runs cries wolf; one of last year's runs no longer fits the agent."""
    assert norm([(5, 7)] * (NORM_FROM - 1)) is None
    assert norm([(5, 7)] * NORM_FROM) == Norm(5, 7, NORM_FROM)
    assert norm([(5, 7)] * NORM_OF + [(900, 900)] * 10 * NORM_OF) == Norm(5, 7, NORM_OF)


@UNHURRIED
@given(costs=st.lists(st.integers(0, 10**9), min_size=NORM_FROM, max_size=60))
def test_the_norm_is_an_amount_in_the_middle(costs: list[int]) -> None:
    """An average would follow the very runs that are to be found."""
    usual = norm([(cost, 2 * cost) for cost in costs])
    assert usual is not None
    assert usual.cost_micros in costs
    assert usual.tokens == 2 * usual.cost_micros
    assert sum(cost < usual.cost_micros for cost in costs) <= len(costs) / 2
    assert sum(cost > usual.cost_micros for cost in costs) <= len(costs) / 2


USUAL = Norm(cost_micros=10_000, tokens=20_000, runs=50)


@pytest.mark.parametrize(
    ("spent", "by_cost", "by_tokens"),
    [
        (run_of(50_000, 100_000), False, False),
        (run_of(50_001, 0), True, False),
        (run_of(0, 100_001), False, True),
        (run_of(10**12, 10**12), True, True),
    ],
    ids=["exactly five times", "a micro-dollar above", "a token above", "both"],
)
def test_a_run_is_anomalous_above_so_many_times_the_norm(spent: RunSpending, by_cost: bool, by_tokens: bool) -> None:
    """The edge is where two people count differently; it is written down here."""
    found = anomaly(spent, USUAL)
    assert (found is not None) == (by_cost or by_tokens)
    if found is not None:
        assert (found.by_cost, found.by_tokens) == (by_cost, by_tokens)


def test_what_is_cheap_is_no_anomaly_and_what_has_no_norm_cannot_be() -> None:
    """A hundred times nothing is nothing; but a dear run of an agent that is usually free is worth a look."""
    assert anomaly(run_of(9_999), Norm(1, 0, 50)) is None
    assert anomaly(run_of(9_999), Norm(1, 0, 50), least=Micros(9_999)) is not None
    assert anomaly(run_of(10**9, 10**9), None) is None
    found = anomaly(run_of(10_000), Norm(0, 0, 50))
    assert found is not None
    assert (found.cost_times_tenths, found.tokens_times_tenths) == (None, None)
    assert anomaly(run_of(30_000), Norm(10_000, 0, 50), factor=2) is not None
    found = anomaly(run_of(59_999), USUAL)
    assert found is not None
    assert found.cost_times_tenths == 59
