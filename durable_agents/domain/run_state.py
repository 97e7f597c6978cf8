"""What does a run remember, and how does each thing that happens change it?

One frozen model and pure transitions; only the `AgentRun` workflow assigns the result. It holds ids and numbers, never the
conversation, so that it is carried whole when a run continues as new.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from durable_agents.domain import audit, scarcity
from durable_agents.domain.agents import Admitted
from durable_agents.domain.approvals import (
    Approval,
    ApprovalDecision,
    Consent,
    Judgement,
    Standing,
    agreeing,
    consent,
    judge,
    same_person,
)
from durable_agents.domain.budgets import Budget, Elapsed, Spend, raised, used_percent
from durable_agents.domain.canonical import inert
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import ApprovalId, Micros, RunId
from durable_agents.domain.model_calls import ContextSize, ModelAnswer, ModelFailure, RequestedCall
from durable_agents.domain.prices import most_tokens
from durable_agents.domain.routing import routed_model
from durable_agents.domain.runs import BudgetRaise, CancelRequest, RejectedMessage, RunRequest, RunResult, TimelineEntry
from durable_agents.domain.tool_calls import ToolSettled

TIMELINE_KEPT = 200
LINE_KEPT = 200
"""Characters of one line; what people and models wrote is in it, so it is made inert as well."""
REJECTED_KEPT = 20
SETTLED_KEPT = 200
SETTLED_BEFORE = "it is settled already, the first valid decision won"
STORED = "stored decision"
"""As which message a decision counts that was found in the database."""
MAX_DEPTH = 3
"""How many agents may stand in for one another in a row: two that call each other come to an end."""


class WorkClock(BaseModel):
    """Measures how long a run waited for humans: the time in which every unfinished call was waiting for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unfinished: int = 0
    waiting: int = 0
    since: AwareDatetime | None = None
    waited: timedelta = timedelta(0)

    def changed(self, now: datetime, *, unfinished: int = 0, waiting: int = 0) -> "WorkClock":
        """With so many more (or fewer) unfinished and waiting calls from `now` on."""
        waited = self.waited_until(now)
        calls, idle = self.unfinished + unfinished, self.waiting + waiting
        standing_still = idle > 0 and idle >= calls
        return WorkClock(unfinished=calls, waiting=idle, since=now if standing_still else None, waited=waited)

    def waited_until(self, now: datetime) -> timedelta:
        """The whole waiting time up to `now`."""
        return self.waited + (now - self.since if self.since is not None else timedelta(0))


