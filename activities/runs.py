"""How is a run written down: when it is admitted, while it lives, and when it ends?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from temporalio import activity

from activities import audit, consents, ledger, notifications, transcripts
from activities.agents import AgentCatalog, LoadedAgent
from activities.heartbeat import heartbeating
from activities.ledger import Payer
from activities.policies import InForce, in_force
from activities.postgres import Connection, Database
from activities.prices import model_known, price_of
from activities.provider_gates import full
from activities.providers.interface import ModelProvider
from activities.schemas import schema_problem
from activities.storage_errors import storage_errors
from durable_agents.activity_contracts import (
    Admission,
    AdmissionOutcome,
    AdmissionRequest,
    DecisionRecord,
    EarlierAnswer,
    Ending,
    Recorded,
    Refusal,
    RunReference,
)
from durable_agents.domain.agents import Admitted, ModelEntry, PinnedAgent, ToolPlan, opening, system_prompt
from durable_agents.domain.approvals import ApprovalKind, Consent
from durable_agents.domain.artifacts import preview
from durable_agents.domain.audit import limits
from durable_agents.domain.budgets import above, narrowed, stricter
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import RunId, TenantId, UserId
from durable_agents.domain.loops import USUAL_FROM, USUAL_OF
from durable_agents.domain.model_calls import PinnedModel, Provider
from durable_agents.domain.prices import most_tokens
from durable_agents.domain.provenance import Label
from durable_agents.domain.provider_gates import GateId
from durable_agents.domain.runs import RunRequest, RunResult
from durable_agents.domain.signatures import Bound

_LONGEST_PROBLEM = 500
"""Characters: a validator quotes the value it refuses, and the server takes no failure of megabytes."""
_EARLIER_ANSWER = """
select earlier.result from run this
join message asked on asked.tenant = this.tenant and asked.run_id = this.run_id and asked.turn = 0 and asked.position = 0
join message same on same.tenant = this.tenant and same.digest = asked.digest and same.turn = 0 and same.position = 0
join run earlier on earlier.tenant = this.tenant and earlier.run_id = same.run_id
where this.tenant = $1 and this.run_id = $2 and earlier.agent = this.agent and earlier.user_id = this.user_id
and earlier.status = 'completed' and not exists (
    select from tool_dispatch d
    where d.tenant = earlier.tenant and d.run_id = earlier.run_id and d.effect not in ('read', 'none'))
order by earlier.ended_at desc limit 1
"""


@dataclass(frozen=True)
class RunRecord:
    """What an activity must know of the run it works for."""

    tenant: TenantId
    run_id: RunId
    first_execution: str
    user: UserId
    payer: Payer
    terms: Admitted
    agent: PinnedAgent


async def load_run(connection: Connection, tenant: TenantId, run: RunId) -> RunRecord:
    """The run's row and the agent version it is bound to. Raises LookupError when it was never admitted."""
    row = await connection.fetchrow(
        "select run.first_execution, run.user_id, run.terms, pinned, p.run_id as payer, p.user_id as paying_user, p.agent"
        " from run join agent_version v on v.tenant = run.tenant and v.version = run.agent_version"
        " join run p on p.tenant = run.tenant and p.run_id = coalesce(run.payer, run.run_id)"
        " where run.tenant = $1 and run.run_id = $2",
        tenant, run,
    )  # fmt: skip
    if row is None:
        raise LookupError(f"there is no run {run}")
    terms, agent = Admitted.model_validate(row["terms"]), PinnedAgent.model_validate(row["pinned"])
    payer = Payer(tenant, RunId(row["payer"]), UserId(row["paying_user"]), row["agent"])
    return RunRecord(tenant, run, row["first_execution"], UserId(row["user_id"]), payer, terms, agent)


