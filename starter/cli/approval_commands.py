"""How does a human find what waits for a decision, decide it, and learn whether the decision counted?"""

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal, assert_never

import asyncpg

from activities.postgres import Database, DatabaseError
from activities.sent_decisions import SentDecisions
from activities.signatures import KeyFileError, SigningKey, read_key
from durable_agents.client import RunHandle
from durable_agents.domain.approvals import Approval, ApprovalDecision
from durable_agents.domain.identifiers import ApprovalId, RunId, TenantId
from durable_agents.domain.runs import RejectedMessage, RunView
from durable_agents.errors import NotFound, NoWorker
from durable_agents.search_attributes import PENDING_APPROVALS
from durable_agents.settings import Settings
from starter.cli.connection import Connection, connect, connect_to_run
from starter.cli.database import database_url
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_name
from starter.cli.options import Session
from starter.cli.run_commands import ended_or_unknown
from starter.cli.run_list import waiting_runs
from starter.cli.screen import Screen
from starter.cli.views import UNSIGNED, show_approval

CONFIRM_WITHIN = timedelta(seconds=5)
LOOK_EVERY = timedelta(milliseconds=200)


async def pending(session: Session, run: str | None, tenant: str) -> ExitCode:
    """Show what waits for humans, in one run or in all of a tenant."""
    address, handles = await _one_run(session, run, tenant) if run else await _waiting_ones(session, tenant)
    found = [(handle, approval) for handle in handles for approval in await _asked_by(handle, alone=run is not None)]
    screen = Screen(as_json=session.as_json)
    for handle, approval in found:
        show_approval(screen, handle.id, approval, address)
    if not found:
        screen.line("nothing waits for a human")
    screen.document([{"run_id": handle.id, "approval": approval.model_dump(mode="json")} for handle, approval in found])
    return ExitCode.OK


async def _one_run(session: Session, run: str, tenant: str) -> tuple[str | None, list[RunHandle]]:
    connection, handle = await connect_to_run(session, run, tenant)
    return connection.address, [handle]


async def _waiting_ones(session: Session, tenant: str) -> tuple[str | None, list[RunHandle]]:
    wanted = read_name(tenant, "a tenant")
    connection = await connect(session)
    return connection.address, [connection.client.get(run) async for run in waiting_runs(connection.client, wanted)]


async def _asked_by(handle: RunHandle, *, alone: bool) -> tuple[Approval, ...]:
    try:
        return await handle.pending_approvals()
    except NotFound:  # ended between the search and the look
        if alone:
            raise
        return ()


@dataclass(frozen=True)
class Said:
    """A decision as it was typed; without `approval`, the only one that waits is meant."""

    verb: Literal["approve", "deny"]
    run: str
    approval: str | None
    tenant: str
    reason: str
    by: str | None
    key: Path | None = None


class Outcome(StrEnum):
    """What became of a decision, as far as can be seen from here."""

    COUNTED = "counted"
    COUNTED_SO_FAR = "counted_so_far"  # more people must approve
    BEING_JUDGED = "being_judged"  # seen by a worker, e.g. it came near the deadline
    STORED = "stored"  # no worker has seen it yet


async def decide(session: Session, said: Said) -> ExitCode:
    """Write a decision down where there is a database, send it by signal, then say whether it counted."""
    screen = Screen(as_json=session.as_json)
    connection, handle = await connect_to_run(session, said.run, said.tenant)
    key = _key(said.key or connection.settings.signing_key)
    before = await _look(handle)
    wanted = ApprovalId(said.approval) if said.approval else await _only_one(connection, handle, before)
    asked = next((one for one in before.pending_approvals if one.id == wanted), None) if before else None
    _require_signable(asked, key, known=before is not None)
    async with _kept(screen, connection.settings) as kept:
        connection.client.decisions = kept
        try:
            send = handle.approve if said.verb == "approve" else handle.deny
            await send(wanted if asked is None else asked, reason=said.reason, by=said.by, key=key)
        except NotFound as error:
            raise await ended_or_unknown(handle, error) from None
    agreed = len(asked.agreed) if asked else 0
    outcome = await _seen(handle, wanted, before.rejected_messages, agreed) if before else Outcome.STORED
    screen.line(_in_words(outcome, said.verb, wanted, handle))
    if key is None:
        screen.line(f"it is unsigned: {UNSIGNED}", "yellow")
    told = {"run_id": handle.id, "approval_id": wanted, "decision": said.verb, "outcome": outcome}
    screen.document({**told, "signed_with": None if key is None else key.key})
    return ExitCode.OK


def _key(file: Path | None) -> SigningKey | None:
    try:
        return None if file is None else read_key(file)
    except KeyFileError as error:
        raise CliError(str(error)) from None


