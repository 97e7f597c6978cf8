"""How does a program start runs, watch them, decide for a human, and cancel?"""

import asyncio
import atexit
import getpass
import secrets
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal, Protocol, TypeVar

from pydantic import JsonValue, ValidationError
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError, TerminatedError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from durable_agents.data_converter import DATA_CONVERTER
from durable_agents.domain.approvals import Approval, ApprovalDecision
from durable_agents.domain.budgets import Budget
from durable_agents.domain.canonical import inert
from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import ApprovalId, RunId, TenantId, UserId
from durable_agents.domain.runs import (
    BudgetRaise,
    BudgetView,
    CancelRequest,
    Priority,
    RunRequest,
    RunResult,
    RunStatus,
    RunView,
    TimelineEntry,
)
from durable_agents.domain.signatures import USABLE_FOR, Bound, Signer, signed
from durable_agents.domain.tools import describe_errors
from durable_agents.errors import (
    AgentError,
    InvalidRequest,
    KeyReused,
    NotFound,
    NotReachable,
    Overloaded,
    first_line,
    no_worker,
    server_error,
)
from durable_agents.load_shedding import DEFAULT_BACKLOG, priority_of, wait_before_start
from durable_agents.search_attributes import at_start
from durable_agents.settings import TASK_QUEUE

WORKFLOW = "AgentRun"
"""The workflow type of a run; named, not imported, so that a caller needs the kernel alone."""
REQUEST_DIGEST = "request_digest"
CONNECT_TIMEOUT = timedelta(seconds=5)
CALL_TIMEOUT = timedelta(seconds=5)
LOOK_AGAIN = timedelta(seconds=0.3)
T = TypeVar("T")


class DecisionKeeper(Protocol):
    """Where decisions are written down before they are sent, so that none is lost with its message."""

    async def keep(self, tenant: TenantId, run: RunId, decision: ApprovalDecision) -> bool:
        """Write it down, once. False: there is no such run."""
        ...


