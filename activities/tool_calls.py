"""How is a tool called: by which right, with whose consent, and never twice?

One activity owns a call from the policy's verdict to the result in the transcript. It reads the arguments from the transcript,
so what was approved, what is checked and what is sent are one thing.
"""

import asyncio
import json
from dataclasses import replace
from typing import Literal, assert_never

from pydantic import JsonValue
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import audit, caches, consents, dispatches, notifications, policies, transcripts
from activities.agents import AgentCatalog
from activities.heartbeat import Lease, fence, heartbeating, stale_attempt
from activities.permissions import evaluate, plain
from activities.postgres import Connection, Database
from activities.prepared_calls import FoundCall, PreparedCall, SenselessCall, ask, find, prepare, settle
from activities.storage_errors import storage_errors
from durable_agents.domain.agents import outcome_ladder, provenance_ladder
from durable_agents.domain.approvals import ApprovalKind, Consent, approval_id
from durable_agents.domain.artifacts import belongs_in_artifact
from durable_agents.domain.canonical import digest, escape_text, inert, restore_text
from durable_agents.domain.effects import DispatchState, Effect, NextStep, certainly_nothing_happened, next_step
from durable_agents.domain.identifiers import Digest
from durable_agents.domain.permissions import Call, Ruling, Verdict, decide
from durable_agents.domain.provenance import Label, TrustedText, judged, problem
from durable_agents.domain.tool_calls import ToolCallRequest, ToolOutcome, call_line
from durable_agents.domain.tools import ToolContext, ToolFailed, ToolUnavailable, resource_of

CONSENT_MISMATCH = "consent_mismatch"
TOOL_UNAVAILABLE = "tool_unavailable"
OUTCOME_OPEN = "outcome_open"
TOOL_CHANGED = "tool_changed"


class ToolActivities:
    """`run_tool`."""

    def __init__(self, database: Database, catalog: AgentCatalog) -> None:
        self._database = database
        self._catalog = catalog

    @activity.defn
    async def run_tool(self, request: ToolCallRequest) -> ToolOutcome:
        """Decide on, and make, one tool call: policy, consent, dispatch row, effect, outcome."""
        async with heartbeating() as lease:
            with storage_errors():
                begun = await self._begin(request)
            if not isinstance(begun, PreparedCall):
                return begun
            return await self._act(begun, lease)

    async def _begin(self, request: ToolCallRequest) -> PreparedCall | ToolOutcome:
        """Everything before the effect, in one transaction that ends with the dispatch row."""
        async with self._database.transaction(request.tenant) as connection:
            found = await find(connection, request)
            if not isinstance(found, FoundCall):
                return found
            await audit.append_notes(connection, request.tenant, request.run_id, request.notes)
            try:
                call = prepare(found, self._catalog)
            except SenselessCall as senseless:
                if found.in_doubt:
                    raise _tool_changed(found) from None
                return await settle(connection, found, "refused", senseless.told, senseless.rule, mistake=True)
            if call.row is not None and call.row.state is DispatchState.UNKNOWN:
                return await _resolve_unknown(connection, call)
            if call.row is None and request.near_limit and _is_saved(call):
                told = "The budget runs low: this tool is not used any more. Finish with what you have."
                return await settle(connection, call, "refused", told, "the budget runs low")
            call, verdict = await _with_provenance(connection, call, await _verdict(connection, call))
            consent = await _consent(connection, call)
            if consent is not None and not isinstance(consent, Consent):
                return consent
            stopped = await _stopped_by(connection, call, verdict, consent) or await _from_cache(connection, call)
            return await _take_next_step(connection, call, verdict, consent) if stopped is None else stopped

    async def _act(self, call: PreparedCall, lease: Lease) -> ToolOutcome:
        """Send the effect and write down what came of it."""
        lease.require()
        try:
            text = await _send(call)
        except ToolFailed as failed:
            return await self._settle(call, "error", f"The tool failed: {_said(call, failed)}")
        except ToolUnavailable as unavailable:
            await self._not_sent(call)
            raise ApplicationError(_line(call, unavailable), type=TOOL_UNAVAILABLE) from None
        except Exception as error:  # noqa: BLE001 - somebody else's code: whatever else it raises leaves the outcome open
            return await self._outcome_open(call, error)
        return await self._settle(call, "ok", text)

    async def _settle(self, call: PreparedCall, result: Literal["ok", "error"], text: str) -> ToolOutcome:
        with storage_errors():
            async with self._database.transaction(call.request.tenant) as connection:
                if result == "ok" and (lifetime := call.tool.spec.cache) is not None and not belongs_in_artifact(text):
                    await caches.put(connection, call.request.tenant, _cache_key(call), escape_text(text), lifetime)
                return await settle(connection, call, result, text)

    async def _not_sent(self, call: PreparedCall) -> None:
        if certainly_nothing_happened(call.row):
            with storage_errors():
                async with self._database.transaction(call.request.tenant) as connection:
                    await dispatches.mark(connection, call.request, DispatchState.NOT_SENT, fence())

    async def _outcome_open(self, call: PreparedCall, error: Exception) -> ToolOutcome:
        if call.tool.spec.effect is not Effect.AT_MOST_ONCE:
            raise ApplicationError(_line(call, error), type=OUTCOME_OPEN) from None
        with storage_errors():
            async with self._database.transaction(call.request.tenant) as connection:
                return await _ask_about_outcome(connection, call)


