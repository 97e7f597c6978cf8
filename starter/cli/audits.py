"""What stands in the audit log, has anybody changed it, and how does it leave the database so that others can check it?

Straight from PostgreSQL, as the application or the auditor: no worker and no Temporal server is asked, and an export is checked
without a database.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pydantic import JsonValue

from activities import audit, audit_anchors
from activities.account_limits import known_tenants
from activities.audit_anchors import Anchored, AnchorFileError
from activities.postgres import Database
from durable_agents.domain.audit import (
    Anchor,
    Chain,
    Entry,
    ExportError,
    export_beginning,
    export_end,
    export_entry,
    export_head,
    follow_export,
    shown_time,
)
from durable_agents.domain.canonical import inert
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT
from durable_agents.settings import read_settings
from starter.cli.connection import full_run_id
from starter.cli.database import open_database
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_moment, read_name
from starter.cli.options import Session
from starter.cli.screen import Screen

ANCHORS = "audit-anchors.jsonl"
"""The file of anchors of the embedded servers, in their state folder."""
_TOO_LONG = "the log takes too long: narrow it by --run, --event, --since or --until"
_BODY_SHOWN = 100


@dataclass(frozen=True)
class Asked:
    """What the person typed, unread."""

    tenant: str
    run: str | None
    events: tuple[str, ...]
    since: str | None
    until: str | None

    def whose(self) -> TenantId:
        """The tenant; a run's full id names it too. Raises CliError when it cannot be one."""
        parts = (self.run or "").split(":", 2)
        return _tenant(parts[1] if len(parts) == 3 and parts[0] == "run" else self.tenant)

    def wanted(self, now: datetime) -> audit.Wanted:
        """As a question to the log. Raises CliError when something cannot be meant."""
        since, until = read_moment(self.since, "--since", now), read_moment(self.until, "--until", now)
        if since is not None and until is not None and since >= until:
            raise CliError(
                f"--since {self.since} is not before --until {self.until}, which is excluded: nothing lies between them"
            )
        for event in self.events:
            read_name(event, "an event")
        run = None if self.run is None else full_run_id(self.run, self.tenant)
        return audit.Wanted(run, self.events, since, until)


@dataclass(frozen=True)
class Found:
    """What a verification has found."""

    chains: tuple[Chain, ...]
    anchors: int | None
    """How many there were to compare with; None: no file of anchors was there."""
    of_anchors: tuple[str, ...] = ()
    """What is wrong with the anchors themselves."""
    not_compared: tuple[str, ...] = ()
    """Tenants that have anchors and are not in the export."""


async def show(session: Session, asked: Asked, limit: int) -> ExitCode:
    """Show the newest entries that are wanted."""
    tenant = asked.whose()
    wanted = asked.wanted(datetime.now(UTC))
    async with open_database(_TOO_LONG) as database, database.transaction(tenant) as connection:
        found = await audit.newest(connection, tenant, wanted, limit)
    screen = Screen(as_json=session.as_json)
    if session.as_json:
        for entry in found:
            print(json.dumps({"tenant": tenant, **entry._asdict()}))
        sys.stdout.flush()
    elif found:
        screen.table(("entry", "time", "run", "event", "what"), [_cells(entry) for entry in found])
    more = f", the newest {limit:,}; see more with --limit" if len(found) == limit else ""
    screen.line(f"{len(found):,} entries of {_whose(tenant)}{more}")
    return ExitCode.OK


async def verify(session: Session, tenants: list[str] | None, files: list[Path] | None) -> ExitCode:
    """Check the chains of tenants, of every tenant that is known here or from anchors."""
    anchors, wrong = _read_anchors(_files(files))
    chains = []
    async with open_database(_TOO_LONG) as database:
        for tenant in await _named(database, tenants, anchors or ()):
            async with database.transaction(tenant, snapshot=True) as connection:
                chains.append(await audit.examine(connection, tenant, anchors or ()))
    return _judge(session, Found(tuple(chains), None if anchors is None else len(anchors), wrong))


