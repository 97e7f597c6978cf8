"""What kinds of names and ids are there, and which spellings are allowed?"""

from typing import Annotated, NewType

from pydantic import Field

TenantId = NewType("TenantId", str)
UserId = NewType("UserId", str)
RunId = NewType("RunId", str)
"""The Temporal workflow id of a run: `run:<tenant>:<idempotency key>`."""
ApprovalId = NewType("ApprovalId", str)
CallPath = NewType("CallPath", str)
"""Where in a run a tool call stands: `<turn>.<index>`, both counted from 1 and 0."""
EffectKey = NewType("EffectKey", str)
KeyId = NewType("KeyId", str)
"""An approver's public key by its own digest: `k-` and 16 hex digits."""
Digest = NewType("Digest", str)
"""SHA-256 in hex of a canonical form (`canonical.digest`)."""
Micros = NewType("Micros", int)
"""Money: millionths of a US dollar, always an integer."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Tenants and agents: they end up in ids, search attributes (at most 255 characters) and folder names."""
KEY = r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,119}$"
"""Idempotency keys and users: any order number or e-mail address, nothing that could forge a line or a path."""

PERSON = r"^[^\x00-\x1f\x7f]{1,120}$"
"""Who sent a message, in any script; control characters are in nobody's name, and PostgreSQL takes no U+0000."""

Name = Annotated[str, Field(pattern=NAME)]
Key = Annotated[str, Field(pattern=KEY)]
Person = Annotated[UserId, Field(pattern=PERSON)]


def run_id(tenant: TenantId, idempotency_key: str) -> RunId:
    """The run id (Temporal workflow id) of a tenant's idempotency key."""
    return RunId(f"run:{tenant}:{idempotency_key}")


def call_path(turn: int, index: int) -> CallPath:
    """The path of the `index`-th tool call (from 0) of a turn (from 1)."""
    return CallPath(f"{turn}.{index}")