def _is_saved(call: PreparedCall) -> bool:
    at_limit = call.run.terms.at_limit
    return at_limit is not None and call.tool.spec.name in at_limit.without


def _tool_changed(call: FoundCall) -> ApplicationError:
    """Parks the call, visibly, until a worker has the tool (again) as it was: nobody else can say what became of the effect."""
    message = f"the outcome of call {call.path} is open, and this worker cannot take it up: its {call.block.tool!r} is another"
    return ApplicationError(inert(message, 300), type=TOOL_CHANGED)


async def _verdict(connection: Connection, call: PreparedCall) -> Verdict:
    """What the policy in force says, written down with what it says it of."""
    spec, force, so_far = call.tool.spec, call.force, await policies.so_far(connection, call.request)
    asked = Call(
        tool=spec.name,
        risk=spec.risk,
        resource=resource_of(spec, call.arguments),
        arguments={name: plain(value) for name, value in call.tool.keywords(call.parsed).items()},
        user=call.run.user,
        tenant=call.run.tenant,
        agent=call.run.terms.agent,
        spent_micros=so_far.spent_micros,
        calls=so_far.calls,
        now=so_far.now,
    )
    if force.policy is None:
        verdict = Verdict(ruling=Ruling.DENY, rule=None, reason="the policy cannot be read", policy_digest=force.digest)
    else:
        verdict = decide(force.policy, force.digest, asked, evaluate)
    await policies.record(connection, call.request, force, asked, verdict)
    return verdict


async def _with_provenance(connection: Connection, call: PreparedCall, verdict: Verdict) -> tuple[PreparedCall, Verdict]:
    """The call with what its conversation has against it, and the verdict that follows."""
    if call.label is Label.TRUSTED or verdict.ruling is Ruling.DENY:
        return call, verdict
    first = await transcripts.load_one(connection, call.request.tenant, call.request.run_id, 0, 0)
    text = TrustedText.of(call.run.agent.prompt, json.loads(first.message.text()))
    policy = call.force.policy
    permits = policy.trusted_destinations if policy is not None else ()
    against = problem(call.tool.spec, call.arguments, call.label, text, permits)
    return replace(call, against=against or ""), judged(verdict, against, provenance_ladder(policy))


async def _stopped_by(
    connection: Connection, call: PreparedCall, verdict: Verdict, consent: Consent | None
) -> ToolOutcome | None:
    """What a human, or the policy, has against the call; None: nothing."""
    if consent is not None and not consent.approved:
        why = f": {inert(consent.reason)}" if consent.reason else ""
        told = "Nobody approved this call in time." if consent.expired else f"A human denied this call{why}."
        return await _refuse(connection, call, told, f"denied by {consent.by}")
    match verdict.ruling:
        case Ruling.ALLOW:
            return None
        case Ruling.DENY:
            return await _refuse(connection, call, f"The policy does not allow this call: {verdict.reason}.", verdict.reason)
        case Ruling.ASK:
            assert verdict.ladder is not None
            return await ask(connection, call, ApprovalKind.TOOL_CALL, verdict.ladder) if consent is None else None
    assert_never(verdict.ruling)