def verify_export(session: Session, file: Path, tenants: list[str] | None, files: list[Path] | None) -> ExitCode:
    """Check an export, without a database."""
    anchors, wrong = _read_anchors(_files(files))
    only = {_tenant(name) for name in tenants or ()}
    try:
        with _opened(file) as lines:
            chains = tuple(chain for chain in follow_export(lines, anchors or ()) if not only or chain.tenant in only)
    except ExportError as error:
        return _judge(session, Found((), None if anchors is None else len(anchors), (f"{file}: {error}", *wrong)))
    missing = only - {chain.tenant for chain in chains}
    if missing:
        raise CliError(f"{file} does not hold the log of {min(missing)}: leave --tenant out", ExitCode.NOT_FOUND)
    absent = {one.tenant for one in anchors or ()} - {chain.tenant for chain in chains} if not only else set()
    return _judge(session, Found(chains, None if anchors is None else len(anchors), wrong, tuple(sorted(absent))))


async def anchor(session: Session, file: Path | None) -> ExitCode:
    """Append the heads that have moved."""
    path = file or _default_file()
    if path is None:
        raise CliError("no file for the anchors: give --anchors FILE, or set DURABLE_AGENTS_AUDIT_ANCHORS")
    async with open_database(_TOO_LONG) as database:
        try:
            done = await audit_anchors.append_heads(database, path)
        except AnchorFileError as error:
            raise CliError(str(error)) from None
    return _say_anchored(session, path, done)


async def export(tenants: list[str] | None, to: Path | None) -> ExitCode:
    """Write whole chains, each as of one moment."""
    async with open_database(_TOO_LONG) as database:
        named = await _named(database, tenants, ())
        with _written(to) as file:
            lines = 0
            async for line in _export_lines(database, named):
                file.write(f"{line}\n")
                lines += 1
    where = "stdout" if to is None else str(to)
    Screen(as_json=True).line(f"exported {lines - 2 - len(named):,} entries of {len(named):,} logs to {where}")
    return ExitCode.OK


