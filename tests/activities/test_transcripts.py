"""Does a conversation come back whole, in order, once, whatever text is in it?"""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import JsonValue

from activities.postgres import Database
from activities.transcripts import CORRECTIONS, get_artifact, load, load_one, put, put_artifact
from durable_agents.domain.artifacts import INLINE_LIMIT, PREVIEW
from durable_agents.domain.canonical import digest, escape_json, escape_text, restore_text
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.messages import Message, OpaqueBlock, TextBlock, ToolCallBlock, ToolResultBlock
from durable_agents.domain.prices import most_tokens
from tests.support.world import TestDatabase

ACME, RIVAL, RUN = TenantId("acme"), TenantId("rival"), RunId("run:acme:k")


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Database]:
    """A database in which two tenants have a run of the same id."""
    found = await Database.open(database.app)
    for tenant in (ACME, RIVAL):
        async with found.transaction(tenant) as connection:
            await connection.execute(
                "insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)"
                " values ($1, $2, 'first', 'd', 'a', 'v', 'u', '{}')", tenant, RUN,
            )  # fmt: skip
    yield found
    await found.close()


def said(text: str) -> Message:
    """Something the model said."""
    return Message(role="assistant", blocks=(TextBlock(text=text),))


async def stored(database: Database, query: str) -> object:
    """One value, as the tenant sees it."""
    async with database.transaction(ACME) as connection:
        return await connection.fetchval(query)


async def test_writing_twice_is_writing_once(opened: Database) -> None:
    """An attempt that crashed after its commit is tried again; the model must not read an answer twice."""
    for _ in range(3):
        async with opened.transaction(ACME) as connection:
            await put(connection, ACME, RUN, 1, 0, said("hello"))
    assert await stored(opened, "select count(*) from message") == 1


async def test_another_message_at_a_taken_place_is_an_error(opened: Database) -> None:
    """Swallowed, history would go on with an answer that the transcript does not have."""
    async with opened.transaction(ACME) as connection:
        await put(connection, ACME, RUN, 1, 0, said("hello"))
    with pytest.raises(RuntimeError, match=r"run:acme:k has another message at 1/0"):
        await _put(opened, said("other"))
    assert await stored(opened, "select body->'blocks'->0->>'text' from message") == "hello"


async def _put(database: Database, message: Message) -> None:
    async with database.transaction(ACME) as connection:
        await put(connection, ACME, RUN, 1, 0, message)


async def test_ten_writers_of_one_message_write_it_once(opened: Database) -> None:
    """Two workers may hold the same attempt for a moment."""
    await asyncio.gather(*(_put(opened, said("x" * 100_000)) for _ in range(10)))
    assert await stored(opened, "select count(*) from message") == 1
    assert await stored(opened, "select count(*) from artifact") == 1


async def test_a_conversation_comes_back_in_order_whatever_order_it_was_written_in(opened: Database) -> None:
    """Parallel tool calls end as they like; the model reads them in the order it asked."""
    places = [(0, 0), (0, CORRECTIONS + 1), (1, 0), (1, 1), (1, 2), (1, 10), (1, CORRECTIONS + 2), (2, 0), (10, 0)]
    for turn, position in reversed(places):
        async with opened.transaction(ACME) as connection:
            await put(connection, ACME, RUN, turn, position, said(f"{turn}/{position}"))
    async with opened.transaction(ACME) as connection:
        conversation = await load(connection, ACME, RUN)
    assert [(one.turn, one.position) for one in conversation] == places
    assert [one.message.text() for one in conversation] == [f"{turn}/{position}" for turn, position in places]


async def test_a_large_text_lies_in_an_artifact_and_comes_back_whole(opened: Database) -> None:
    """Rows stay small, the model reads everything, and what bounds its tokens is the whole size."""
    large = "line ü\n" * 15_000
    message = Message(
        role="tool",
        blocks=(TextBlock(text=large), ToolResultBlock(call_id="c", tool="t", text=large + "!"), TextBlock(text="small")),
    )
    async with opened.transaction(ACME) as connection:
        put_ = await put(connection, ACME, RUN, 1, 0, message)
        found = await load_one(connection, ACME, RUN, 1, 0)
        assert found == put_
        assert found.message == message
        assert found.size == most_tokens(message.model_dump(mode="json")) > 200_000
        assert await get_artifact(connection, ACME, digest(large)) == large
        body = await connection.fetchval("select body from message")
        row_size = await connection.fetchval("select octet_length(body::text) from message")
    assert [len(block["text"]) for block in body["blocks"]] == [PREVIEW, PREVIEW, 5]
    assert row_size < 3_000
    assert await stored(opened, "select count(*) from artifact") == 2


@pytest.mark.parametrize(
    ("text", "artifacts"), [("x" * INLINE_LIMIT, 0), ("x" * (INLINE_LIMIT + 1), 1), ("ü" * (INLINE_LIMIT // 2 + 1), 1)]
)
async def test_the_limit_is_in_bytes(opened: Database, text: str, artifacts: int) -> None:
    """What is paid for, stored and sent is bytes, not characters."""
    await _put(opened, said(text))
    assert await stored(opened, "select count(*) from artifact") == artifacts


async def test_any_text_is_storable_once_it_is_escaped(opened: Database) -> None:
    """A model that answers with U+0000 must not wedge its run; escaped at the door it comes back as it was."""
    nasty = "a\x00b\ud800c\x1ad\x1a0000e\U0001f600"
    arguments: JsonValue = escape_json({nasty: [nasty]})
    assert isinstance(arguments, dict)
    message = Message(
        role="assistant",
        blocks=(
            TextBlock(text=escape_text(nasty)),
            TextBlock(text=escape_text(nasty * 5_000)),
            ToolCallBlock(id="c", tool="t", arguments=arguments),
            OpaqueBlock(provider="anthropic", body=arguments),
        ),
    )
    async with opened.transaction(ACME) as connection:
        await put(connection, ACME, RUN, 1, 0, message)
        (found,) = await load(connection, ACME, RUN)
    assert found.message == message
    first, second = found.message.blocks[:2]
    assert isinstance(first, TextBlock)
    assert isinstance(second, TextBlock)
    assert (restore_text(first.text), restore_text(second.text)) == (nasty, nasty * 5_000)


@pytest.mark.parametrize("text", ["\x00", "\x00" * INLINE_LIMIT + "x"])
async def test_text_that_passed_no_door_is_refused_not_mangled(opened: Database, text: str) -> None:
    """An error at once is better than a text that is silently another."""
    with pytest.raises(asyncpg.PostgresError):
        await _put(opened, said(text))


async def test_nobody_elses_message_or_artifact_is_found(opened: Database) -> None:
    """The run's id is the same; the tenant is not."""
    async with opened.transaction(ACME) as connection:
        await put(connection, ACME, RUN, 1, 0, said("x" * 100_000))
        key = await put_artifact(connection, ACME, "text")
    async with opened.transaction(RIVAL) as connection:
        assert await load(connection, RIVAL, RUN) == []
        assert await load(connection, ACME, RUN) == []
        with pytest.raises(LookupError, match="no artifact"):
            await get_artifact(connection, ACME, key)
        with pytest.raises(LookupError, match="has no message 1/0"):
            await load_one(connection, ACME, RUN, 1, 0)
