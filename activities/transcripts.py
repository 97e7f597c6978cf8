"""Where does a conversation lie, and how is it put together for a model?

Append-only, one row a message, at a place (turn, position) that follows from the run alone: writing twice is writing once.
Text over 32 KiB lies in an artifact under its digest and is put back when the conversation is loaded.
"""

from dataclasses import dataclass

import asyncpg

from activities.postgres import Connection
from durable_agents.domain.artifacts import PREVIEW, belongs_in_artifact
from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Digest, RunId, TenantId
from durable_agents.domain.messages import Block, Message, TextBlock, ToolResultBlock
from durable_agents.domain.prices import most_tokens
from durable_agents.domain.provenance import Label

_LAST_TURN = 2**31 - 1
CORRECTIONS = 1000
"""Positions from here on hold what the model was told before a call; tool results of a turn stand below."""


_UNTRUSTED = """
select run.label <> 'trusted' or exists (
    select from message m where m.tenant = $1 and m.run_id = $2 and (m.turn < $3 or (m.turn = $3 and m.position = 0))
    and coalesce(m.label, case when m.turn = 0 and m.position = 0 then 'trusted' end) is distinct from 'trusted')
from run where run.tenant = $1 and run.run_id = $2
"""


@dataclass(frozen=True)
class StoredMessage:
    """A message, whole, and where it stands."""

    turn: int
    position: int
    message: Message
    size: int
    """Bytes of its JSON with everything in it, in the longest spelling: what bounds its tokens (`most_tokens`)."""


async def put(
    connection: Connection,
    tenant: TenantId,
    run: RunId,
    turn: int,
    position: int,
    message: Message,
    label: Label = Label.UNTRUSTED,
) -> StoredMessage:
    """Write a message at its place; large texts become artifacts. Writing the same message again changes nothing.

    Raises:
        RuntimeError: another message stands there. Going on would leave history and transcript with different answers.
    """
    whole = message.model_dump(mode="json")
    size = most_tokens(whole)
    blocks = [await _lighten(connection, tenant, block) for block in message.blocks]
    body = message.model_copy(update={"blocks": tuple(blocks)}).model_dump(mode="json")
    key = digest(whole)
    written = await connection.fetchval(
        "insert into message (tenant, run_id, turn, position, digest, bytes, body, label)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing returning 1",
        tenant, run, turn, position, key, size, body, label,
    )  # fmt: skip
    if not written and await _digest_at(connection, tenant, run, turn, position) != key:
        raise RuntimeError(f"{run} has another message at {turn}/{position}")
    return StoredMessage(turn, position, message, size)


async def load(connection: Connection, tenant: TenantId, run: RunId) -> list[StoredMessage]:
    """The whole conversation in order, artifacts put back."""
    rows = await connection.fetch(
        "select turn, position, bytes, body from message where tenant = $1 and run_id = $2 order by turn, position", tenant, run
    )
    return [await _stored(connection, tenant, row) for row in rows]


async def load_one(connection: Connection, tenant: TenantId, run: RunId, turn: int, position: int) -> StoredMessage:
    """One message. Raises LookupError when it is not there."""
    row = await connection.fetchrow(
        "select turn, position, bytes, body from message where tenant = $1 and run_id = $2 and turn = $3 and position = $4",
        tenant, run, turn, position,
    )  # fmt: skip
    if row is None:
        raise LookupError(f"{run} has no message {turn}/{position}")
    return await _stored(connection, tenant, row)


async def label_at(connection: Connection, tenant: TenantId, run: RunId, turn: int | None = None) -> Label:
    """The label of all that the model has read and said when its answer of a turn is there; without a turn: until now."""
    untrusted = await connection.fetchval(_UNTRUSTED, tenant, run, _LAST_TURN if turn is None else turn)
    return Label.TRUSTED if untrusted is False else Label.UNTRUSTED  # without a run, nobody knows


async def put_artifact(connection: Connection, tenant: TenantId, text: str) -> Digest:
    """Store a text under its digest."""
    key = digest(text)
    await connection.execute("insert into artifact values ($1, $2, $3) on conflict do nothing", tenant, key, text)
    return key


async def get_artifact(connection: Connection, tenant: TenantId, key: Digest) -> str:
    """The text with this digest. Raises LookupError when it is not there."""
    text: str | None = await connection.fetchval("select body from artifact where tenant = $1 and digest = $2", tenant, key)
    if text is None:
        raise LookupError(f"there is no artifact {key}")
    return text


async def _digest_at(connection: Connection, tenant: TenantId, run: RunId, turn: int, position: int) -> str | None:
    found: str | None = await connection.fetchval(
        "select digest from message where tenant = $1 and run_id = $2 and turn = $3 and position = $4",
        tenant,
        run,
        turn,
        position,
    )
    return found


async def _stored(connection: Connection, tenant: TenantId, row: asyncpg.Record) -> StoredMessage:
    message = Message.model_validate(row["body"])
    blocks = [await _restore(connection, tenant, block) for block in message.blocks]
    return StoredMessage(row["turn"], row["position"], message.model_copy(update={"blocks": tuple(blocks)}), row["bytes"])


async def _lighten(connection: Connection, tenant: TenantId, block: Block) -> Block:
    if isinstance(block, TextBlock | ToolResultBlock) and belongs_in_artifact(block.text):
        key = await put_artifact(connection, tenant, block.text)
        return block.model_copy(update={"text": block.text[:PREVIEW], "artifact": key})
    return block


async def _restore(connection: Connection, tenant: TenantId, block: Block) -> Block:
    if isinstance(block, TextBlock | ToolResultBlock) and block.artifact is not None:
        text = await get_artifact(connection, tenant, block.artifact)
        return block.model_copy(update={"text": text, "artifact": None})
    return block