class RunActivities:
    """`admit_run` and `finish_run`."""

    def __init__(
        self, database: Database, catalog: AgentCatalog, providers: Mapping[Provider, ModelProvider], keys: Mapping[Provider, str]
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._providers = providers
        self._keys = keys
        """Fingerprints."""

    @activity.defn
    async def admit_run(self, request: AdmissionRequest) -> AdmissionOutcome:
        """Bind the run to the current agent version, price list and policy, and write its first rows."""
        agent = self._catalog.get(request.request.agent)
        if agent is None:
            known = ", ".join(self._catalog.names()) or "none"
            return _refused(FailureKind.UNKNOWN_AGENT, f"there is no agent {request.request.agent!r}; this worker has: {known}")
        if request.stands_in_for is not None:
            request = await self._with_input_of(request, request.stands_in_for)
        failure = _request_problem(request, agent) or self._models_problem(request.request, agent)
        if failure is not None:
            return Refusal(failure=failure)
        async with heartbeating():
            with storage_errors():
                async with self._database.transaction(TenantId(request.request.tenant)) as connection:
                    force = await in_force(connection, TenantId(request.request.tenant), agent.pinned)
                    terms = _terms(request, agent, force)
                    if isinstance(terms, Refusal):
                        return terms
                    if (shed := await self._shed(connection, request, terms)) is not None:
                        return shed
                    usual = await _usual_turns(connection, TenantId(request.request.tenant), terms.agent)
                    return await _write(connection, request, agent, terms.model_copy(update={"usual_turns": usual}))

    @activity.defn
    async def finish_run(self, ending: Ending) -> None:
        """Write down how the run ended and close its audit."""
        result = ending.result
        async with heartbeating():
            with storage_errors():
                async with self._database.transaction(ending.tenant) as connection:
                    written = await connection.fetchval(
                        "update run set status = $3, result = $4, ended_at = now()"
                        " where tenant = $1 and run_id = $2 and first_execution = $5 and ended_at is null returning 1",
                        ending.tenant, result.run_id, result.status, result.model_dump(mode="json"), ending.first_execution,
                    )  # fmt: skip
                    if written:
                        await ledger.give_back(connection, ending.tenant, result.run_id, "end")
                        await audit.append_notes(connection, ending.tenant, result.run_id, ending.notes)
                        if ending.decision is not None:
                            await _write_decision(connection, ending.tenant, result.run_id, result.turns, ending.decision)
                        spend = result.spend.model_dump(mode="json")
                        body: dict[str, JsonValue] = {"status": result.status, "spend": spend, "notes": ending.notes_made}
                        await audit.append(connection, ending.tenant, result.run_id, "run_ended", body)

    async def _shed(self, connection: Connection, request: AdmissionRequest, terms: Admitted) -> Refusal | None:
        """A refusal that leaves no trace, so that the key is still free; who was admitted before stays so."""
        asked = request.request
        if asked.priority != "low":
            return None
        tenant = TenantId(asked.tenant)
        if await connection.fetchval("select 1 from run where tenant = $1 and run_id = $2", tenant, asked.run_id):
            return None
        usable = (model for model in terms.models if model.provider in self._keys)
        gates = [GateId(model.provider, model.model, self._keys[model.provider]) for model in usable]
        wait = await full(connection, tenant, gates)
        if wait is None:
            return None
        message = f"{gates[0].provider} has no room for a low-priority run: start it again in {wait.total_seconds():.0f} s"
        return Refusal(failure=Failure(kind=FailureKind.SHED, message=message, retry_after=wait))

    @activity.defn
    async def record_decision(self, record: DecisionRecord) -> Recorded:
        """Write down who decided about the run, and how; a signed decision is used up."""
        async with heartbeating():
            with storage_errors():
                async with self._database.transaction(record.tenant) as connection:
                    problem = await _decision_problem(connection, record)
                    if problem is None:
                        await _write_decision(connection, record.tenant, record.run_id, record.turn, record.decision)
                    await audit.append_notes(connection, record.tenant, record.run_id, record.notes)
                    return Recorded(problem=problem or "")

    async def _with_input_of(self, request: AdmissionRequest, parent: RunId) -> AdmissionRequest:
        """The request with its parent's input, which lies in the parent's transcript."""
        tenant = TenantId(request.request.tenant)
        with storage_errors():
            async with self._database.transaction(tenant) as connection:
                first = await transcripts.load_one(connection, tenant, parent, 0, 0)
        given = json.loads(first.message.text())
        return request.model_copy(update={"request": request.request.model_copy(update={"input": given})})

    @activity.defn
    async def find_earlier_answer(self, run: RunReference) -> EarlierAnswer:
        """Find what the same question brought before."""
        with storage_errors():
            async with heartbeating(), self._database.transaction(run.tenant) as connection:
                row = await connection.fetchrow(_EARLIER_ANSWER, run.tenant, run.run_id)
        if row is None:
            return EarlierAnswer()
        result = RunResult.model_validate(row["result"])
        return EarlierAnswer(run_id=result.run_id, output=result.output, output_artifact=result.output_artifact)

    def _models_problem(self, request: RunRequest, agent: LoadedAgent) -> Failure | None:
        definition = agent.pinned.definition
        has_money_limit = narrowed(request.budget, definition.budget).cost_usd is not None
        for entry in definition.models:
            if entry.price is None and price_of(entry.provider, entry.model) is None and has_money_limit:
                return _no_price(entry, definition.name)
        first = definition.models[0]
        if first.provider not in self._providers:
            variable = f"{first.provider.upper()}_API_KEY"
            return Failure(kind=FailureKind.NO_KEY, message=f"no key for {first.provider}: set {variable} for the worker")
        return None


def _no_price(entry: ModelEntry, agent: str) -> Failure:
    remedy = f"state `price:` for it in {agent}/agent.yaml, or run without a money limit"
    if model_known(entry.provider, entry.model):
        return Failure(kind=FailureKind.NO_PRICE, message=f"{entry.provider} model {entry.model!r} has no known price: {remedy}")
    return Failure(kind=FailureKind.UNKNOWN_MODEL, message=f"{entry.provider} has no known model {entry.model!r}: {remedy}")


def _request_problem(asked: AdmissionRequest, agent: LoadedAgent) -> Failure | None:
    definition, request = agent.pinned.definition, asked.request
    if definition.input is not None and (problem := schema_problem(definition.input, dict(request.input))):
        message = f"the input does not fit agent {definition.name!r}: {preview(problem, _LONGEST_PROBLEM)}"
        return Failure(kind=FailureKind.INVALID_INPUT, message=message)
    if request.budget is not None and asked.stands_in_for is None and (limit := above(request.budget, definition.budget)):
        asked, most = getattr(request.budget, limit.value), getattr(definition.budget, limit.value)
        remedy = f"ask for less, or raise it in {definition.name}/agent.yaml"
        message = f"budget.{limit} {asked} is above the agent's {most}: {remedy}"
        return Failure(kind=FailureKind.BUDGET_ABOVE_AGENT, message=message)
    try:
        agent.settings()
    except LookupError as error:
        return Failure(kind=FailureKind.INVALID_AGENT, message=str(error.args[0]))
    return None


def _terms(asked: AdmissionRequest, agent: LoadedAgent, force: InForce) -> Admitted | Refusal:
    """What the run is bound to; refused where the policy in force cannot be read, or does not fit the agent (any more)."""
    pinned, request, policy = agent.pinned, asked.request, force.policy
    if policy is None:
        return _refused(FailureKind.INVALID_AGENT, force.problem)
    try:
        fallbacks, at_limit = pinned.fallbacks(policy), pinned.at_limit(policy)
    except LookupError as error:
        remedy = f"add it by `policy put`, or take it out of {pinned.definition.name}/agent.yaml"
        return _refused(FailureKind.INVALID_AGENT, f"{error.args[0]} (version {force.version}): {remedy}")
    offered = pinned.offered(policy, UserId(request.user))
    own = pinned.definition.budget
    bounded = stricter(own, request.budget) if asked.stands_in_for and request.budget else narrowed(request.budget, own)
    tools: list[JsonValue] = [spec.sent() for spec in offered]
    sent: list[JsonValue] = [system_prompt(pinned), tools, opening(request.input).model_dump(mode="json")]
    return Admitted(
        agent=pinned.definition.name,
        version=agent.version,
        policy_digest=force.digest,
        policy_version=force.version,
        models=tuple(_pin(entry) for entry in pinned.definition.models),
        tools={spec.name: ToolPlan(effect=spec.effect, timeout=spec.timeout) for spec in offered},
        budget=bounded,
        patience=pinned.definition.patience,
        loops=pinned.definition.loops,
        routes=pinned.definition.routes(),
        fallbacks=fallbacks,
        at_limit=at_limit,
        opening_bytes=most_tokens(sent),
    )


def _pin(entry: ModelEntry) -> PinnedModel:
    price = entry.price.price() if entry.price is not None else price_of(entry.provider, entry.model)
    return PinnedModel(
        provider=entry.provider,
        model=entry.model,
        max_tokens=entry.max_tokens,
        timeout=entry.timeout,
        price=price,
        cache=entry.cache,
    )


async def _usual_turns(connection: Connection, tenant: TenantId, agent: str) -> int | None:
    """The median of the agent's last completed runs, once there are enough."""
    row = await connection.fetchrow(
        "select count(*) as runs, percentile_disc(0.5) within group (order by turns) as usual from"
        " (select (result ->> 'turns')::int as turns from run where tenant = $1 and agent = $2 and status = 'completed'"
        "  order by ended_at desc limit $3) as latest",
        tenant, agent, USUAL_OF,
    )  # fmt: skip
    return row["usual"] if row is not None and row["runs"] >= USUAL_FROM else None


async def _write(connection: Connection, request: AdmissionRequest, agent: LoadedAgent, terms: Admitted) -> AdmissionOutcome:
    asked = request.request
    tenant, run = TenantId(asked.tenant), asked.run_id
    await connection.execute(
        "insert into agent_version values ($1, $2, $3) on conflict do nothing",
        tenant, agent.version, agent.pinned.model_dump(mode="json"),
    )  # fmt: skip
    parent = request.stands_in_for
    label = Label.TRUSTED if parent is None else await transcripts.label_at(connection, tenant, parent)
    new = await connection.fetchval(
        "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms, payer, label)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, (select coalesce(payer, run_id) from run where tenant = $1 and run_id = $9),"
        " $10) on conflict do nothing returning 1",
        tenant, run, request.first_execution, asked.digest(), terms.agent, agent.version, asked.user,
        terms.model_dump(mode="json"), parent, label,
    )  # fmt: skip
    if not new:
        return await _admitted_before(connection, request)
    await transcripts.put(connection, tenant, run, 0, 0, opening(asked.input), Label.TRUSTED)
    body: dict[str, JsonValue] = {
        "agent": terms.agent,
        "version": agent.version,
        "policy": terms.policy_digest,
        "budget": limits(terms.budget),
        "user": asked.user,
        "request": asked.digest(),
    }
    await audit.append(connection, tenant, run, "run_admitted", body)
    return Admission(terms=terms)


async def _admitted_before(connection: Connection, request: AdmissionRequest) -> AdmissionOutcome:
    """This very run (its activity is tried again), or an older one that Temporal has forgotten meanwhile?"""
    row = await connection.fetchrow(
        "select first_execution, terms, status from run where tenant = $1 and run_id = $2",
        request.request.tenant, request.request.run_id,
    )  # fmt: skip
    assert row is not None
    if row["first_execution"] == request.first_execution:
        return Admission(terms=Admitted.model_validate(row["terms"]))
    message = f"{request.request.run_id} has run before and is {row['status']}: use another idempotency key"
    return _refused(FailureKind.KEY_REUSED, message)


async def _decision_problem(connection: Connection, record: DecisionRecord) -> str | None:
    """Why a decision about the run itself has no effect, by the ladder that the run was admitted with."""
    run, decision = await load_run(connection, record.tenant, record.run_id), record.decision
    bound = Bound(
        tenant=record.tenant,
        namespace=activity.info().namespace,
        run_id=record.run_id,
        first_execution=run.first_execution,
        approval_id=decision.approval_id,
        kind=decision.kind,
        tool="",
        digest=decision.digest,
        policy_digest=run.terms.policy_digest,
    )
    at_limit = run.terms.at_limit.ladder if run.terms.at_limit is not None else None
    takers = [fallback.ladder for fallback in run.terms.fallbacks]
    possible = [at_limit] if decision.kind is ApprovalKind.TOP_UP else takers
    problems = [
        await consents.problem(connection, decision, bound, ladder, run.user) for ladder in possible if ladder is not None
    ]
    problem = None if None in problems else next(iter(problems), "nobody was to be asked")
    if problem is not None:
        body: dict[str, JsonValue] = {**decision.audited(), "reason": problem}
        await audit.append(connection, record.tenant, record.run_id, "consent_refused", body)
    return problem


async def _write_decision(connection: Connection, tenant: TenantId, run: RunId, turn: int, decision: Consent) -> None:
    """Who was asked about the run itself (to take it over, to grant more), and what they said; once."""
    new = await connection.fetchval(
        "insert into approval (tenant, run_id, approval_id, turn, index, kind, tool, digest, policy_digest, request,"
        " approved, decided_by, reason, decided_at) select $1, $2, $3, $4, -1, $5, '', $6, terms ->> 'policy_digest', '{}',"
        " $7, $8, $9, $10 from run where tenant = $1 and run_id = $2 on conflict do nothing returning 1",
        tenant, run, decision.approval_id, turn, decision.kind, decision.digest,
        decision.approved, decision.people, decision.reason, decision.decided_at,
    )  # fmt: skip
    if new:
        title = "take the run over" if decision.kind is ApprovalKind.TAKE_OVER else "more budget"
        await notifications.write_decided(connection, tenant, run, title, decision)
        await audit.append(connection, tenant, run, "approval_decided", decision.audited())


def _refused(kind: FailureKind, message: str) -> Refusal:
    return Refusal(failure=Failure(kind=kind, message=message))
