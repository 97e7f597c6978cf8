"""In which words does a run end?"""

from typing import NamedTuple

from pydantic import JsonValue

from durable_agents.domain.approvals import Consent
from durable_agents.domain.budgets import together
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import Digest, RunId
from durable_agents.domain.model_calls import ModelAnswer
from durable_agents.domain.run_state import RunState
from durable_agents.domain.runs import RunResult, RunStatus


class Output(NamedTuple):
    """What a run gives back: a value, or where a large one lies."""

    value: JsonValue
    artifact: Digest | None


def ended(run: RunId, state: RunState, status: RunStatus, explanation: str) -> RunResult:
    """The result of an end; unless the agent finished, its last words are the partial result."""
    return RunResult(
        run_id=run,
        status=status,
        output=state.last_text or None,
        explanation=explanation,
        agent_version=state.admitted.version if state.admitted is not None else None,
        turns=state.turn,
        spend=state.spend,
    )


def completed(run: RunId, state: RunState, answer: ModelAnswer) -> RunResult:
    """The agent's own end. An answer of a fallback model is a degraded one, and says so."""
    reasons = [f"answered by {answer.model}, a fallback of the chain"] if state.model > 0 else []
    if state.near_limit and state.admitted is not None and state.admitted.at_limit is not None:
        reasons.append(f"the budget ran low: {state.admitted.at_limit.describes}")
    result = ended(run, state, RunStatus.DEGRADED if reasons else RunStatus.COMPLETED, "; ".join(reasons))
    return result.model_copy(update={"output": answer.output, "output_artifact": answer.output_artifact})


def fell_back(run: RunId, state: RunState, failure: Failure, text: str) -> RunResult:
    """The agent's file has a fixed answer for this."""
    result = ended(run, state, RunStatus.DEGRADED, f"fixed text, because: {failure.kind}: {failure.message}")
    return result.model_copy(update={"output": text, "failure": failure})


def answered_before(run: RunId, state: RunState, failure: Failure, earlier: RunId, found: Output) -> RunResult:
    """The same question has been answered before."""
    result = ended(run, state, RunStatus.DEGRADED, f"the answer of {earlier}, because: {failure.kind}: {failure.message}")
    return result.model_copy(update={"output": found.value, "output_artifact": found.artifact, "failure": failure})


def stood_in(run: RunId, state: RunState, failure: Failure, other: RunResult, agent: str) -> RunResult:
    """Another agent did it, or did not; what it used was this run's to use."""
    done = other.status in (RunStatus.COMPLETED, RunStatus.DEGRADED)
    why = f"done by agent {agent} in {other.run_id}" if done else f"agent {agent} in {other.run_id}: {other.explanation}"
    result = ended(run, state, RunStatus.DEGRADED if done else other.status, f"{why}, because: {failure.kind}: {failure.message}")
    update = {"output": other.output, "output_artifact": other.output_artifact, "spend": together(state.spend, other.spend)}
    return result.model_copy(update={**update, "failure": failure if done else other.failure or failure})


def taken_over(run: RunId, state: RunState, failure: Failure, decision: Consent) -> RunResult:
    """A human was asked to take over, and did or did not."""
    if not decision.approved:
        return failed(run, state, failure)
    why = f": {decision.reason}" if decision.reason else ""
    result = ended(run, state, RunStatus.HANDED_OFF, f"taken over by {decision.by}{why}")
    return result.model_copy(update={"failure": failure})


def cancelled(run: RunId, state: RunState) -> RunResult:
    """Somebody asked the run to stop."""
    by, why = (state.cancel.by, state.cancel.reason) if state.cancel is not None else ("unknown", "")
    return ended(run, state, RunStatus.CANCELLED, f"cancelled by {by}: {why or 'no reason given'}")


def failed(run: RunId, state: RunState, failure: Failure) -> RunResult:
    """Something went wrong that nobody in the run could mend."""
    return ended(run, state, RunStatus.FAILED, failure.message).model_copy(update={"failure": failure})
