"""Is what may be drawn within every limit, enough for the call, and no more than is good for others?"""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_agents.domain import accounts
from durable_agents.domain.accounts import (
    SPARE_TRANCHES,
    THRESHOLDS,
    TRANCHE_CALLS,
    Account,
    AccountName,
    Amount,
    Draw,
    NoRoom,
    Period,
    Scope,
)

DAY = date(2026, 11, 20)
numbers = st.integers(0, 10_000)
amounts = st.builds(Amount, numbers, numbers)
limits = st.none() | st.integers(0, 20_000)
names = st.builds(AccountName, st.sampled_from(Scope), st.just("x"), st.sampled_from(Period), st.just(DAY))
an_account = st.builds(Account, names, amounts, limits, limits)


def account(drawn: int, limit: int | None, *, period: Period = Period.DAY) -> Account:
    """A user's account, in money alone."""
    return Account(AccountName(Scope.USER, "ann", period, DAY), Amount(drawn, 0), limit, None)


@given(st.lists(an_account, max_size=9), amounts, amounts)
def test_a_draw_is_within_every_limit_and_covers_the_call(found: list[Account], needed: Amount, wanted: Amount) -> None:
    """The ceiling, decided: all accounts have room for what is drawn, in both units, or nothing is drawn from any."""
    verdict = accounts.draw(found, needed, wanted)
    if isinstance(verdict, NoRoom):
        assert not verdict.account.room_for(needed)
        assert verdict.explanation
        return
    assert verdict.amount.covers(needed)
    assert verdict.amount in (needed, wanted.at_least(needed))
    for one in found:
        after = one.drawn.plus(verdict.amount)
        for drawn, more, limit in (
            (after.micros, verdict.amount.micros, one.limit_micros),
            (after.tokens, verdict.amount.tokens, one.limit_tokens),
        ):
            assert limit is None or more == 0 or drawn <= limit


@given(amounts, st.none() | numbers)
def test_a_tranche_is_bounded_by_what_the_run_may_spend_at_all(call: Amount, allowance: int | None) -> None:
    """A run of ten cents must not keep forty from others; tokens have no allowance of their own here."""
    tranche = accounts.wanted(call, allowance)
    assert tranche.micros == min(call.micros * TRANCHE_CALLS, allowance if allowance is not None else 10**9)
    assert tranche.tokens == call.tokens * TRANCHE_CALLS


def test_a_tranche_is_drawn_only_where_there_is_plenty() -> None:
    """The last tranches of a limit are drawn call by call, so that nothing lies idle there."""
    needed, wanted = Amount(10, 0), Amount(40, 0)
    plenty, scarce = account(0, 40 * SPARE_TRANCHES), account(1, 40 * SPARE_TRANCHES)
    for found, expected in (([plenty], wanted), ([scarce], needed), ([plenty, scarce], needed), ([account(7, None)], wanted)):
        verdict = accounts.draw(found, needed, wanted)
        assert isinstance(verdict, Draw)
        assert verdict.amount == expected


def test_each_threshold_is_crossed_once_and_a_refusal_stands_at_the_limit() -> None:
    """People are told when it happens, not each time it is looked at."""
    crossed = []
    drawn = 0
    while not isinstance(verdict := accounts.draw([account(drawn, 1000)], Amount(70, 0), Amount(70, 0)), NoRoom):
        crossed += [crossing.percent for crossing in verdict.crossings]
        drawn += verdict.amount.micros
    assert crossed == [50, 80]
    assert [crossing.percent for crossing in verdict.crossings] == [100]
    exact = accounts.draw([account(0, 70)], Amount(70, 0), Amount(70, 0))
    assert isinstance(exact, Draw)
    assert [crossing.percent for crossing in exact.crossings] == list(THRESHOLDS)
    assert exact.used_percent == 100


def test_a_limit_a_run_is_told_by_the_run_and_not_by_an_alert() -> None:
    """Thousands of runs would each send three; the run itself ends, or asks."""
    verdict = accounts.draw([account(0, 70, period=Period.RUN)], Amount(70, 0), Amount(70, 0))
    assert isinstance(verdict, Draw)
    assert verdict.crossings == ()
    refused = accounts.draw([account(0, 60, period=Period.RUN)], Amount(70, 0), Amount(70, 0))
    assert isinstance(refused, NoRoom)
    assert refused.crossings == ()


@pytest.mark.parametrize(
    ("scope", "period", "words"),
    [
        (Scope.USER, Period.DAY, "user x on 2026-11-20"),
        (Scope.AGENT, Period.RUN, "agent x in one run"),
        (Scope.TENANT, Period.MONTH, "the tenant in 2026-11"),
        (Scope.ALL, Period.DAY, "everything together on 2026-11-20"),
    ],
)
def test_an_account_is_named_in_words(scope: Scope, period: Period, words: str) -> None:
    """It stands in results and alerts, before people who know no column names."""
    assert str(AccountName(scope, "x", period, DAY)) == words


def test_a_refusal_says_what_is_missing_in_either_unit() -> None:
    """Money and tokens run out for different reasons, and are raised by different people."""
    found = Account(AccountName(Scope.USER, "ann", Period.DAY, DAY), Amount(900_000, 5_000), 1_000_000, 5_500)
    verdict = accounts.draw([found], Amount(200_000, 1_000), Amount(0, 0))
    assert isinstance(verdict, NoRoom)
    assert verdict.explanation == (
        "user ann on 2026-11-20: $0.90 of $1.00 used, the next step needs up to $0.20 more; "
        "5,000 of 5,500 tokens used, the next step needs up to 1,000 more"
    )


def test_a_runs_accounts_are_named_in_the_order_in_which_they_are_locked() -> None:
    """Two runs that lock in different orders would wait for each other for ever."""
    found = accounts.windows("ann", "mail", date(2026, 2, 28))
    assert list(found) == sorted(found)
    assert {(name.period, name.starts) for name in found} == {
        (Period.DAY, date(2026, 2, 28)),
        (Period.MONTH, date(2026, 2, 1)),
    }
    assert len(found) == 6
