"""How is a model called, so that a crash at any moment costs at most one answer and loses none that was recorded?

Read the journal, pass the provider's gate, open an attempt with its hold, send one request, record what came of it. Each step is
a transaction; the request stands between two of them.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from pydantic import JsonValue
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import attempts, audit, notifications, provider_gates, transcripts
from activities.answers import Bill, earlier_answer, keep, unusable, write_answer
from activities.attempts import Settlement
from activities.heartbeat import Lease, fence, heartbeating
from activities.ledger import Held
from activities.offers import Offer, offer
from activities.policies import in_force
from activities.postgres import Connection, Database
from activities.providers.interface import ModelProvider, ProviderAnswer, ProviderFailure, ProviderRequest
from activities.runs import RunRecord, load_run
from activities.storage_errors import again_if_cut, storage_errors
from activities.transcripts import CORRECTIONS, StoredMessage
from durable_agents.domain.accounts import Amount, NoRoom
from durable_agents.domain.agents import system_prompt
from durable_agents.domain.canonical import digest, escape_text
from durable_agents.domain.failures import Billed, Failure, FailureKind, retry_delay
from durable_agents.domain.identifiers import Micros
from durable_agents.domain.messages import Message, TextBlock
from durable_agents.domain.model_calls import (
    MAX_PHYSICAL_TRIES,
    ContextSize,
    ModelAnswer,
    ModelCallRequest,
    ModelFailure,
    ModelOutcome,
    PinnedModel,
    Provider,
    call_maximum,
)
from durable_agents.domain.prices import CallMaximum, Usage, cost
from durable_agents.domain.provider_gates import Asking, GateId, Wait, busy, out_of_patience


@dataclass(frozen=True)
class OpenAttempt:
    """A physical attempt that is written down and may leave."""

    number: int
    sent_at: datetime
    """By the database's clock."""
    hold: CallMaximum
    held: Held
    unknown_micros: Micros
    """Held for earlier attempts of the same call."""
    run: RunRecord
    model: PinnedModel
    request: ProviderRequest
    offered: Offer