class Unverified(BaseModel):
    """A decision that would count if its signature is right, or that waits behind one of these: the first valid one wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at: AwareDatetime
    """When it arrived; that is when it counts from, however long verifying takes."""
    message: str
    decision: ApprovalDecision


class RunState(BaseModel):
    """Everything an `AgentRun` remembers between two steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    started_at: AwareDatetime
    admitted: Admitted | None = None
    budget: Budget = Budget()
    spend: Spend = Spend()
    clock: WorkClock = WorkClock()
    context: ContextSize = ContextSize()
    model: int = 0
    """Where in the chain the run stands; a route may choose another model for a turn."""
    asked_model: int = 0
    """The model of the chain that was asked last."""
    routing: bool = True
    """Do routes still choose? A route whose model failed ends them for this run."""
    last_tools: tuple[str, ...] = ()
    """The tools the last turn called."""
    accounts_used: int = 0
    """Percent of the account above the run that is nearest its limit, as of the last draw."""
    kept_micros: Micros = Micros(0)
    """What the run has drawn of its accounts and not used."""
    near_limit: bool = False
    """The budget runs out, and the run goes on with less, to its end."""
    top_ups: int = 0
    """How often a human has granted more."""
    lost_to: Failure | None = None
    """The models are at their end, and a human is asked to take over."""
    turn: int = 0
    repairs: int = 0
    mistakes: tuple[str, ...] = ()
    """What the model has done wrong since its last good turn, one signature each."""
    turn_mistakes: tuple[str, ...] = ()
    """What it did wrong in this turn's calls."""
    told_long: bool = False
    """The model has been told that it takes unusually many turns."""
    recent: tuple[str, ...] = ()
    """Fingerprints of the last calls and their results."""
    correction: str = ""
    calls: tuple[RequestedCall, ...] = ()
    """The tool calls of this turn while they are being dealt with."""
    approvals: tuple[Approval, ...] = ()
    decided: dict[ApprovalId, Consent] = {}
    disputed: dict[ApprovalId, tuple[ApprovalDecision, ...]] = {}
    """Decisions seen after the deadline that may have arrived before it (no worker was there to see them)."""
    unverified: tuple[Unverified, ...] = ()
    """Decisions whose signatures are being verified, in the order in which they arrived."""
    settled: tuple[ApprovalId, ...] = ()
    rejected: tuple[RejectedMessage, ...] = ()
    rejected_count: int = 0
    messages_received: int = 0
    """Signals and updates of this execution; the server takes 10,000 signals and 2,000 updates of one."""
    timeline: tuple[TimelineEntry, ...] = ()
    notes: tuple[audit.Note, ...] = ()
    """For the audit log: what only the run knows, and no activity has written down yet."""
    notes_made: int = 0
    """The ones that were written down, and those for which there was no room, too."""
    last_text: str = ""
    doing: str = "being admitted"
    cancel: CancelRequest | None = None
    result: RunResult | None = None

    def approval(self, wanted: ApprovalId) -> Approval | None:
        """The open approval of this id."""
        return next((approval for approval in self.approvals if approval.id == wanted), None)

    def to_verify(self, wanted: ApprovalId) -> tuple[Unverified, ...]:
        """The decisions about this approval whose signatures are not verified yet."""
        return tuple(one for one in self.unverified if one.decision.approval_id == wanted)

    @property
    def model_now(self) -> int:
        """The model that answers the next turn."""
        if self.admitted is None or not self.routing:
            return self.model
        if self.near_limit and self.admitted.at_limit is not None and self.admitted.at_limit.model is not None:
            return self.admitted.at_limit.model
        routes, turn = self.admitted.routes, self.turn + 1
        routed = routed_model(routes, turn=turn, last_tools=self.last_tools, context=self.context)
        return self.model if routed is None else routed

    def elapsed(self, now: datetime) -> Elapsed:
        """Time since the start, with and without waiting for humans."""
        wall = now - self.started_at
        return Elapsed(wall=wall, working=wall - self.clock.waited_until(now))


class RunInput(RunRequest):
    """What the workflow takes: a `RunRequest`, and what only another run may add."""

    carried: RunState | None = None
    """After the run continued as new: the state it goes on with."""
    stands_in_for: RunId | None = None
    """The run whose agent could not, and whose input this one takes. Only that run itself, as the parent, may say so."""
    depth: int = Field(default=0, ge=0, le=MAX_DEPTH)

    def asked(self) -> RunRequest:
        """The request alone."""
        return RunRequest(**{name: getattr(self, name) for name in RunRequest.model_fields})


def noted(state: RunState, now: datetime, what: str) -> RunState:
    """With one more line in the timeline; the oldest go first."""
    line = inert(what, LINE_KEPT)
    lines = (*state.timeline, TimelineEntry(at=now, what=line))[-TIMELINE_KEPT:]
    return state.model_copy(update={"timeline": lines, "doing": line})


def admitted(state: RunState, now: datetime, terms: Admitted) -> RunState:
    """Bound to an agent version, with its budget, from `now` on."""
    changed = state.model_copy(
        update={"admitted": terms, "budget": terms.budget, "context": ContextSize().plus(terms.opening_bytes)}
    )
    policy = f", policy version {terms.policy_version} ({terms.policy_digest[:12]})" if terms.policy_version else ""
    return noted(changed, now, f"admitted as {terms.agent} version {terms.version[:12]}{policy}")


