"""What is known of a tool call before it is judged, and how is it asked about and brought to its end?"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, JsonValue
from temporalio import activity

from activities import audit, dispatches, ledger, notifications, transcripts
from activities.agents import AgentCatalog, LoadedAgent
from activities.heartbeat import fence
from activities.policies import InForce, in_force_until_commit
from activities.postgres import Connection
from activities.runs import RunRecord, load_run
from durable_agents.activity_contracts import Notice
from durable_agents.domain.approvals import ApprovalKind, Ladder, approval_digest, approval_id
from durable_agents.domain.canonical import digest, escape_json, escape_text, inert, restore_json
from durable_agents.domain.effects import Dispatch, DispatchState, Effect, effect_key
from durable_agents.domain.identifiers import CallPath, Digest, EffectKey, call_path
from durable_agents.domain.messages import Message, ToolCallBlock, ToolResultBlock
from durable_agents.domain.provenance import Label, result_label
from durable_agents.domain.signatures import Bound
from durable_agents.domain.tool_calls import ConsentNeeded, ToolCallRequest, ToolSettled, call_line, facts
from durable_agents.domain.tools import Tool

_PREVIEW = 100
_RULE = 160
_ASKED_BECAUSE = "(asked because)"
"""Beside the arguments' names, none of which has brackets."""


class SenselessCall(Exception):  # noqa: N818 - a judgement, not an error of ours
    """The call cannot be made at all; the model is told why."""

    def __init__(self, rule: str, told: str) -> None:
        super().__init__(told)
        self.rule = rule
        self.told = told


@dataclass(frozen=True)
class FoundCall:
    """A call as the model asked for it."""

    request: ToolCallRequest
    run: RunRecord
    block: ToolCallBlock
    says: str
    """What the model said along with it."""
    path: CallPath
    key: EffectKey
    row: Dispatch | None
    """The dispatch row as this attempt found it."""
    force: InForce
    """The policy that holds until this attempt's transaction ends."""
    label: Label
    """Of all that the model had read when it asked."""

    @property
    def in_doubt(self) -> bool:
        """May an earlier attempt have brought about an effect, whose outcome nobody has written down?"""
        open_states = (DispatchState.DISPATCHED, DispatchState.UNKNOWN)
        return self.row is not None and self.row.state in open_states and self.row.effect is not Effect.READ


@dataclass(frozen=True)
class PreparedCall(FoundCall):
    """A call that makes sense: its tool is there and its arguments are valid."""

    agent: LoadedAgent
    tool: Tool
    parsed: BaseModel
    arguments: dict[str, JsonValue]
    """Canonical, escaped for storage."""
    arguments_digest: Digest
    against: str = ""
    """What provenance has against the call; a human is asked, or was."""

    def bound_to(self, kind: ApprovalKind) -> Digest:
        """The digest a human's decision about this call is bound to."""
        return self.bound_under(kind, self.force.digest, self.force.version)

    def bound_under(self, kind: ApprovalKind, policy_digest: Digest, policy_version: int) -> Digest:
        """The same under another policy than the one in force."""
        return approval_digest(
            run=self.run.run_id,
            path=self.path,
            kind=kind,
            tool=self.block.tool,
            arguments=self.arguments,
            policy_digest=policy_digest,
            policy_version=policy_version,
        )

    def about(self, kind: ApprovalKind, bound: Digest, policy_digest: Digest) -> Bound:
        """What a signed decision about this call must have been signed for; `bound` is its digest under that policy."""
        return Bound(
            tenant=self.run.tenant,
            namespace=activity.info().namespace,
            run_id=self.run.run_id,
            first_execution=self.run.first_execution,
            approval_id=approval_id(bound),
            kind=kind,
            tool=self.block.tool,
            digest=bound,
            policy_digest=policy_digest,
        )


async def find(connection: Connection, request: ToolCallRequest) -> FoundCall | ToolSettled:
    """The call, or its outcome when it has one already. Locks its dispatch row."""
    row = await dispatches.find(connection, request)
    if row is not None and row[1] is not None:
        return row[1]
    run = await load_run(connection, request.tenant, request.run_id)
    answer = await transcripts.load_one(connection, request.tenant, request.run_id, request.turn, 0)
    path = call_path(request.turn, request.index)
    return FoundCall(
        request=request,
        run=run,
        block=answer.message.tool_calls()[request.index],
        says=answer.message.text(),
        path=path,
        key=effect_key(request.tenant, request.run_id, run.first_execution, path),
        row=None if row is None else row[0],
        force=await in_force_until_commit(connection, request.tenant, run.agent),
        label=await transcripts.label_at(connection, request.tenant, request.run_id, request.turn),
    )


