"""Does a run make do with less near its limit, and ask for the right thing at it?"""

from datetime import timedelta
from decimal import Decimal

import pytest
from pydantic import ValidationError

from durable_agents.domain.approvals import Ladder, Rung
from durable_agents.domain.budgets import Budget, Limit, Spend, used_percent
from durable_agents.domain.identifiers import Digest, Micros, RunId
from durable_agents.domain.scarcity import AtLimit, PinnedAtLimit, Reached, can_ask, question, topped_up

LADDER = Ladder(rungs=(Rung(within=timedelta(hours=1)),))
COST = Reached(limit=Limit.COST, explanation="cost_usd: all of it used")
ACCOUNT = Reached(limit=None, explanation="user ann on 2026-11-20: all of it used")
ADDS = PinnedAtLimit(near=80, ladder=LADDER, add=Budget(cost_usd=Decimal("0.5"), turns=3))


@pytest.mark.parametrize(
    ("budget", "spend", "percent"),
    [
        (Budget(), Spend(cost_micros=Micros(10**9)), 0),
        (Budget(cost_usd=Decimal(1)), Spend(cost_micros=Micros(799_999)), 79),
        (Budget(cost_usd=Decimal(1)), Spend(cost_micros=Micros(500_000), unknown_micros=Micros(300_000)), 80),
        (Budget(cost_usd=Decimal(1), output_tokens=10), Spend(output_tokens=9), 90),
        (Budget(input_tokens=100), Spend(input_tokens=250), 250),
        (Budget(cost_usd=Decimal(0)), Spend(), 100),
    ],
)
def test_how_much_is_used_is_that_of_the_limit_which_is_nearest(budget: Budget, spend: Spend, percent: int) -> None:
    """What may have been billed is used; rounding down never says more than is so."""
    assert used_percent(budget, spend) == percent


@pytest.mark.parametrize(
    ("at_limit", "reached", "asks"),
    [
        (None, COST, False),
        (PinnedAtLimit(near=80, add=Budget(cost_usd=Decimal(1))), COST, False),
        (ADDS, COST, True),
        (ADDS, Reached(limit=Limit.TURNS, explanation="x"), True),
        (ADDS, Reached(limit=Limit.TOOL_CALLS, explanation="x"), False),
        (ADDS, ACCOUNT, True),
        (PinnedAtLimit(near=80, ladder=LADDER), ACCOUNT, True),
    ],
)
def test_somebody_is_asked_only_for_what_an_approval_would_give(
    at_limit: PinnedAtLimit | None, reached: Reached, *, asks: bool
) -> None:
    """A yes that changes nothing would be asked for again, for ever."""
    assert can_ask(at_limit, reached) is asks


def test_an_approval_adds_what_the_file_says_and_nothing_else() -> None:
    """Who approves half a dollar has not approved a day."""
    before = Budget(cost_usd=Decimal("0.10"), turns=5, tool_calls=2, wall_time=timedelta(hours=1))
    assert topped_up(before, ADDS.add) == before.model_copy(update={"cost_usd": Decimal("0.6"), "turns": 8})
    assert topped_up(Budget(), ADDS.add) == Budget(), "what is unlimited stays so"
    assert topped_up(before, Budget()) == before


def test_each_question_is_one_of_its_own() -> None:
    """A yes to the first must not answer the second: the digest tells them apart, and what would be added."""
    run, policy = RunId("run:acme:k"), Digest("0" * 64)
    first = question(run, 2, 0, COST, policy, ADDS)
    again = question(run, 2, 0, Reached(limit=Limit.COST, explanation="in other words"), policy, ADDS)
    assert first.approval_id == again.approval_id
    others = (
        question(run, 2, 1, COST, policy, ADDS),
        question(run, 3, 0, COST, policy, ADDS),
        question(RunId("run:acme:l"), 2, 0, COST, policy, ADDS),
        question(run, 2, 0, ACCOUNT, policy, ADDS),
        question(run, 2, 0, COST, policy, ADDS.model_copy(update={"add": Budget(cost_usd=Decimal("5.0"))})),
    )
    assert len({first.approval_id, *(other.approval_id for other in others)}) == 6
    assert first.facts == {"in the way": "cost_usd: all of it used", "an approval": "raises cost_usd +0.5, turns +3"}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"add": {"turns": 3}}, "nobody is named"),
        ({"ask": "finance", "add": {"wall_time": "1h"}}, "has no times"),
        ({"near": 0}, "greater than or equal to 1"),
        ({"near": 101}, "less than or equal to 100"),
        ({"keep_turns": 0}, "greater than or equal to 1"),
        ({"ask": "finance", "add": {"cost_usd": 0.5}}, "write the amount as a string"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(stated: dict[str, object], words: str) -> None:
    """At load, with the reason, and not at the moment the money runs out."""
    with pytest.raises(ValidationError, match=words):
        AtLimit.model_validate(stated)
