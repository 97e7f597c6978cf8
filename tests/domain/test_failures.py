"""Does every failure have one answer, and is what the model is told safe to send?"""

import pytest

from durable_agents.domain.failures import ANSWERS, MEANINGS, Billed, Failure, FailureClass, FailureKind, correction


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_has_an_answer_and_a_meaning(kind: FailureKind) -> None:
    """A kind without a row would stop the workflow task with a KeyError: a run that hangs instead of failing."""
    assert Failure(kind=kind, message="m").answer is ANSWERS[kind]
    assert MEANINGS[kind].endswith(".")
    assert "|" not in MEANINGS[kind]


def test_only_transient_failures_are_tried_again() -> None:
    """Trying again what cannot succeed costs money and hides the cause."""
    assert {a.failure_class for a in ANSWERS.values() if a.retry_here} == {FailureClass.TRANSIENT}


def test_what_counts_against_the_breaker_is_the_providers_fault() -> None:
    """A breaker that opens because one agent sends bad requests takes the provider from everybody else."""
    counted = {kind for kind, answer in ANSWERS.items() if answer.breaker}
    assert not counted & {FailureKind.BAD_REQUEST, FailureKind.CONTEXT_TOO_LONG, FailureKind.RATE_LIMITED, FailureKind.REFUSED}


def test_the_unclassified_is_never_assumed_free() -> None:
    """An error nobody understood may have been billed; assuming otherwise is how budgets are overspent."""
    unsure = {FailureKind.INTERNAL, FailureKind.BAD_RESPONSE, FailureKind.PROVIDER_TIMEOUT, FailureKind.PROVIDER_ERROR}
    assert {ANSWERS[kind].billed for kind in unsure} == {Billed.UNKNOWN}


def test_a_correction_carries_the_detail_and_nothing_else_does() -> None:
    """The model repairs what it is told about; a message with braces must not be formatted again."""
    failure = Failure(kind=FailureKind.OUTPUT_INVALID, message="amount: {0} is {detail}")
    assert "amount: {0} is {detail}. Answer" in correction(failure)
    assert correction(Failure(kind=FailureKind.RATE_LIMITED, message="m")) == ""