async def _refuse(connection: Connection, call: PreparedCall, told: str, rule: str) -> ToolOutcome:
    """No is the end of a call that was not made yet; where an effect is open, only its outcome is."""
    if call.in_doubt:
        return await _ask_about_outcome(connection, call)
    return await settle(connection, call, "refused", told, rule)


async def _from_cache(connection: Connection, call: PreparedCall) -> ToolOutcome | None:
    """An earlier result of the same read, if it may be given again; it costs no call and says where it comes from."""
    if call.tool.spec.cache is None or call.row is not None:
        return None
    text = await caches.get(connection, call.request.tenant, _cache_key(call))
    return await settle(connection, call, "ok", restore_text(text), "from the cache") if isinstance(text, str) else None


def _cache_key(call: PreparedCall) -> Digest:
    """Everything a read's result may depend on: the agent's version, the tool, its arguments, and who asks."""
    return digest(["tool", call.agent.version, call.tool.spec.name, call.arguments, call.run.user])


async def _consent(connection: Connection, call: PreparedCall) -> Consent | ToolOutcome | None:
    """What a human said of this call: any no, but a yes only if the policy it was given under is still in force.

    An outcome: what was said does not hold, and that is the end of the call.
    """
    consent = call.request.consent
    if consent is None:
        return None
    problem = await _record_decision(connection, call, consent, ApprovalKind.TOOL_CALL)
    if problem is not None:
        return await _refuse(connection, call, "A human's decision about this call does not hold.", f"consent: {problem}")
    holds = consent.digest == call.bound_to(ApprovalKind.TOOL_CALL)
    return consent if holds or not consent.approved else None


async def _record_decision(connection: Connection, call: PreparedCall, consent: Consent, kind: ApprovalKind) -> str | None:
    """Write down the decision once, after checking that it is about exactly the call that is at hand, and whose it is.

    What is wrong with it, so that it has no effect; None: it holds, and is used up by what follows in this transaction.
    """
    bound, policy = call.bound_to(kind), call.force.digest
    holds = consent.digest == bound
    if not holds and (asked := await dispatches.asked_under(connection, call.request, consent.approval_id)) is not None:
        bound, policy = call.bound_under(kind, *asked), asked[0]
    if consent.digest != bound or consent.approval_id != approval_id(bound) or consent.kind is not kind:
        message = f"the decision {consent.approval_id} is bound to another call than {call.path}"
        raise ApplicationError(message, type=CONSENT_MISMATCH, non_retryable=True)
    ladder = await dispatches.asked_ladder(connection, call.request, consent.approval_id)
    about = call.about(kind, bound, policy)
    if (problem := await consents.problem(connection, consent, about, ladder, call.run.user)) is not None:
        refused: dict[str, JsonValue] = {**consent.audited(), "refused": problem}
        await audit.append(connection, call.request.tenant, call.request.run_id, "consent_refused", refused)
        return problem
    if await dispatches.decide_approval(connection, call.request, consent):
        title = call_line(call.block.tool, call.arguments)
        await notifications.write_decided(connection, call.request.tenant, call.request.run_id, title, consent)
        since: dict[str, JsonValue] = {} if holds else {"policy_changed_to": call.force.digest}
        body = consent.audited() | since
        await audit.append(connection, call.request.tenant, call.request.run_id, "approval_decided", body)
    return None