async def _export_lines(database: Database, tenants: Sequence[TenantId]) -> AsyncIterator[str]:
    yield export_beginning(tenants, time.time_ns() // 1000)
    lines = 2
    for tenant in tenants:
        async with database.transaction(tenant, snapshot=True) as connection:
            async for batch in audit.entries(connection, tenant):
                for entry in batch:
                    yield export_entry(tenant, Entry(*entry))
                lines += len(batch)
            yield export_head(tenant, await audit.head_of(connection, tenant))
            lines += 1
    yield export_end(lines)


@contextmanager
def _written(to: Path | None) -> Iterator[TextIO]:
    """Where an export goes: a file is there when all of it is, and is the old one until then."""
    if to is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        descriptor, aside = tempfile.mkstemp(dir=to.parent, prefix=f".{to.name}.")
    except OSError as error:
        raise CliError(f"--to {to} cannot be written ({error.strerror}): check the path") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(to)
    except OSError as error:
        raise CliError(f"--to {to} cannot be written ({error.strerror}): check the path and its disk") from None
    finally:
        Path(aside).unlink(missing_ok=True)


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdin
        return
    try:
        with file.open(encoding="utf8", errors="replace") as lines:
            yield lines
    except OSError as error:
        raise CliError(f"--file {file} cannot be read ({error.strerror}): check the path") from None


def _tenant(name: str) -> TenantId:
    """A tenant, or the log of what is above all tenants."""
    return SYSTEM_TENANT if name == SYSTEM_TENANT else TenantId(read_name(name, "a tenant"))


def _whose(tenant: str) -> str:
    return "what is above all tenants" if tenant == SYSTEM_TENANT else f"tenant {tenant}"


async def _named(database: Database, tenants: list[str] | None, anchors: Sequence[Anchor]) -> list[TenantId]:
    """The tenants that are meant; of those that are anchored the log may be gone, and with it all that is known of them."""
    if tenants:
        return list(dict.fromkeys(map(_tenant, tenants)))
    known = await known_tenants(database)
    return [SYSTEM_TENANT, *sorted({*known, *(TenantId(one.tenant) for one in anchors)} - {SYSTEM_TENANT})]


def _default_file() -> Path | None:
    """The setting's; that of the embedded servers where they are the database."""
    settings = read_settings()
    if settings.audit_anchors is not None:
        return settings.audit_anchors
    return None if settings.database_url is not None else settings.state_dir / ANCHORS


def _files(given: list[Path] | None) -> list[Path] | None:
    """The files of anchors to compare with; None: there are none, and nobody has named one."""
    if given:
        return given
    default = _default_file()
    if default is None or (read_settings().audit_anchors is None and not default.exists()):
        return None
    return [default]


def _read_anchors(files: list[Path] | None) -> tuple[list[Anchor] | None, tuple[str, ...]]:
    if files is None:
        return None, ()
    anchors: list[Anchor] = []
    wrong: list[str] = []
    for path in files:
        try:
            found = audit_anchors.read(path)
        except AnchorFileError as error:
            raise CliError(str(error)) from None
        anchors += found.anchors
        wrong += [f"{path}: {problem}" for problem in found.problems]
        if not found.anchors:
            wrong.append(f"{path} holds no anchors")
    return anchors, tuple(wrong)


def _judge(session: Session, found: Found) -> ExitCode:
    screen = Screen(as_json=session.as_json)
    for chain in found.chains:
        for problem in chain.problems:
            screen.line(f"{_whose(chain.tenant)}, entry {problem.sequence}: {problem.why}")
        if chain.count > len(chain.problems):
            screen.line(f"{_whose(chain.tenant)}: {chain.count - len(chain.problems):,} more")
    for line in found.of_anchors:
        screen.line(line)
    count = sum(chain.count for chain in found.chains) + len(found.of_anchors)
    entries, met = sum(chain.head.sequence for chain in found.chains), sum(chain.anchors_met for chain in found.chains)
    if found.anchors is None:
        screen.line("no anchors to compare with: a log that was computed anew as a whole would not be found; see `audit anchor`")
    elif found.not_compared:
        screen.line(f"anchors of logs that are not in the export: {', '.join(found.not_compared)}")
    outcome = f"{count:,} breaks" if count else "unbroken"
    against = "" if found.anchors is None else f", {met:,} of {found.anchors:,} anchors met"
    screen.line(f"verified {entries:,} entries of {len(found.chains):,} logs{against}: {outcome}")
    screen.document({
        "unbroken": not count,
        "anchors": found.anchors,
        "anchor_problems": list(found.of_anchors),
        "not_compared": list(found.not_compared),
        "logs": [_described(chain) for chain in found.chains],
    })  # fmt: skip
    return ExitCode.DIFFERS if count else ExitCode.OK


def _described(chain: Chain) -> JsonValue:
    return {
        "tenant": chain.tenant,
        "entries": chain.head.sequence,
        "head": chain.head.hash,
        "anchors_met": chain.anchors_met,
        "breaks": chain.count,
        "problems": [{"entry": problem.sequence, "why": problem.why} for problem in chain.problems],
    }


def _say_anchored(session: Session, path: Path, done: Anchored) -> ExitCode:
    screen = Screen(as_json=session.as_json)
    for problem in done.problems:
        screen.line(f"{_whose(problem.tenant)}, entry {problem.sequence}: {problem.why}")
    broken = len({problem.tenant for problem in done.problems})
    but = f"; {broken:,} logs do not continue what was anchored of them, see `audit verify`" if broken else ""
    screen.line(f"{path}: {len(done.appended):,} anchors appended, {done.unchanged:,} logs unchanged{but}")
    screen.document({
        "file": str(path),
        "appended": [{**one._asdict()} for one in done.appended],
        "unchanged": done.unchanged,
        "problems": [{"tenant": one.tenant, "entry": one.sequence, "why": one.why} for one in done.problems],
    })  # fmt: skip
    return ExitCode.DIFFERS if broken else ExitCode.OK


def _cells(entry: Entry) -> Sequence[str]:
    what = inert(json.dumps(entry.body, ensure_ascii=False), _BODY_SHOWN)
    return (str(entry.sequence), shown_time(entry.at_micros), entry.run or "-", entry.event, what)