def prepare(found: FoundCall, catalog: AgentCatalog) -> PreparedCall:
    """Match the call with its tool and validate its arguments. Raises SenselessCall."""
    agent = catalog.get(found.run.terms.agent)
    tool = agent.tools.get(found.block.tool) if agent is not None else None
    if agent is None or tool is None or found.block.tool not in found.run.terms.tools:
        offered = ", ".join(found.run.terms.tools) or "none"
        raise SenselessCall("unknown tool", f"There is no tool {inert(found.block.tool, 64)!r} here. The tools are: {offered}.")
    parsed, canonical = _parse(tool, found.block)
    return PreparedCall(
        **vars(found), agent=agent, tool=tool, parsed=parsed, arguments=canonical, arguments_digest=digest(canonical)
    )


def _parse(tool: Tool, block: ToolCallBlock) -> tuple[BaseModel, dict[str, JsonValue]]:
    """The arguments as the tool takes them, and as consent is bound to them."""
    try:
        if block.arguments is None:
            raise ValueError(block.problem or "the arguments are not a JSON object")
        restored = restore_json(block.arguments)
        parsed = tool.parse(restored if isinstance(restored, dict) else None)
        canonical = escape_json(tool.canonical_arguments(parsed))  # a float may be NaN: no JSON, and no number for a policy
    except ValueError as error:
        raise SenselessCall("invalid arguments", f"Invalid arguments: {error}") from None
    assert isinstance(canonical, dict)
    return parsed, canonical


async def settle(
    connection: Connection,
    call: FoundCall,
    result: Literal["ok", "error", "refused"],
    text: str,
    rule: str = "",
    *,
    mistake: bool = False,
) -> ToolSettled:
    """Bring a call to its end: result in the transcript, dispatch row, audit, in the caller's transaction."""
    request, block = call.request, call.block
    told = ToolResultBlock(call_id=block.id, tool=block.tool, text=escape_text(text), is_error=result != "ok")
    spoke = call.tool.spec if isinstance(call, PreparedCall) and result != "refused" else None
    stored = await transcripts.put(
        connection, request.tenant, request.run_id, request.turn, request.index + 1, Message(role="tool", blocks=(told,)),
        result_label(call.label, spoke),
    )  # fmt: skip
    digest_now = call.force.digest
    other_policy = digest_now != call.run.terms.policy_digest
    outcome = ToolSettled(
        result=result,
        preview=inert(text, _PREVIEW),
        message_bytes=stored.size,
        rule=inert(": ".join(part for part in (rule, call.against if isinstance(call, PreparedCall) else "") if part), _RULE),
        mistake=mistake,
        fingerprint=digest([block.tool, block.arguments, told.text])[:12],
        policy_digest=digest_now if result == "refused" or other_policy else None,
    )
    await dispatches.settle(connection, request, outcome, key=call.key, tool=block.tool, fence=fence())
    body: dict[str, JsonValue] = {
        "path": call.path, "tool": block.tool, "result": result, "rule": outcome.rule, "key": call.key, "policy": digest_now,
    }  # fmt: skip
    await audit.append(connection, request.tenant, request.run_id, "tool_settled", body)
    return outcome


async def ask(connection: Connection, call: PreparedCall, kind: ApprovalKind, ladder: Ladder) -> ConsentNeeded:
    """Write down what a human is asked, in the caller's transaction."""
    bound = call.bound_to(kind)
    against = call.against if kind is ApprovalKind.TOOL_CALL else ""
    line = call_line(call.block.tool, call.arguments)
    needed = ConsentNeeded(
        approval_id=approval_id(bound),
        approval_kind=kind,
        tool=call.block.tool,
        title=line if kind is ApprovalKind.TOOL_CALL else f"Did this happen? {line}",
        facts=({_ASKED_BECAUSE: against} if against else {}) | facts(call.arguments),
        model_says=inert(call.says, 300),
        digest=bound,
        policy_digest=call.force.digest,
        policy_version=call.force.version,
        ladder=ladder,
    )
    if await dispatches.open_approval(connection, call.request, needed):
        await notifications.write_notice(connection, _notice(call, needed))
        await ledger.give_back(connection, call.request.tenant, call.run.payer.run_id, "waits")  # for days, perhaps
        body: dict[str, JsonValue] = {"approval": needed.approval_id, "kind": kind, "tool": needed.tool, "digest": bound}
        body |= {"against": against} if against else {}
        await audit.append(connection, call.request.tenant, call.request.run_id, "approval_asked", body)
    return needed


def _notice(call: PreparedCall, needed: ConsentNeeded) -> Notice:
    """What those who are asked first are told. The deadline is the run's to set, a moment later, by its own clock."""
    first = needed.ladder.rungs[0]
    return Notice(
        tenant=call.request.tenant,
        run_id=call.request.run_id,
        approval_id=needed.approval_id,
        occasion="asked",
        title=needed.title,
        asked=first.asked,
        requester=call.run.user,
        rung=0,
        deadline=activity.info().started_time + first.within,
    )