async def _take_next_step(
    connection: Connection, call: PreparedCall, verdict: Verdict, consent: Consent | None
) -> PreparedCall | ToolOutcome:
    effect = call.tool.spec.effect
    step = next_step(effect, call.row, call.arguments_digest, fence())
    match step:
        case NextStep.CALL | NextStep.RECONCILE:
            await _write_intent(connection, call, verdict, consent)
            return call
        case NextStep.DECLARE_UNKNOWN:
            return await _ask_about_outcome(connection, call)
        case NextStep.GIVE_UP:
            return await settle(
                connection, call, "error", "The tool is not available; none of the tries did anything.", "gave up"
            )
        case NextStep.REFUSE_OTHER_ARGUMENTS:
            message = f"call {call.path} was dispatched before with other arguments"
            raise ApplicationError(message, type=CONSENT_MISMATCH, non_retryable=True)
        case NextStep.REFUSE_STALE:
            raise stale_attempt()
        case NextStep.RETURN_RECORDED:
            raise AssertionError("a settled call was returned before")
    assert_never(step)


async def _write_intent(connection: Connection, call: PreparedCall, verdict: Verdict, consent: Consent | None) -> None:
    request = call.request
    await dispatches.begin(
        connection, request, key=call.key, tool=call.block.tool, effect=call.tool.spec.effect,
        arguments=call.arguments_digest, fence=fence(), tries=0 if call.row is None else call.row.tries,
    )  # fmt: skip
    body: dict[str, JsonValue] = {
        "path": call.path,
        "tool": call.block.tool,
        "key": call.key,
        "arguments": call.arguments_digest,
        "rule": verdict.rule,
        "policy": verdict.policy_digest,
        "approval": None if consent is None else consent.approval_id,
    }
    body |= {"against": call.against} if call.against else {}
    await audit.append(connection, request.tenant, request.run_id, "tool_dispatched", body)


async def _resolve_unknown(connection: Connection, call: PreparedCall) -> ToolOutcome:
    """Nobody knows whether the effect happened: ask a human, or act on what the human found out."""
    consent = call.request.consent
    if consent is None or consent.kind is not ApprovalKind.OUTCOME:
        return await _ask_about_outcome(connection, call)
    problem = await _record_decision(connection, call, consent, ApprovalKind.OUTCOME)
    if consent.expired or problem is not None:
        told = "It is not known whether this happened. Do not try it again."
        return await settle(connection, call, "error", told, "outcome unknown" if problem is None else f"consent: {problem}")
    found_out = "it happened" if consent.approved else "it did not happen"
    told = f"A human found out that {found_out}" + (f": {inert(consent.reason)}." if consent.reason else ".")
    return await settle(connection, call, "ok" if consent.approved else "error", told, f"resolved by {consent.by}")


async def _ask_about_outcome(connection: Connection, call: PreparedCall) -> ToolOutcome:
    await dispatches.mark(connection, call.request, DispatchState.UNKNOWN, fence())
    return await ask(connection, call, ApprovalKind.OUTCOME, outcome_ladder(call.force.policy))


async def _send(call: PreparedCall) -> str:
    """Call the tool, or first ask it what became of an earlier try. Within its declared time, or TimeoutError."""
    context = _context(call)
    keywords = call.tool.keywords(call.parsed)
    async with asyncio.timeout(call.tool.spec.timeout.total_seconds()):
        if call.row is not None and call.row.state is DispatchState.DISPATCHED and call.tool.reconcile is not None:
            found = await call.tool.reconcile(**keywords, context=context)
            if found is not None:
                return call.tool.render(found)
        extra = {"context": context} if call.tool.takes_context else {}
        return call.tool.render(await call.tool.function(**keywords, **extra))


def _context(call: PreparedCall) -> ToolContext:
    return ToolContext(
        tenant=call.run.tenant,
        user=call.run.user,
        run_id=call.run.run_id,
        call_path=call.path,
        idempotency_key=call.key,
        attempt=1 if call.row is None else call.row.tries + 1,
        settings=call.agent.settings(),
    )


def _line(call: PreparedCall, error: Exception) -> str:
    return inert(f"{type(error).__name__}: {_said(call, error).partition(chr(10))[0]}", 300)


def _said(call: PreparedCall, error: Exception) -> str:
    """What a tool's error says, without what came from the worker's environment: clients like to quote their URL and its key."""
    return call.agent.without_secrets(str(error))