class ModelActivities:
    """`call_model`."""

    def __init__(self, database: Database, providers: Mapping[Provider, ModelProvider], keys: Mapping[Provider, str]) -> None:
        self._database = database
        self._providers = providers
        self._keys = keys
        """Fingerprints."""

    @activity.defn
    async def call_model(self, request: ModelCallRequest) -> ModelOutcome:
        """Make one logical model call: journalled before and after, never paid twice once recorded."""
        async with heartbeating() as lease:
            with storage_errors():
                opened = await again_if_cut(partial(self._open, request))
            if isinstance(opened, Wait):
                raise provider_gates.look_again(opened)
            if not isinstance(opened, OpenAttempt):
                return opened
            try:
                answer = await self._send(opened, lease)
            except ProviderFailure as failure:
                with storage_errors():
                    return await again_if_cut(partial(self._record_failure, request, opened, failure))
            with storage_errors():
                return await again_if_cut(partial(self._record_answer, request, opened, answer))

    async def _open(self, call: ModelCallRequest) -> OpenAttempt | ModelOutcome | Wait:
        """Hold the money and pass the gate, both or neither: whoever waits at the gate holds nothing."""
        try:
            async with self._database.transaction(call.tenant) as connection:
                return await self._opened(connection, call)
        except _TurnedAwayError as away:
            async with self._database.transaction(call.tenant) as connection:
                if isinstance(away.answer, Wait):
                    await provider_gates.turned_away(connection, call.tenant, away.gate)
                    return away.answer
                run = await load_run(connection, call.tenant, call.run_id)
                before = await attempts.abandon_open(connection, call, run.payer, fence())
                return await _refused(connection, call, before, away.answer)

    async def _opened(self, connection: Connection, call: ModelCallRequest) -> OpenAttempt | ModelOutcome:
        if (found := await attempts.recorded(connection, call)) is not None:
            return found
        run = await load_run(connection, call.tenant, call.run_id)
        before = await attempts.abandon_open(connection, call, run.payer, fence())
        if call.correction and before.own is None:
            correction = Message(role="user", blocks=(TextBlock(text=escape_text(call.correction)),))
            label = await transcripts.label_at(connection, call.tenant, call.run_id)  # it may quote what it corrects
            await transcripts.put(connection, call.tenant, call.run_id, call.turn - 1, CORRECTIONS + call.call, correction, label)
        messages = await transcripts.load(connection, call.tenant, call.run_id)
        model = run.terms.models[call.model]
        force = await in_force(connection, call.tenant, run.agent)
        offered = offer(run, call, force, (stored.message for stored in messages))
        request = _provider_request(run, call, model, messages, offered)
        hold = call_maximum(model, call.model, await _context(connection, run, call, messages))
        if before.own is not None:  # only the answer to the COMMIT was lost: it is held, and it has not left
            own = before.own
            return OpenAttempt(
                own.number, own.dispatched_at, hold, Held(0, 0), before.unknown_micros, run, model, request, offered
            )
        if (cached := await earlier_answer(connection, run, call, model, request)) is not None:
            cached = cached.model_copy(update={"withheld_tokens": offered.withheld_tokens})
            await attempts.record(connection, call, cached)
            return cached
        number = before.tries + 1
        if (refused := self._refusal(call, model, before, hold)) is not None:
            return await _refused(connection, call, before, refused)
        left = None if call.allowance_micros is None else call.allowance_micros - before.unknown_micros
        opened = await attempts.dispatch(connection, call, run.payer, number, fence(), model, _amount(hold), left)
        if isinstance(opened, NoRoom):
            full = Failure(kind=FailureKind.ACCOUNT_LIMIT, message=opened.explanation)
            return await _refused(connection, call, before, full)
        sent_at, held = opened
        if (answer := await self._ask_gate(connection, call, run, number, hold)) is not None:
            raise _TurnedAwayError(self._gate(model), answer)
        return OpenAttempt(number, sent_at, hold, held, before.unknown_micros, run, model, request, offered)

    def _refusal(
        self, call: ModelCallRequest, model: PinnedModel, before: attempts.Attempts, hold: CallMaximum
    ) -> Failure | None:
        """Why no (further) request may leave."""
        if model.provider not in self._providers:
            return Failure(kind=FailureKind.NO_KEY, message=f"this worker has no key for {model.provider}")
        if before.tries >= MAX_PHYSICAL_TRIES:
            message = f"{before.tries} requests to {model.provider} brought no answer that was recorded"
            return Failure(kind=FailureKind.PROVIDER_ERROR, message=message)
        if call.allowance_micros is not None and before.unknown_micros + hold.cost_micros > call.allowance_micros:
            needed = before.unknown_micros + hold.cost_micros
            message = f"another request could bring this call to {needed} µ$, {call.allowance_micros} µ$ are left"
            return Failure(kind=FailureKind.ALLOWANCE_EXCEEDED, message=message)
        return None

    async def _ask_gate(
        self, connection: Connection, call: ModelCallRequest, run: RunRecord, number: int, hold: CallMaximum
    ) -> Wait | Failure | None:
        """Let through, asked to wait, or out of patience."""
        model = run.terms.models[call.model]
        gate = self._gate(model)
        tokens, last_try = hold.input_tokens + hold.output_tokens, number == MAX_PHYSICAL_TRIES
        wait = await provider_gates.ask(
            connection, call.tenant, gate, Asking(_caller(call), tokens=tokens, last_try=last_try, timeout=model.timeout)
        )
        if wait is None:
            return None
        info = activity.info()  # both by the server's clock
        waited = info.current_attempt_scheduled_time - info.scheduled_time
        return busy(gate, wait, waited) if out_of_patience(wait, waited, run.terms.patience) else wait

    def _gate(self, model: PinnedModel) -> GateId:
        return GateId(model.provider, model.model, self._keys[model.provider])

    async def _send(self, opened: OpenAttempt, lease: Lease) -> ProviderAnswer:
        lease.require()
        return await self._providers[opened.model.provider].complete(opened.request)

    async def _record_answer(self, call: ModelCallRequest, opened: OpenAttempt, answer: ProviderAnswer) -> ModelOutcome:
        usage = answer.usage or Usage(input_tokens=opened.hold.input_tokens, output_tokens=opened.hold.output_tokens)
        billed = opened.hold.cost_micros if answer.usage is None else _cost(opened.model, usage)
        charged = Micros(min(billed, opened.hold.cost_micros))
        overrun = Micros(billed - charged)
        async with self._database.transaction(call.tenant) as connection:
            if (found := await attempts.recorded(connection, call)) is not None:
                return found  # only the answer to the COMMIT was lost
            spent = Amount(billed, usage.input_tokens + usage.output_tokens)
            settlement = Settlement("settled", spent, request_id=answer.request_id)
            if not await attempts.settle(connection, call, opened.run.payer, opened.number, _amount(opened.hold), settlement):
                found = await attempts.recorded(connection, call)  # its COMMIT was still under way when it was looked for above
                assert found is not None
                return found
            problem = unusable(answer)
            outcome: ModelOutcome
            if answer.usage is None:
                await _tell_of_usage(connection, call, opened)
            if problem is not None:
                outcome = ModelFailure(
                    failure=problem,
                    usage=usage,
                    cost_micros=charged,
                    unknown_micros=opened.unknown_micros,
                    overrun_micros=overrun,
                )
            else:
                bill = Bill(usage, charged, opened.unknown_micros, overrun)
                written = await write_answer(connection, opened.run, call, opened.model, answer, bill)
                await keep(connection, opened.run, opened.model, opened.request, answer, written)
                kept = Micros(opened.held.rest_micros + opened.hold.cost_micros - charged)
                used, withheld = opened.held.used_percent, opened.offered.withheld_tokens
                more = {"accounts_used": used, "kept_micros": kept, "withheld_tokens": withheld}
                outcome = written.model_copy(update=more)
            await attempts.record(connection, call, outcome)
            await audit.append(connection, call.tenant, call.run_id, "model_called", _audit_body(call, opened, outcome))
            await provider_gates.answered(
                connection,
                call.tenant,
                self._gate(opened.model),
                _caller(call),
                opened.sent_at,
                taken=opened.hold.input_tokens + opened.hold.output_tokens,
                used=usage.input_tokens + usage.output_tokens,
            )
        return outcome

    async def _record_failure(self, call: ModelCallRequest, opened: OpenAttempt, failed: ProviderFailure) -> ModelOutcome:
        may_be_billed = failed.billed is not Billed.NO
        held = opened.hold.cost_micros if may_be_billed else Micros(0)
        unknown = Micros(opened.unknown_micros + held)
        tries_left = opened.number < MAX_PHYSICAL_TRIES
        has_next = call.model + 1 < len(opened.run.terms.models)
        too_long = failed.retry_after is not None and failed.retry_after > opened.run.terms.patience and has_next
        again = failed.failure.answer.retry_here and not failed.final and tries_left and not too_long
        async with self._database.transaction(call.tenant) as connection:
            state = "unknown" if may_be_billed else "released"
            settlement = Settlement(state, failure=failed.failure.kind)
            outcome = ModelFailure(failure=failed.failure, unknown_micros=unknown)
            if await attempts.settle(connection, call, opened.run.payer, opened.number, _amount(opened.hold), settlement):
                if not again:
                    await attempts.record(connection, call, outcome)
                    await audit.append(connection, call.tenant, call.run_id, "model_called", _audit_body(call, opened, outcome))
                await provider_gates.failed(
                    connection, call.tenant, self._gate(opened.model), _caller(call), failed.failure, failed.retry_after
                )
        if again:
            later = retry_delay(opened.number, failed.retry_after, random.random())  # noqa: S311 - spreads load, guards nothing
            raise ApplicationError(
                failed.failure.message,
                type=failed.failure.kind,
                next_retry_delay=later,
                category=ApplicationErrorCategory.BENIGN,  # its attempt is written down; in the log it would be a traceback a try
            )
        return outcome