class AgentClient:
    """Starts runs and finds them again. Make one with `connect` and keep it; it may be used concurrently.

    Args:
        temporal: connected, with our data converter.
        task_queue: where runs are started.
        identity: who acts from here; the login name if absent.
        shed_backlog: with so many tasks waiting, runs of low priority are not started.
        decisions: writes them down before they are sent, e.g. `activities.sent_decisions.SentDecisions`; None: nobody does.
    """

    def __init__(
        self,
        temporal: Client,
        *,
        task_queue: str = TASK_QUEUE,
        identity: str | None = None,
        shed_backlog: int = DEFAULT_BACKLOG,
        decisions: DecisionKeeper | None = None,
    ) -> None:
        self.temporal = temporal
        self.decisions = decisions
        self._shed_backlog = shed_backlog
        self._task_queue = task_queue
        self.identity = UserId(identity or getpass.getuser())

    @classmethod
    async def connect(
        cls,
        address: str | None = None,
        *,
        task_queue: str = TASK_QUEUE,
        identity: str | None = None,
        decisions: DecisionKeeper | None = None,
    ) -> "AgentClient":
        """Connect by `address`, else by the `TEMPORAL_*` environment or profile, else to localhost:7233.

        Raises:
            NotReachable: nothing answers there within 5 s.
        """
        config = ClientConfig.load_client_connect_config()
        target = address or config.get("target_host") or "localhost:7233"
        config["target_host"] = target
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
                temporal = await Client.connect(**config, data_converter=DATA_CONVERTER)
        except (RuntimeError, TimeoutError, RPCError) as error:
            hint = "start one with `python -m starter dev`, or set TEMPORAL_ADDRESS"
            raise NotReachable(f"no Temporal server answers at {target}: {hint}") from error
        _leave_quietly()
        return cls(temporal, task_queue=task_queue, identity=identity, decisions=decisions)

    async def start(self, request: RunRequest) -> "RunHandle":
        """Start a run, or find the one this key started before.

        A run of low priority can still be refused when it is admitted, because its provider has no room: it ends with a failure
        of kind `shed`, whose `retry_after` says when to come back. It never was, so its key starts a new one.

        Raises:
            KeyReused: the key was used for a different request.
            InvalidRequest: the server refused the start.
            Overloaded: the run is of low priority and there is too much to do; `retry_after` says when to come back.
            NotReachable: the server is gone.
        """
        try:
            await self._shed(request)
            made = await self._make(request, WorkflowIDReusePolicy.REJECT_DUPLICATE)
            if not made and await self._was_shed(request.run_id):  # a key that was admitted is refused by the database, always
                made = await self._make(request, WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY)
            if not made:
                await self._require_same_request(request)
        except RPCError as error:
            raise server_error(error, request.run_id) from error
        return self.get(request.run_id)

    async def _make(self, request: RunRequest, reuse: WorkflowIDReusePolicy) -> bool:
        """Start a workflow for the run; False: there is one."""
        try:
            await self.temporal.start_workflow(
                WORKFLOW,
                request,
                id=request.run_id,
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                id_reuse_policy=reuse,
                memo={REQUEST_DIGEST: request.digest()},
                search_attributes=at_start(request.agent, request.tenant, RunStatus.STARTING),
                static_summary=inert(f"{request.agent} for {request.user} ({request.tenant})", 180),
                static_details=_details(request),
                result_type=RunResult,
                priority=priority_of(request.priority, TenantId(request.tenant)),
                rpc_timeout=CALL_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            return False
        return True

    async def start_new(
        self,
        agent: str,
        input: Mapping[str, JsonValue],  # noqa: A002 - the field's name
        *,
        tenant: str = "default",
        user: str | None = None,
        idempotency_key: str | None = None,
        budget: Budget | None = None,
        priority: Priority = "normal",
    ) -> "RunHandle":
        """`start` from plain values; without a key a random one is made.

        Raises:
            InvalidRequest: a value is not allowed; one line says which and why.
        """
        try:
            request = RunRequest(
                agent=agent,
                input=dict(input),
                tenant=tenant,
                user=user or self.identity,
                idempotency_key=idempotency_key or uuid.uuid4().hex,
                budget=budget,
                priority=priority,
            )
        except ValidationError as error:
            raise InvalidRequest(describe_errors(error)) from None
        return await self.start(request)

    def get(self, run: RunId | str) -> "RunHandle":
        """The handle of a run by its id. Nothing is asked of the server yet."""
        return RunHandle(self, self.temporal.get_workflow_handle(run, result_type=RunResult))

    async def _shed(self, request: RunRequest) -> None:
        if request.priority != "low":
            return
        wait = await wait_before_start(self.temporal, self._task_queue, self._shed_backlog, CALL_TIMEOUT)
        if wait is not None:
            raise Overloaded(f"too much is waiting for a low-priority run: try again in {wait.total_seconds():.0f} s", wait)

    async def _was_shed(self, run: RunId) -> bool:
        """Was this run refused for want of room, before anything was written?"""
        description = await self.temporal.get_workflow_handle(run).describe(rpc_timeout=CALL_TIMEOUT)
        if description.status is not WorkflowExecutionStatus.FAILED:
            return False
        failure = (await self.get(run).result()).failure
        return failure is not None and failure.kind is FailureKind.SHED

    async def _require_same_request(self, request: RunRequest) -> None:
        run = request.run_id
        description = await self.temporal.get_workflow_handle(run).describe(rpc_timeout=CALL_TIMEOUT)
        started_with = (await description.memo()).get(REQUEST_DIGEST)
        if started_with != request.digest():
            raise KeyReused(
                f"{run} was already started with a different request; use another idempotency key, or the same request again"
            )


class RunHandle:
    """One run: watch it, decide for it, cancel it, get its result."""

    def __init__(self, client: AgentClient, workflow: WorkflowHandle[object, RunResult]) -> None:
        self._client = client
        self._workflow = workflow
        self.id = RunId(workflow.id)

    async def result(self) -> RunResult:
        """Wait for the end. A failed run is a result too; only infrastructure failures raise.

        Raises:
            NotFound: there is no such run.
            AgentError: the run was terminated from outside, without a result.
        """
        try:
            return await self._workflow.result()
        except WorkflowFailureError as error:
            return _result_of_failure(self.id, error)
        except RPCError as error:
            raise server_error(error, self.id) from error

    async def status(self) -> RunView:
        """Where the run stands. Needs a worker, also for runs that ended."""
        return await self._query("status", RunView)

    async def pending_approvals(self) -> tuple[Approval, ...]:
        """What the run waits for humans for."""
        return tuple(await self._query("pending_approvals", list[Approval]))

    async def wait_for_approvals(self) -> tuple[Approval, ...]:
        """Wait until the run waits for a human, or has ended: then there are none."""
        while True:
            view = await self.status()
            if view.pending_approvals or view.status.is_end:
                return view.pending_approvals
            await asyncio.sleep(LOOK_AGAIN.total_seconds())

    async def budget(self) -> BudgetView:
        """What the run may use and what it has used."""
        return await self._query("budget", BudgetView)

    async def timeline(self) -> tuple[TimelineEntry, ...]:
        """What happened, oldest first; the last 200 lines."""
        return tuple(await self._query("timeline", list[TimelineEntry]))

    async def approve(
        self, approval: Approval | ApprovalId | str, *, reason: str = "", by: str | None = None, key: Signer | None = None
    ) -> None:
        """Send an approval by signal: it is durable at once, and honoured even if no worker runs at the moment.

        Args:
            approval: what is approved. To sign it by its id alone, a worker must tell what it is about.
            reason: kept with the run.
            by: who decides; the client's identity if absent.
            key: signs the decision, e.g. `activities.signatures.read_key(file)`.

        Raises:
            InvalidRequest: this can be no decision.
            NotFound: there is no such run, or (to be signed) nothing of that id waits in it.
            NoWorker: what is to be signed cannot be seen.
        """
        await self._decide(approval, "approve", reason, by, key)

    async def deny(
        self, approval: Approval | ApprovalId | str, *, reason: str = "", by: str | None = None, key: Signer | None = None
    ) -> None:
        """Send a denial by signal; as `approve`."""
        await self._decide(approval, "deny", reason, by, key)

    async def decide_now(self, decision: ApprovalDecision) -> None:
        """Decide by update: answered at once, refused without a trace in history. Needs a worker.

        Raises:
            InvalidRequest: the decision does not count; the message says why.
        """
        try:
            await self._workflow.execute_update("decide_approval", decision, rpc_timeout=CALL_TIMEOUT)
        except WorkflowUpdateFailedError as error:
            raise InvalidRequest(first_line(error.cause)) from error
        except WorkflowUpdateRPCTimeoutOrCancelledError as error:
            raise no_worker(self.id) from error
        except RPCError as error:
            raise server_error(error, self.id) from error

    async def cancel(self, *, reason: str = "", by: str | None = None) -> None:
        """Ask the run to stop at the next safe point: no effect is cut in half."""
        await self._signal("request_cancel", CancelRequest(by=UserId(by or self._client.identity), reason=reason))

    async def raise_budget(self, budget: Budget, *, reason: str = "", by: str | None = None) -> BudgetView:
        """Raise the limits that `budget` names.

        Raises:
            InvalidRequest: a limit would not be raised by this, or the run has ended.
        """
        raise_ = BudgetRaise(budget=budget, by=UserId(by or self._client.identity), reason=reason)
        try:
            view: BudgetView = await self._workflow.execute_update(
                "raise_budget", raise_, result_type=BudgetView, rpc_timeout=CALL_TIMEOUT
            )
        except WorkflowUpdateFailedError as error:
            raise InvalidRequest(first_line(error.cause)) from error
        except WorkflowUpdateRPCTimeoutOrCancelledError as error:
            raise no_worker(self.id) from error
        except RPCError as error:
            raise server_error(error, self.id) from error
        return view

    async def _decide(
        self,
        approval: Approval | ApprovalId | str,
        decision: Literal["approve", "deny"],
        reason: str,
        by: str | None,
        key: Signer | None,
    ) -> None:
        wanted = approval.id if isinstance(approval, Approval) else ApprovalId(approval)
        try:
            payload = ApprovalDecision(
                approval_id=wanted, decision=decision, by=UserId(by or self._client.identity), reason=reason
            )
        except ValidationError as error:
            raise InvalidRequest(describe_errors(error)) from None
        if key is not None:
            payload = await self._signed(payload, approval, key)
        if self._client.decisions is not None:
            await self._client.decisions.keep(self.tenant, self.id, payload)
        await self._signal("submit_approval", payload)

    @property
    def tenant(self) -> TenantId:
        """Whose run it is."""
        return TenantId(self.id.split(":")[1] if self.id.count(":") > 1 else "")

    async def bound_to(self, approval: Approval) -> Bound:
        """What a decision about this approval is signed for, here and now."""
        try:
            description = await self._workflow.describe(rpc_timeout=CALL_TIMEOUT)
        except RPCError as error:
            raise server_error(error, self.id) from error
        first = description.raw_description.workflow_execution_info.first_run_id
        namespace = self._client.temporal.namespace
        return Bound.to(approval, tenant=self.tenant, namespace=namespace, run_id=self.id, first_execution=first)

    async def _signed(self, decision: ApprovalDecision, asked: Approval | ApprovalId | str, key: Signer) -> ApprovalDecision:
        approval = asked if isinstance(asked, Approval) else await self._pending(ApprovalId(asked))
        bound, expires = await self.bound_to(approval), datetime.now(UTC) + USABLE_FOR
        return signed(decision, bound, key, nonce=secrets.token_hex(16), expires_at=expires)

    async def _pending(self, wanted: ApprovalId) -> Approval:
        for approval in await self.pending_approvals():
            if approval.id == wanted:
                return approval
        raise NotFound(f"{wanted} does not wait in {self.id}, so there is nothing to sign: look at `status`")

    async def _signal(self, name: str, payload: ApprovalDecision | CancelRequest) -> None:
        try:
            await self._workflow.signal(name, payload, rpc_timeout=CALL_TIMEOUT)
        except RPCError as error:
            raise server_error(error, self.id) from error

    async def _query(self, name: str, result_type: type[T]) -> T:
        try:
            answer: T = await self._workflow.query(name, result_type=result_type, rpc_timeout=CALL_TIMEOUT)
        except WorkflowQueryFailedError as error:
            raise AgentError(f"{self.id} cannot answer {name!r}: {first_line(error)}") from error
        except RPCError as error:
            raise server_error(error, self.id) from error
        return answer


@lru_cache(maxsize=1)
def _leave_quietly() -> None:
    """The SDK's threads abort an interpreter that ends right after its last call (temporalio/sdk-python issue 300)."""
    atexit.register(time.sleep, 0.1)


def _details(request: RunRequest) -> str:
    lines = [f"**Agent** `{request.agent}`", f"**Tenant** `{request.tenant}`", f"**User** `{request.user}`"]
    facts = [f"- `{inert(name, 60)}`: `{inert(str(value), 160)}`" for name, value in list(request.input.items())[:20]]
    return "  \n".join(lines) + "\n\n**Input** (given by the caller)\n\n" + "\n".join(facts)


def _result_of_failure(run: RunId, error: WorkflowFailureError) -> RunResult:
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.details:
        return RunResult.model_validate(cause.details[0])
    if isinstance(cause, TerminatedError):
        raise AgentError(f"{run} was terminated from outside, without a result: {first_line(cause)}") from error
    failure = Failure(kind=FailureKind.INTERNAL, message=first_line(cause))
    return RunResult(run_id=run, status=RunStatus.FAILED, failure=failure, explanation=failure.message)