def _require_signable(asked: Approval | None, key: SigningKey | None, *, known: bool) -> None:
    """What is signed must be known to whoever signs it."""
    if key is not None and asked is None and not known:
        raise CliError("nobody tells what would be signed: start a worker, then decide", ExitCode.NO_WORKER)
    if key is None and asked is not None and asked.ladder.signed:
        raise CliError(f"{asked.id} takes signed decisions only: add --key FILE; `keys generate` makes one")


class _Kept:
    """Decisions are written down first, but a database in trouble is no reason not to send one."""

    def __init__(self, screen: Screen, database: Database) -> None:
        self._screen, self._decisions = screen, SentDecisions(database)

    async def keep(self, tenant: TenantId, run: RunId, decision: ApprovalDecision) -> bool:
        try:
            return await self._decisions.keep(tenant, run, decision)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._screen.line(f"the decision is sent without being written down first: {type(error).__name__}", "yellow")
            return True


@asynccontextmanager
async def _kept(screen: Screen, settings: Settings) -> AsyncIterator[_Kept | None]:
    """Where decisions are written down first; None without a database."""
    url = database_url(settings)
    async with AsyncExitStack() as stack:
        try:
            database = None if url is None else await Database.open(url, max_size=1)
        except DatabaseError as error:
            screen.line(f"the decision is sent without being written down first: {error}", "yellow")
            database = None
        if database is not None:
            stack.push_async_callback(database.close)
        yield None if database is None else _Kept(screen, database)


def _in_words(outcome: Outcome, verb: Literal["approve", "deny"], wanted: ApprovalId, handle: RunHandle) -> str:
    match outcome:
        case Outcome.COUNTED:
            return f"{'approved' if verb == 'approve' else 'denied'} {wanted} of {handle.id}"
        case Outcome.COUNTED_SO_FAR:
            return f"approved {wanted} of {handle.id}; more people must, `pending` says how many"
        case Outcome.BEING_JUDGED:
            return f"{verb} {wanted} has arrived in {handle.id} and is still being judged: look at `status`"
        case Outcome.STORED:
            return f"{verb} {wanted} is stored in {handle.id}; no worker is there to confirm it, it counts if it came in time"
    assert_never(outcome)


async def _look(handle: RunHandle) -> RunView | None:
    """The run before the decision; None when no worker answers, which must not stop a decision."""
    try:
        return await handle.status()
    except NoWorker:
        return None


async def _only_one(connection: Connection, handle: RunHandle, view: RunView | None) -> ApprovalId:
    waiting = [one.id for one in view.pending_approvals] if view else await _waiting_by_server(connection, handle)
    if len(waiting) == 1:
        return waiting[0]
    if not waiting:
        raise CliError(f"nothing waits for a human in {handle.id}: look at `status`", ExitCode.NOT_FOUND)
    see = shlex.join(["python", "-m", "starter", "pending", handle.id])
    raise CliError(f"{len(waiting)} approvals wait in {handle.id} ({', '.join(waiting)}): name one, see `{see}`")


async def _waiting_by_server(connection: Connection, handle: RunHandle) -> list[ApprovalId]:
    """The ids the server itself knows, without a worker."""
    description = await connection.client.temporal.get_workflow_handle(handle.id).describe()
    return [ApprovalId(one) for one in description.typed_search_attributes.get(PENDING_APPROVALS) or ()]


async def _seen(handle: RunHandle, wanted: ApprovalId, known: tuple[RejectedMessage, ...], agreed: int) -> Outcome:
    """Look for up to 5 s whether the decision counted.

    Raises:
        CliError: a worker has seen it, and it does not count.
    """
    outcome = Outcome.STORED
    try:
        async with asyncio.timeout(CONFIRM_WITHIN.total_seconds()):
            while outcome not in (Outcome.COUNTED, Outcome.COUNTED_SO_FAR):
                outcome = _judged(handle, await handle.status(), wanted, known, agreed)
                await asyncio.sleep(LOOK_EVERY.total_seconds())
    except (TimeoutError, NoWorker):
        pass
    return outcome


def _judged(handle: RunHandle, view: RunView, wanted: ApprovalId, known: tuple[RejectedMessage, ...], agreed: int) -> Outcome:
    for entry in view.rejected_messages:
        if entry not in known and f" {wanted} " in entry.excerpt:
            raise CliError(f"{handle.id} refused it ({entry.reason}): nothing was done, look at `status`", ExitCode.REFUSED)
    still = next((one for one in view.pending_approvals if one.id == wanted), None)
    if still is not None and len(still.agreed) > agreed:
        return Outcome.COUNTED_SO_FAR
    return Outcome.COUNTED if still is None else Outcome.BEING_JUDGED
