"""Does docs/failures.md say what the code does about each failure?

Run this file to write the page anew: `python -m tests.docs.test_failures_page`.
"""

from pathlib import Path

from durable_agents.domain.failures import ANSWERS, MEANINGS, Answer, Billed, FailureClass, FailureKind

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"

_INTRODUCTION = """\
# Failures

Every way a step of a run can fail, and the one answer to each. Activities classify a failure by type, status or code; the
workflow looks its answer up in this table, which is `ANSWERS` in `durable_agents/domain/failures.py`.

- **class**: who must react. *transient*: waiting helps. *model*: telling the model helps. *logic*: changing the agent, its input
  or its budget helps. *permanent*: only an operator helps.
- **billed**: could the failed attempt have been billed? *unknown* keeps its maximum held until somebody knows.
- **retry**: the same call is tried again, at most 3 tries, after the provider's own wait or exponential backoff.
- **next model**: the run goes on with the next model of the agent's chain, at a turn boundary.
- **breaker**: counts against the provider's circuit breaker.
- **told**: the model reads about it and may repair its answer.

"""
_HEAD = "| kind | meaning | class | billed | retry | next model | breaker | told |\n|---|---|---|---|---|---|---|---|\n"


def render() -> str:
    """The page, from the code."""
    return _INTRODUCTION + _HEAD + "".join(_row(kind, answer) for kind, answer in ANSWERS.items())


def _row(kind: FailureKind, answer: Answer) -> str:
    flags = (answer.retry_here, answer.next_model, answer.breaker, bool(answer.told_to_model))
    marks = " | ".join("yes" if flag else "" for flag in flags)
    return f"| `{kind}` | {MEANINGS[kind]} | {answer.failure_class} | {answer.billed} | {marks} |\n"


def test_the_failures_page_is_what_the_code_says() -> None:
    """An operator decides by this page at night; a page that has drifted from the code is worse than none."""
    assert PAGE.read_text() == render(), "docs/failures.md is out of date: run `python -m tests.docs.test_failures_page`"


def test_the_page_would_not_hide_a_changed_answer() -> None:
    """The comparison is worth something only if every column of an answer is on the page."""
    row = _row(FailureKind.INTERNAL, Answer(FailureClass.MODEL, Billed.YES, retry_here=True, told_to_model="…"))
    assert row.endswith("| model | yes | yes |  |  | yes |\n")


if __name__ == "__main__":
    PAGE.write_text(render())
