"""What may an agent do, what would another policy change, and how does the business change it while everything runs?

Straight in the database that the executor of tools reads at each decision, so a change holds from the next decision on.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import unified_diff
from pathlib import Path

from pydantic import JsonValue

from activities import policies
from activities.agent_files import AgentFileError, policy_error, policy_text, read_policy_file
from activities.permissions import evaluate
from activities.policies import Decided, PolicyVersion
from activities.postgres import Connection
from durable_agents.domain.agents import PinnedAgent
from durable_agents.domain.canonical import canonical_json, digest, ensure_escaped, escape_json
from durable_agents.domain.identifiers import Digest, TenantId
from durable_agents.domain.permissions import Policy, Ruling, decide, ever_allowed
from starter.cli.database import open_database
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_actor, read_moment, read_name
from starter.cli.options import Session
from starter.cli.screen import Screen

_BUSY = "the database takes too long: look at `policy history` for what was done, and run the command again"
_LARGEST = 256 * 1024
"""Bytes of a policy's canonical form: it is read at each decision."""
_NOW = "now"


@dataclass(frozen=True)
class Which:
    """The agent whose policy is meant."""

    tenant: TenantId
    agent: str

    def __str__(self) -> str:
        return f"policy of {self.agent}, tenant {self.tenant}"


@dataclass(frozen=True)
class Change:
    """Who changes it, and why."""

    by: str
    reason: str


@dataclass(frozen=True)
class Known:
    """What the tenant's database knows of the agent and its policies."""

    agent: PinnedAgent | None
    """None: it has never run."""
    versions: list[PolicyVersion]
    """The newest first: it is in force."""

    @property
    def in_force(self) -> int:
        """The version that holds."""
        return self.versions[0].version if self.versions else 0


def read_which(agent: str, tenant: str) -> Which:
    """Agent and tenant as they were typed. Raises CliError when there can be none of that name."""
    return Which(TenantId(read_name(tenant, "a tenant")), read_name(agent, "an agent"))


def read_change(by: str | None, reason: str) -> Change:
    """Who and why as they were typed. Raises CliError."""
    if not reason.strip() or len(reason) > 2000:
        raise CliError("--reason is empty, or longer than 2000 characters: say in a sentence why the policy changes")
    return Change(read_actor(by), ensure_escaped(reason))


async def get(session: Session, which: Which, version: int | None) -> ExitCode:
    """Print a version as YAML."""
    async with _transaction(which) as connection:
        known = await _known(connection, which)
    wanted = known.in_force if version is None else version
    policy, screen = _policy(known, which, wanted), Screen(as_json=session.as_json)
    made = next((one for one in known.versions if one.version == wanted), None)
    put_by = f"put by {made.changed_by} on {_moment(made.created_at)}: {made.reason}" if made else "the agent's own policy.yaml"
    holds = "in force" if wanted == known.in_force else f"not in force, version {known.in_force} is"
    screen.line(f"# {which}: version {wanted}, {holds}")
    screen.line(f"# {put_by}")
    for line in policy_text(policy).splitlines():
        screen.line(line)
    document = policy.document()
    screen.document({"tenant": which.tenant, "agent": which.agent, "version": wanted, "in_force": wanted == known.in_force,
                     "digest": digest(document), "policy": document})  # fmt: skip
    return ExitCode.OK


async def put(session: Session, file: str, which: Which, change: Change) -> ExitCode:
    """Put a file's policy in force."""
    policy = _read(file)
    async with _transaction(which) as connection:
        known = await _known(connection, which)
        notes = _fitting(policy, known, which, file)
        version, changed = await policies.put(connection, which.tenant, which.agent, policy, change.by, change.reason)
    return _put(session, which, version, digest(policy.document()), notes, changed=changed)


async def use(session: Session, version: int, which: Which, change: Change) -> ExitCode:
    """Put an earlier version once more."""
    async with _transaction(which) as connection:
        known = await _known(connection, which)
        earlier = next((one for one in known.versions if one.version == version), None)
        own = version == 0 or (earlier is not None and earlier.digest is None)
        policy = None if own else _policy(known, which, version)
        notes = [] if policy is None else _fitting(policy, known, which, f"version {version}")
        new, changed = await policies.put(connection, which.tenant, which.agent, policy, change.by, change.reason)
    return _put(session, which, new, None if policy is None else digest(policy.document()), notes, changed=changed)