class _TurnedAwayError(Exception):
    """Undoes a transaction whose request the provider's gate does not let through (now, or at all)."""

    def __init__(self, gate: GateId, answer: Wait | Failure) -> None:
        super().__init__(answer)
        self.gate = gate
        self.answer = answer


async def _refused(connection: Connection, call: ModelCallRequest, before: attempts.Attempts, failure: Failure) -> ModelFailure:
    """No (further) request leaves; what earlier ones may have cost stays held."""
    outcome = ModelFailure(failure=failure, unknown_micros=before.unknown_micros)
    await attempts.record(connection, call, outcome)
    body: dict[str, JsonValue] = {
        "call": call.call,
        "turn": call.turn,
        "tries": before.tries,
        "unknown_micros": before.unknown_micros,
        "outcome": failure.kind,
    }
    await audit.append(connection, call.tenant, call.run_id, "model_refused", body)
    return outcome


def _amount(hold: CallMaximum) -> Amount:
    return Amount(hold.cost_micros, hold.input_tokens + hold.output_tokens)


async def _tell_of_usage(connection: Connection, call: ModelCallRequest, opened: OpenAttempt) -> None:
    """Once a day for each model: what it says it used cannot be, so that its calls are charged at their maximum."""
    model = opened.model
    await notifications.write(
        connection, call.tenant, f"usage {model.provider} {model.model} {opened.sent_at.date()}", "usage",
        f"{model.provider} {model.model}: answers come without a usage that can be; they are charged at their maximum",
        f"The first today was call {call.call} of {call.run_id}.",
    )  # fmt: skip