def asking(state: RunState, model: int) -> RunState:
    """This model of the chain is asked now."""
    return state.model_copy(update={"asked_model": model})


def answered(state: RunState, now: datetime, answer: ModelAnswer) -> RunState:
    """A model answered: the answer is a turn of the conversation, and money is spent."""
    changed = state.model_copy(
        update={
            "turn": state.turn + 1,
            "correction": "",
            "calls": answer.calls,
            "last_tools": tuple(sorted({call.tool for call in answer.calls})),
            "last_text": answer.text or state.last_text,
            "context": state.context.plus(answer.message_bytes).counted(state.asked_model, answer.counted_tokens),
            "spend": _with_model_call(state.spend, answer).plus(turns=1),
            "accounts_used": answer.accounts_used or state.accounts_used,
            "kept_micros": answer.kept_micros,
        }
    )
    asked = ", ".join(call.tool for call in answer.calls)
    source = " (from the cache)" if answer.cached_tokens is not None else ""
    does = f"asks for {asked}" if asked else "answers"
    return noted(changed, now, f"turn {changed.turn}: {answer.model}{source} {does}")


def model_failed(state: RunState, now: datetime, outcome: ModelFailure) -> RunState:
    """No answer came of a model call; what it cost, or may have cost, counts all the same."""
    changed = state.model_copy(update={"spend": _with_model_call(state.spend, outcome)})
    return noted(changed, now, f"model call failed: {outcome.failure.kind}")


def repairing(state: RunState, correction: str, signature: str) -> RunState:
    """The model will be told about its own failure with the next call."""
    changed = told(state, correction)
    return changed.model_copy(update={"repairs": state.repairs + 1, "mistakes": (*state.mistakes, signature)})


def told_long(state: RunState, correction: str) -> RunState:
    """The model will read that it takes unusually long; once."""
    return told(state, correction).model_copy(update={"told_long": True})


def told(state: RunState, correction: str) -> RunState:
    """The model will read this before its next answer."""
    return state.model_copy(update={"correction": correction, "context": state.context.plus(most_tokens(correction))})


def next_model(state: RunState, now: datetime) -> RunState:
    """The next model of the chain takes over; after a routed model, the one that is meant."""
    place = state.model if state.asked_model != state.model else state.model + 1
    update = {"model": place, "routing": False, "repairs": 0, "mistakes": (), "correction": ""}
    changed = state.model_copy(update=update)
    return noted(changed, now, f"falling back to model {changed.model + 1} of the chain")


def lost(state: RunState, now: datetime, failure: Failure) -> RunState:
    """Nobody of the chain can go on; a human will be asked."""
    return noted(state.model_copy(update={"lost_to": failure}), now, f"the models are at their end: {failure.kind}")


def stand_in_lost(state: RunState, now: datetime, agent: str, given: Budget | None) -> RunState:
    """Another agent's run was ended from outside: nobody says what it has used, so all it was given stays held."""
    held = given.cost_micros if given is not None else None
    changed = state.model_copy(update={"spend": state.spend.plus(unknown_micros=held or 0)})
    return noted(changed, now, f"agent {agent} was ended from outside")


def tool_settled(state: RunState, now: datetime, call: RequestedCall, outcome: ToolSettled) -> RunState:
    """A tool call is over and its result is part of the conversation."""
    changed = state.model_copy(
        update={
            "calls": tuple(other for other in state.calls if other.index != call.index),
            "context": state.context.plus(outcome.message_bytes),
            "spend": state.spend.plus(tool_calls=1),
            "turn_mistakes": (*state.turn_mistakes, f"{outcome.rule}: {call.tool}") if outcome.mistake else state.turn_mistakes,
            "recent": (*state.recent, outcome.fingerprint)[-_remembered(state) :],
        }
    )
    return noted(changed, now, f"{call.tool}: {outcome.result}" + (f" ({outcome.rule})" if outcome.rule else ""))


