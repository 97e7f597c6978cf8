"""With which keys do people sign, who registered them, and how are they ended?

Straight in the database where decisions are verified, so that a revoked key ends with the next decision.
"""

import re
from pathlib import Path

from activities import approver_keys, signatures
from activities.signatures import KeyFileError
from durable_agents.domain.identifiers import KeyId, TenantId
from durable_agents.domain.signatures import PUBLIC_KEY
from starter.cli.database import open_database
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.inputs import read_actor, read_name
from starter.cli.options import Session
from starter.cli.screen import Screen

_BUSY = "the database takes too long: look at `keys list` for what was done, and run the command again"
_HEADINGS = ("key", "approver", "public key", "added by", "added", "revoked by", "revoked")


def generate_key(session: Session, file: Path) -> ExitCode:
    """Make a key; the private half never leaves the file."""
    key = signatures.generate()
    try:
        signatures.write_key(key, file)
    except KeyFileError as error:
        raise CliError(str(error)) from None
    screen = Screen(as_json=session.as_json)
    screen.line(f"{file} holds the private key {key.key}: keep it to yourself, and have somebody register the public one")
    screen.facts([("public key", key.public)])
    screen.document({"key": key.key, "public_key": key.public, "file": str(file)})
    return ExitCode.OK


async def add(session: Session, tenant: str, approver: str, public: str, by: str | None) -> ExitCode:
    """Register a public key."""
    whose, who = TenantId(read_name(tenant, "a tenant")), read_actor(by)
    person = read_actor(approver)
    if not re.fullmatch(PUBLIC_KEY, public):
        raise CliError(f"{public[:20]!r} is no public key: give the 64 hex digits that `keys generate` printed")
    async with open_database(_BUSY) as database, database.transaction(whose) as connection:
        key = await approver_keys.add(connection, whose, person, public, who)
    if key is None:
        raise CliError(f"this key is registered in tenant {whose} already: see `keys list`, and make another", ExitCode.REFUSED)
    screen = Screen(as_json=session.as_json)
    screen.line(f"{key} is {person}'s in tenant {whose}, registered by {who}")
    screen.document({"key": key, "approver": person, "tenant": whose, "added_by": who})
    return ExitCode.OK


async def show(session: Session, tenant: str) -> ExitCode:
    """List all keys of a tenant."""
    whose = TenantId(read_name(tenant, "a tenant"))
    async with open_database(_BUSY) as database, database.transaction(whose) as connection:
        found = await approver_keys.everyone(connection, whose)
    screen = Screen(as_json=session.as_json)
    if found:
        rows = [
            (one.key, one.approver, one.public, one.added_by, f"{one.added_at:%Y-%m-%d %H:%M}", one.revoked_by or "-",
             "-" if one.revoked_at is None else f"{one.revoked_at:%Y-%m-%d %H:%M}")
            for one in found
        ]  # fmt: skip
        screen.table(_HEADINGS, rows)
    else:
        screen.line(f"tenant {whose} has no keys: `keys generate` makes one, `keys add` registers it")
    screen.document([one.model_dump(mode="json") for one in found])
    return ExitCode.OK


async def revoke(session: Session, tenant: str, key: str, by: str | None) -> ExitCode:
    """End a key."""
    whose, who = TenantId(read_name(tenant, "a tenant")), read_actor(by)
    async with open_database(_BUSY) as database, database.transaction(whose) as connection:
        done = await approver_keys.revoke(connection, whose, KeyId(key), who)
    if not done:
        raise CliError(f"tenant {whose} has no key {key[:40]!r} that is not revoked: see `keys list`", ExitCode.NOT_FOUND)
    screen = Screen(as_json=session.as_json)
    screen.line(f"{key} is revoked: nothing signed with it counts from now on")
    screen.document({"key": key, "tenant": whose, "revoked_by": who})
    return ExitCode.OK
