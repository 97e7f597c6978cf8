"""After calls of which a third go wrong, does the ledger still say what the provider bills?

The short form of `benchmarks/ledger_truth.py`, which shows the same with 10,000 calls.
"""

from pathlib import Path

from benchmarks.ledger_truth import Truth, compare
from tests.support.world import TestDatabase

CALLS = 240


async def test_after_calls_of_which_a_third_go_wrong_the_ledger_says_what_is_billed(
    database: TestDatabase, tmp_path: Path
) -> None:
    """Counters that drift a little with every cancel and every dropped connection are worth nothing after a month."""
    truth = Truth(CALLS, at_once=16, seed=1)
    await truth.play(tmp_path / "agents", database)
    found = await compare(truth, database)
    assert found.problems == [], found.line()
    assert found.requests >= CALLS * 0.8
    assert min(found.spent, found.overrun, found.unknown, found.flagged) > 0, found.line()
    assert truth.met.keys() >= {"429", "529", "500", "dropped", "silent", "cancel", "kill", "overtake"}, truth.met