def turn_over(state: RunState) -> RunState:
    """Every call of the turn is settled; a good turn makes up for earlier mistakes."""
    mistakes = (*state.mistakes, *state.turn_mistakes) if state.turn_mistakes else ()
    repairs = state.repairs + 1 if state.turn_mistakes else 0
    return state.model_copy(update={"calls": (), "repairs": repairs, "mistakes": mistakes, "turn_mistakes": ()})


def _remembered(state: RunState) -> int:
    return state.admitted.loops.remembered if state.admitted is not None else 1


def asked(state: RunState, now: datetime, approval: Approval) -> RunState:
    """A human is asked; an approval that is already open (the run continued as new) stays as it is."""
    if state.approval(approval.id) is not None:
        return state
    changed = state.model_copy(update={"approvals": (*state.approvals, approval)})
    return noted(changed, now, f"asks {approval.asked}: {approval.title}")


def escalated(state: RunState, now: datetime, approval: Approval) -> RunState:
    """The approval moved to its next rung."""
    others = tuple(approval if one.id == approval.id else one for one in state.approvals)
    changed = state.model_copy(update={"approvals": others})
    return noted(changed, now, f"nobody decided; asks {approval.asked}: {approval.title}")


def reminded(state: RunState, now: datetime, wanted: ApprovalId) -> RunState:
    """Those who are asked have been asked again."""
    approvals = tuple(one.model_copy(update={"reminded": True}) if one.id == wanted else one for one in state.approvals)
    return noted(state.model_copy(update={"approvals": approvals}), now, f"reminds of {wanted}")


def closed(state: RunState, now: datetime, decision: Consent) -> RunState:
    """An approval has its one outcome."""
    decided = {key: value for key, value in state.decided.items() if key != decision.approval_id}
    disputed = {key: value for key, value in state.disputed.items() if key != decision.approval_id}
    changed = state.model_copy(
        update={
            "approvals": tuple(one for one in state.approvals if one.id != decision.approval_id),
            "decided": decided,
            "disputed": disputed,
            "settled": (*state.settled, decision.approval_id)[-SETTLED_KEPT:],
        }
    )
    changed = _none_to_verify(changed, decision.approval_id)
    outcome = "expired" if decision.expired else "approved" if decision.approved else "denied"
    return noted(changed, now, f"{outcome} by {decision.people}" + (f": {decision.reason}" if decision.reason else ""))


def judged(state: RunState, now: datetime, decision: ApprovalDecision) -> Judgement:
    """Does a decision that just arrived count, given everything the run remembers?"""
    approval = state.approval(decision.approval_id)
    if decision.approval_id in state.decided or decision.approval_id in state.settled:
        return Judgement(standing=Standing.REFUSED, reason=SETTLED_BEFORE)
    if state.cancel is not None:
        return Judgement(standing=Standing.REFUSED, reason="the run was cancelled before")
    if approval is None:
        return Judgement(standing=Standing.REFUSED, reason="no approval of that id is waiting here")
    return judge(approval, decision, now)


def received(state: RunState, now: datetime, message: str, decision: ApprovalDecision) -> RunState:
    """A decision arrived: it is judged at once, or once its signature, or one before it, is verified."""
    if judged(state, now, decision).standing is not Standing.REFUSED and (
        decision.signature is not None or state.to_verify(decision.approval_id)
    ):
        waiting = Unverified(at=now, message=message, decision=decision)
        return state.model_copy(update={"unverified": (*state.unverified, waiting)})
    return accepted(state, now, message, decision)


def verified(state: RunState, approval: ApprovalId, problems: Sequence[str]) -> RunState:
    """The first decisions about an approval are verified: what is wrong with each, empty where nothing is."""
    about = state.to_verify(approval)
    done, left = about[: len(problems)], about[len(problems) :]
    others = tuple(one for one in state.unverified if one.decision.approval_id != approval)
    changed = state.model_copy(update={"unverified": (*others, *left)})
    for one, problem in zip(done, problems, strict=False):
        if problem:
            changed = rejected(changed, one.at, one.message, problem, one.decision.excerpt)
        else:
            changed = accepted(changed, one.at, one.message, one.decision)
    return changed