async def diff(session: Session, which: Which, old: str, new: str) -> ExitCode:
    """Print what differs, as lines of YAML."""
    async with _transaction(which) as connection:
        known = await _known(connection, which)
    names = [
        f"version {known.in_force}" if name == _NOW else f"version {name}" if name.isdecimal() else name for name in (old, new)
    ]
    before, after = (policy_text(_named(known, which, name)).splitlines() for name in (old, new))
    lines = list(unified_diff(before, after, fromfile=names[0], tofile=names[1], lineterm=""))
    screen = Screen(as_json=session.as_json)
    for line in lines:
        screen.line(line, {"+": "green", "-": "red"}.get(line[:1], ""))
    if not lines:
        screen.line(f"{names[0]} and {names[1]} say the same")
    screen.document({"tenant": which.tenant, "agent": which.agent, "old": names[0], "new": names[1], "lines": [*lines]})
    return ExitCode.OK


async def try_out(session: Session, file: str, which: Which, since: str, limit: int) -> ExitCode:
    """Try a file on recorded decisions and print what would come out otherwise."""
    policy = _read(file)
    start = read_moment(since, "--since", datetime.now(UTC))
    assert start is not None
    total = unknown = 0
    kinds: Counter[str] = Counter()
    changes: list[dict[str, JsonValue]] = []
    async with _transaction(which) as connection:
        notes = _fitting(policy, await _known(connection, which), which, file)
        async for one in policies.decisions(connection, which.tenant, which.agent, start, limit):
            total += 1
            if one.call is None:
                unknown += 1
                continue
            verdict = decide(policy, digest(policy.document()), one.call, evaluate)
            if verdict.ruling is not one.ruling:
                kinds[_kind(one.ruling, verdict.ruling)] += 1
                changes.append(_changed(one, verdict.ruling, verdict.reason))
    screen = Screen(as_json=session.as_json)
    if changes:
        screen.table(("change", "tool", "user", "run", "call", "when", "was", "would be"), [_cells(one) for one in changes])
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none would come out otherwise"
    screen.line(f"{total} decisions since {_moment(start)}: {said}")
    if unknown:
        screen.line(f"{unknown} of them cannot be tried: their arguments were too large to be kept", "yellow")
    if total == limit:
        screen.line(f"only the newest {limit} were tried: see --limit", "yellow")
    _show_notes(screen, notes)
    screen.document({"tenant": which.tenant, "agent": which.agent, "since": start.isoformat(), "decisions": total,
                     "not_tried": unknown, "changes": [*changes], "notes": [*notes]})  # fmt: skip
    return ExitCode.UNEXPECTED if changes else ExitCode.OK


async def history(session: Session, which: Which) -> ExitCode:
    """List every version, the newest first."""
    async with _transaction(which) as connection:
        versions = await policies.versions(connection, which.tenant, which.agent)
    screen = Screen(as_json=session.as_json)
    if versions:
        rows = [(str(one.version), (one.digest or "own policy.yaml")[:15], one.changed_by, _moment(one.created_at), one.reason)
                for one in versions]  # fmt: skip
        screen.table(("version", "digest", "put by", "when", "why"), rows)
    screen.line(f"version {versions[0].version} is in force" if versions else f"{which}: nothing was put, the agent's own holds")
    screen.document([
        {"version": one.version, "digest": one.digest, "by": one.changed_by, "at": one.created_at.isoformat(),
         "reason": one.reason, "in_force": one is versions[0]}
        for one in versions
    ])  # fmt: skip
    return ExitCode.OK


async def check(session: Session, file: str, which: Which | None) -> ExitCode:
    """Say what `put` would say of a file."""
    policy, notes = _read(file), []
    if which is not None:
        async with _transaction(which) as connection:
            notes = _fitting(policy, await _known(connection, which), which, file)
    screen, own = Screen(as_json=session.as_json), digest(policy.document())
    screen.line(f"{file}: {len(policy.rules)} rules, {len(policy.ladders)} ladders, digest {own[:12]}")
    _show_notes(screen, notes)
    screen.document({"file": file, "digest": own, "notes": [*notes]})
    return ExitCode.OK


@asynccontextmanager
async def _transaction(which: Which) -> AsyncIterator[Connection]:
    async with open_database(_BUSY) as database, database.transaction(which.tenant) as connection:
        yield connection