def _caller(call: ModelCallRequest) -> str:
    """Tells calls apart at the gate, where no tenant's names belong."""
    return digest([call.tenant, call.run_id, call.call])[:16]


def _provider_request(
    run: RunRecord, call: ModelCallRequest, model: PinnedModel, messages: list[StoredMessage], offered: Offer
) -> ProviderRequest:
    """Everything the model reads; near the limit less of it, from there on in every call: what is counted must stay a bound."""
    at_limit = run.terms.at_limit
    if call.near_limit and at_limit is not None and at_limit.keep_turns is not None:
        messages = [messages[0], *(one for one in messages[1:] if one.turn >= call.turn - at_limit.keep_turns)]
    return ProviderRequest(
        model=model.model,
        max_tokens=model.max_tokens,
        system=system_prompt(run.agent),
        messages=[stored.message for stored in messages],
        tools=offered.tools,
        timeout=model.timeout,
    )


async def _context(connection: Connection, run: RunRecord, call: ModelCallRequest, messages: list[StoredMessage]) -> ContextSize:
    """The size of the conversation as this worker finds it, counted from the last answer of the same model."""
    row = await connection.fetchrow(
        "select turn, model, outcome from model_call where tenant = $1 and run_id = $2 and call < $3"
        " and outcome ->> 'kind' = 'answer' order by call desc limit 1",
        call.tenant, call.run_id, call.call,
    )  # fmt: skip
    size = ContextSize().plus(run.terms.opening_bytes)
    for stored in messages[1:]:
        size = size.plus(stored.size)
        if row is not None and (stored.turn, stored.position) == (row["turn"], 0):
            size = size.counted(row["model"], ModelAnswer.model_validate(row["outcome"]).counted_tokens)
    return size


def _cost(model: PinnedModel, usage: Usage) -> Micros:
    return Micros(0) if model.price is None else cost(model.price, usage)


def _audit_body(call: ModelCallRequest, opened: OpenAttempt, outcome: ModelOutcome) -> dict[str, JsonValue]:
    return {
        "call": call.call,
        "turn": call.turn,
        "attempt": opened.number,
        "model": opened.model.model,
        "cost_micros": outcome.cost_micros,
        "unknown_micros": outcome.unknown_micros,
        "outcome": outcome.kind if isinstance(outcome, ModelAnswer) else outcome.failure.kind,
    }