def found(state: RunState, stored_at: datetime, decision: ApprovalDecision) -> RunState:
    """A decision was stored at that time, and may never have been delivered; one that was is not judged again."""
    refused = judged(state, stored_at, decision).standing is Standing.REFUSED
    approval = state.approval(decision.approval_id)
    if approval is not None and any(
        voice.signature == decision.signature and voice.by == decision.by for voice in approval.agreed
    ):
        return state
    if refused and any(entry.excerpt == inert(decision.excerpt, LINE_KEPT) for entry in state.rejected):
        return state
    return received(state, stored_at, STORED, decision)


def accepted(state: RunState, now: datetime, message: str, decision: ApprovalDecision) -> RunState:
    """A decision with nothing to verify (any more): it counts, is kept for arbitration, or is kept among the rejected."""
    judgement = judged(state, now, decision)
    approval = state.approval(decision.approval_id)
    if approval is not None and judgement.standing is Standing.COUNTS:
        return _said(state, now, approval, consent(approval, decision, now))
    if approval is not None and judgement.standing is Standing.LATE and _is_new(state, approval, decision):
        late = (*state.disputed.get(approval.id, ()), decision)
        return state.model_copy(update={"disputed": {**state.disputed, approval.id: late}})
    return rejected(state, now, message, judgement.reason, decision.excerpt)


def _said(state: RunState, now: datetime, approval: Approval, voice: Consent) -> RunState:
    """It counts: the approval is decided, or one of those who must approve has."""
    following = agreeing(approval, voice.model_copy(update={"others": ()})) if voice.approved else None
    if following is None:
        return state.model_copy(update={"decided": {**state.decided, approval.id: voice}})
    others = tuple(following if one.id == approval.id else one for one in state.approvals)
    changed = state.model_copy(update={"approvals": others})
    return noted(changed, now, f"approved by {voice.by}, {len(following.agreed)} of {following.quorum}: {approval.title}")


def _is_new(state: RunState, approval: Approval, decision: ApprovalDecision) -> bool:
    """May this late decision matter beside those that are disputed already? Of each person one, and no more than must approve."""
    late = state.disputed.get(approval.id, ())
    return len(late) < approval.quorum and not any(same_person(one.by, decision.by) for one in late)


def _none_to_verify(state: RunState, approval: ApprovalId) -> RunState:
    """What is not verified when its approval is over comes too late, signed or not."""
    late = state.to_verify(approval)
    others = tuple(one for one in state.unverified if one.decision.approval_id != approval)
    changed = state.model_copy(update={"unverified": others})
    for one in late:
        changed = rejected(changed, one.at, one.message, SETTLED_BEFORE, one.decision.excerpt)
    return changed


def rejected(state: RunState, now: datetime, message: str, reason: str, excerpt: str) -> RunState:
    """A message did not count; the newest are kept where its sender can see them."""
    entry = RejectedMessage(at=now, message=message, reason=inert(reason, LINE_KEPT), excerpt=inert(excerpt, LINE_KEPT))
    kept = (*state.rejected, entry)[-REJECTED_KEPT:]
    facts: dict[str, JsonValue] = {"message": entry.message, "reason": entry.reason, "excerpt": entry.excerpt}
    changed = _for_the_log(state, now, "decision_rejected", facts)
    return changed.model_copy(update={"rejected": kept, "rejected_count": state.rejected_count + 1})


def undisputed(state: RunState, approval: ApprovalId) -> RunState:
    """The dispute about the first disputed decision is settled."""
    others = {key: value for key, value in state.disputed.items() if key != approval}
    rest = state.disputed.get(approval, ())[1:]
    return state.model_copy(update={"disputed": {**others, approval: rest} if rest else others})


def budget_raised(state: RunState, now: datetime, change: BudgetRaise) -> RunState:
    """Somebody raised limits; who and why stands in the timeline."""
    changed = _with_budget(state, now, raised(state.budget, change.budget), change.by, change.reason)
    return noted(changed, now, f"budget raised by {change.by}" + (f": {change.reason}" if change.reason else ""))