async def _known(connection: Connection, which: Which) -> Known:
    agent = await policies.last_known(connection, which.tenant, which.agent)
    return Known(agent, await policies.versions(connection, which.tenant, which.agent))


def _read(file: str) -> Policy:
    """A policy's file. Raises CliError with file and line."""
    try:
        policy = read_policy_file(Path(file))
    except AgentFileError as error:
        raise CliError(str(error)) from None
    document = policy.document()
    if escape_json(document) != document:
        raise CliError(f"{file}: holds a character that cannot be stored (U+0000, U+001A or half of a pair): take it out")
    if len(canonical_json(document)) > _LARGEST:
        raise CliError(
            f"{file}: is more than {_LARGEST // 1024} KiB: it is read at each decision, so name groups and patterns instead"
        )
    return policy


def _fitting(policy: Policy, known: Known, which: Which, where: str) -> list[str]:
    """What somebody should know before it holds. Raises CliError where it names what the agent does not have."""
    agent = known.agent
    if agent is None:
        return [
            f"agent {which.agent} has never run for tenant {which.tenant}: whether its tools and ladders exist was not checked"
        ]
    for place, message in agent.misfits(policy)[:1]:
        file = Path(where)
        raise CliError(str(policy_error(file, place, message)) if file.is_file() else f"{where}: {message}")
    tools = agent.definition.tools
    notes = []
    if tools and not any(ever_allowed(policy, tool, agent=which.agent) for tool in tools):
        notes.append(f"this locks everybody out of everything: no tool of {which.agent} can ever be called under it")
    return notes


def _named(known: Known, which: Which, name: str) -> Policy:
    if name == _NOW:
        return _policy(known, which, known.in_force)
    return _policy(known, which, int(name)) if name.isdecimal() and len(name) < 10 else _read(name)


def _policy(known: Known, which: Which, version: int) -> Policy:
    """A version's policy. Raises CliError when there is none, or it cannot be read."""
    found = next((one for one in known.versions if one.version == version), None)
    if found is None and version != 0:
        raise CliError(f"{which} has no version {version}: `policy history` lists those there are", ExitCode.NOT_FOUND)
    if found is None or found.digest is None:
        if known.agent is None:
            message = f"agent {which.agent} has never run for tenant {which.tenant}, and nothing was put: look at its policy.yaml"
            raise CliError(message, ExitCode.NOT_FOUND)
        return known.agent.policy
    try:
        return policies.read_document(found.document, found.digest)
    except ValueError as error:
        raise CliError(
            f"version {version} cannot be read ({error}): put another with `policy put`", ExitCode.UNEXPECTED
        ) from None


def _put(session: Session, which: Which, version: int, own: Digest | None, notes: list[str], *, changed: bool) -> ExitCode:
    screen = Screen(as_json=session.as_json)
    says = f"({own[:12]})" if own is not None else "(the agent's own policy.yaml)"
    did = "holds from the next decision on" if changed else "is in force already, nothing was changed"
    screen.line(f"{which}: version {version} {says} {did}")
    _show_notes(screen, notes)
    screen.document({"tenant": which.tenant, "agent": which.agent, "version": version, "digest": own, "changed": changed,
                     "notes": [*notes]})  # fmt: skip
    return ExitCode.OK


def _show_notes(screen: Screen, notes: list[str]) -> None:
    for note in notes:
        screen.line(f"note: {note}", "yellow")


def _changed(one: Decided, ruling: Ruling, reason: str) -> dict[str, JsonValue]:
    return {
        "run": one.run_id, "call": one.path, "at": one.at.isoformat(), "tool": one.tool, "user": one.user, "version": one.version,
        "was": one.ruling, "was_because": one.reason, "would_be": ruling, "because": reason,
    }  # fmt: skip


def _kind(was: Ruling, would_be: Ruling) -> str:
    return f"{was} → {would_be}"


def _cells(one: dict[str, JsonValue]) -> list[str]:
    change = _kind(Ruling(str(one["was"])), Ruling(str(one["would_be"])))
    when = _moment(datetime.fromisoformat(str(one["at"])))
    return [
        change,
        *(str(one[name]) for name in ("tool", "user", "run", "call")),
        when,
        *(str(one[name]) for name in ("was_because", "because")),
    ]


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