def scarce(state: RunState, now: datetime) -> RunState:
    """The budget runs out: from here on the run makes do with what its agent's file leaves it. No change before."""
    at_limit = state.admitted.at_limit if state.admitted is not None else None
    if at_limit is None or state.near_limit:
        return state
    used = max(used_percent(state.budget, state.spend), state.accounts_used)
    if used < at_limit.near or not at_limit.describes:
        return state
    changed = state.model_copy(update={"near_limit": True})
    return noted(changed, now, f"{used} % of the budget is used: goes on with less ({at_limit.describes})")


def topped_up(state: RunState, now: datetime, add: Budget, by: str) -> RunState:
    """A human has granted more."""
    changed = _with_budget(state, now, scarcity.topped_up(state.budget, add), by, "a top-up was granted")
    return noted(changed.model_copy(update={"top_ups": state.top_ups + 1}), now, "more budget was granted")


def _with_budget(state: RunState, now: datetime, budget: Budget, by: str, reason: str) -> RunState:
    before, after = audit.limits(state.budget), audit.limits(budget)
    changes = [name for name in after if after[name] != before.get(name)]
    facts: dict[str, JsonValue] = {
        "by": by,
        "reason": inert(reason, LINE_KEPT),
        "before": {name: before.get(name) for name in changes},
        "after": {name: after[name] for name in changes},
    }
    changed = state.model_copy(update={"budget": budget})
    return _for_the_log(changed, now, "budget_raised", facts) if changes else changed


def _for_the_log(state: RunState, now: datetime, event: audit.Event, facts: dict[str, JsonValue]) -> RunState:
    note = audit.Note(number=state.notes_made + 1, at=now, event=event, facts=facts)
    return state.model_copy(update={"notes": audit.kept(state.notes, note), "notes_made": note.number})


def written_down(state: RunState, notes: tuple[audit.Note, ...]) -> RunState:
    """These notes stand in the audit log."""
    last = max((note.number for note in notes), default=0)
    return state.model_copy(update={"notes": tuple(note for note in state.notes if note.number > last)})


def withdrawn(state: RunState, now: datetime, approval: ApprovalId) -> RunState:
    """What was asked for is not needed any more."""
    approvals = tuple(one for one in state.approvals if one.id != approval)
    changed = _none_to_verify(state.model_copy(update={"approvals": approvals}), approval)
    return noted(changed, now, "the limit was raised: nobody needs to be asked")


def cancelling(state: RunState, now: datetime, cancel: CancelRequest) -> RunState:
    """Somebody wants the run to stop; the first who says so is remembered."""
    if state.cancel is not None:
        return state
    facts: dict[str, JsonValue] = {"by": cancel.by, "reason": inert(cancel.reason, LINE_KEPT)}
    return _for_the_log(state.model_copy(update={"cancel": cancel}), now, "cancel_requested", facts)


def counted_message(state: RunState) -> RunState:
    """One more signal or update has come in."""
    return state.model_copy(update={"messages_received": state.messages_received + 1})


def carried(state: RunState) -> RunState:
    """What the next execution of this run begins with."""
    return state.model_copy(update={"messages_received": 0, "timeline": state.timeline[-50:], "clock": _standing(state.clock)})


def _standing(clock: WorkClock) -> WorkClock:
    """The clock as the next execution finds it: no call is in flight there yet, but a wait goes on."""
    return clock.model_copy(update={"unfinished": 0, "waiting": 0})


def _with_model_call(spend: Spend, outcome: ModelAnswer | ModelFailure) -> Spend:
    usage = outcome.usage
    return spend.plus(
        model_calls=1,
        cost_micros=outcome.cost_micros,
        unknown_micros=outcome.unknown_micros,
        overrun_micros=outcome.overrun_micros,
        input_tokens=usage.input_tokens if usage else 0,
        cached_input_tokens=usage.cached_input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
    )
