"""Can a model, a tool's author or a deployment in the middle of a call bring about a second effect, or a run that never ends?"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.agents import AgentCatalog
from activities.heartbeat import Lease
from activities.model_calls import ModelActivities
from activities.tool_calls import ToolActivities
from durable_agents import RunStatus
from durable_agents.domain.approvals import ApprovalKind
from tests.support.crashers import open_crashers
from tests.support.scripts import Call, tell, turns
from tests.support.waiting import eventually, pending
from tests.support.world import World
from worker import Workers, build_worker

pytestmark = pytest.mark.timeout(90)
SEND: Call = ("send", {"text": "hello"})
HEAD = """
from datetime import timedelta
from pathlib import Path
from temporalio.exceptions import ApplicationError
from durable_agents import Effect, ToolContext, ToolFailed, tool
SENT = Path({sent!r})
"""
DOUBTFUL = '''
@tool(effect=Effect.{effect})
async def send(text: str) -> str:
    """Send something, and never learn what became of it."""
    with SENT.open("a") as book:
        book.write(text + "\\n")
    raise {error}
'''


ASKS = "rules:\n  - {ask: pay, when: args.amount > 100.0, ladder: l}\n  - {allow: '*'}\nladders: {l: {rungs: [{within: 4h}]}}\n"


@asynccontextmanager
async def vandal(
    world: World, folder: Path, tools: str, *, listed: str = "send", policy: str = ASKS, fallbacks: str = ""
) -> AsyncIterator[Workers]:
    """A worker whose one agent has these tools, as a deployment would put them there."""
    home = folder / "vandal"
    home.mkdir(parents=True)
    (home / "agent.yaml").write_text(
        "name: vandal\ndescription: d\nmodels:\n  - {provider: anthropic, model: claude-haiku-5-5, max_tokens: 20000}\n"
        f"tools: [{listed}]\nbudget: {{cost_usd: '50.00', turns: 20}}\n{fallbacks}"
    )
    (home / "policy.yaml").write_text(policy)
    (home / "prompt.md").write_text("You are a vandal.")
    (home / "tools.py").write_text(HEAD.format(sent=str(sent(folder))) + tools)
    resources = replace(world.resources, catalog=AgentCatalog.load([folder]))
    worker = build_worker(world.client.temporal, world.settings, resources, max_cached_workflows=0)
    async with worker:
        yield worker


def sent(folder: Path) -> Path:
    """Where the tools write what they have done; the same file before and after a deployment."""
    return folder.parent / "sent.txt"


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-inf", "1e999"])
async def test_an_amount_that_is_no_number_is_the_models_mistake(world: World, tmp_path: Path, amount: str) -> None:
    """Python's float takes "NaN" and NaN > 100 is false: it must neither pass the policy nor stop the run for ever."""
    pay = '@tool(effect=Effect.IDEMPOTENT)\nasync def pay(amount: float) -> str:\n    """Pay."""\n    return "paid"\n'
    await world.script(turns(("pay", {"amount": amount}), "done"))
    async with vandal(world, tmp_path / "a", pay, listed="pay"):
        run = await world.start(agent="vandal")
        async with asyncio.timeout(15):
            result = await run.result()
    assert result.status is RunStatus.COMPLETED
    (row,) = await world.rows("select outcome ->> 'result' as result, outcome ->> 'rule' as rule, tries from tool_dispatch")
    assert tuple(row) == ("refused", "invalid arguments", 0)


async def test_thousands_of_calls_in_one_answer_neither_wedge_the_run_nor_are_made(world: World, tmp_path: Path) -> None:
    """The server takes 2,000 open activities of a run: an answer with more must not fail every workflow task for ever."""
    sends: list[Call] = [("send", {"text": str(n)}) for n in range(2_200)]
    good = '@tool(effect=Effect.READ)\nasync def send(text: str) -> str:\n    """Send."""\n    SENT.touch()\n    return text\n'
    await world.script(
        {
            "steps": [{"tool_calls": [{"name": name, "arguments": given} for name, given in sends]}, {"text": "done"}],
            "per": "global",
        }
    )
    async with vandal(world, tmp_path / "a", good):
        run = await world.start(agent="vandal")
        async with asyncio.timeout(60):
            result = await run.result()
    assert result.status is RunStatus.COMPLETED
    assert not sent(tmp_path / "a").exists()
    await world.replay(run)


async def test_a_tool_removed_while_its_effect_is_open_leaves_the_question_open(world: World, tmp_path: Path) -> None:
    """A deployment between the crash and the next attempt must not turn `nobody knows` into `there is no such tool`."""
    await world.script(turns(SEND, "done"))
    doubtful = DOUBTFUL.format(effect="AT_MOST_ONCE", error='RuntimeError("the reply was lost")')
    async with vandal(world, tmp_path / "a", doubtful):
        run = await world.start(agent="vandal")
        (approval,) = await pending(run)
    assert approval.kind is ApprovalKind.OUTCOME
    await run.approve(approval.id, by="ann", reason="it was sent")
    other = '@tool(effect=Effect.READ)\nasync def other() -> str:\n    """Other."""\n    return ""\n'
    async with vandal(world, tmp_path / "b", other, listed="other"):

        async def tried() -> bool:
            description = await world.client.temporal.get_workflow_handle(run.id).describe()
            return any(one.last_failure.message for one in description.raw_description.pending_activities)

        await eventually(tried, within=10)
    async with vandal(world, tmp_path / "c", doubtful):
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    (row,) = await world.rows("select outcome ->> 'result' as result, outcome ->> 'rule' as rule from tool_dispatch")
    assert tuple(row) == ("ok", "resolved by ann")
    assert sent(tmp_path / "a").read_text() == "hello\n"


async def test_an_open_effect_keeps_the_class_it_was_sent_under(world: World, tmp_path: Path) -> None:
    """An author who declares a tool idempotent from today on has said nothing about what was sent yesterday."""
    await world.script(turns(SEND, "done"))
    run = await world.start(agent="vandal")
    hanging = (
        '@tool(effect=Effect.AT_MOST_ONCE, timeout=timedelta(hours=1))\nasync def send(text: str) -> str:\n    """Send."""\n'
        '    import asyncio\n    SENT.write_text(text + "\\n")\n    await asyncio.Event().wait()\n    return ""\n'
    )
    async with vandal(world, tmp_path / "a", hanging):

        async def is_sent() -> bool:
            return sent(tmp_path / "a").exists()

        await eventually(is_sent)
    loose = DOUBTFUL.format(effect="IDEMPOTENT", error='ToolFailed("no")')
    async with vandal(world, tmp_path / "b", loose):
        (approval,) = await pending(run)
        assert approval.kind is ApprovalKind.OUTCOME
        await run.deny(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert sent(tmp_path / "a").read_text() == "hello\n"


async def test_whatever_a_tool_raises_leaves_the_outcome_open(world: World, tmp_path: Path) -> None:
    """Also Temporal's own error, also a final one: the message may be out, so a human is asked and the run goes on."""
    await world.script(turns(SEND, "done"))
    error = 'ApplicationError("no", type="consent_mismatch", non_retryable=True)'
    async with vandal(world, tmp_path / "a", DOUBTFUL.format(effect="AT_MOST_ONCE", error=error)):
        run = await world.start(agent="vandal")
        (approval,) = await pending(run)
        assert approval.kind is ApprovalKind.OUTCOME
        await run.approve(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert sent(tmp_path / "a").read_text() == "hello\n"


async def test_a_cached_text_is_the_text_that_was_cached(world: World, tmp_path: Path) -> None:
    """Escaping twice would show the model another text the second time."""
    look = (
        '@tool(effect=Effect.READ, cache=timedelta(hours=1))\nasync def look() -> str:\n    """Look."""\n    return "a\\x00b"\n'
    )
    await world.script(turns(("look", {}), "done"))
    async with vandal(world, tmp_path / "a", look, listed="look"):
        for _ in range(2):
            await (await world.start(agent="vandal")).result()
    texts = await world.rows("select body -> 'blocks' -> 0 ->> 'text' as text from message where turn = 1 and position = 1")
    assert len(texts) == 2
    assert len({row["text"] for row in texts}) == 1


async def test_a_frozen_attempt_does_not_come_back_by_its_own_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that wakes up heartbeats first of all: the server has given it up all the same, and it must not send."""
    now = 100.0
    monkeypatch.setattr("activities.heartbeat.time.monotonic", lambda: now)

    def wake_up_after(seconds: float) -> None:
        nonlocal now
        lease = Lease()
        lease.require()
        now += seconds
        lease.renew()
        lease.require()

    environment = ActivityEnvironment()
    environment.run(wake_up_after, 1.0)
    with pytest.raises(ApplicationError, match="another attempt"):
        environment.run(wake_up_after, 5.0)


PAY = '''
@tool(effect=Effect.{effect}{more})
async def pay(amount: float) -> str:
    """Pay."""
    with SENT.open("a") as book:
        book.write(f"{{amount}}\\n")
    return "paid"
'''


async def test_a_cached_result_does_not_stand_in_for_the_consent_its_call_needs(world: World, tmp_path: Path) -> None:
    """What a human allowed once was that one call: whoever asks again is asked about again, cache or no cache."""
    look = PAY.format(effect="READ", more=", cache=timedelta(hours=1)")
    await world.script(turns(("pay", {"amount": 200}), "done"))
    async with vandal(world, tmp_path / "a", look, listed="pay"):
        for _ in range(2):
            run = await world.start(agent="vandal")
            (approval,) = await pending(run)
            await run.approve(approval.id, by="ann")
            assert (await run.result()).status is RunStatus.COMPLETED
    assert sent(tmp_path / "a").read_text() == "200.0\n", "the second one came from the cache, with consent"


async def test_a_run_keeps_the_policy_and_the_tools_it_was_admitted_with(world: World, tmp_path: Path) -> None:
    """A deployment with a looser policy and one more tool is for runs to come: this one still asks, and has no such tool."""
    more = '@tool(effect=Effect.READ)\nasync def more() -> str:\n    """More."""\n    return "more"\n'
    pay = PAY.format(effect="IDEMPOTENT", more=", trusted=True")
    both: list[Call] = [("pay", {"amount": 300}), ("more", {})]
    await world.script(turns(("pay", {"amount": 200}), both, "done"))
    async with vandal(world, tmp_path / "a", pay, listed="pay"):
        run = await world.start(agent="vandal")
        (first,) = await pending(run)
    async with vandal(world, tmp_path / "b", pay + more, listed="pay, more", policy="rules:\n  - {allow: '*'}\n"):
        await run.approve(first.id, by="ann")

        async def asked_again() -> str | None:
            return next((one.id for one in await run.pending_approvals() if one.id != first.id), None)

        await run.deny(await eventually(asked_again), by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED
    assert sent(tmp_path / "a").read_text() == "200.0\n"
    rows = await world.rows("select outcome ->> 'rule' as rule from tool_dispatch where turn = 2 order by index")
    assert [row["rule"] for row in rows] == ["denied by ann", "unknown tool"]


async def test_an_open_effect_is_not_refused_by_what_its_tool_is_called_now(world: World, tmp_path: Path) -> None:
    """The policy denies egress, and since today the tool calls itself that: what was sent was sent, so a human is asked."""
    await world.script(turns(SEND, "done"))
    run = await world.start(agent="vandal")
    policy = "rules:\n  - {deny: send, when: risk == 'egress'}\n  - {allow: '*'}\n"
    hanging = (
        '@tool(effect=Effect.IDEMPOTENT, timeout=timedelta(hours=1))\nasync def send(text: str) -> str:\n    """Send."""\n'
        '    import asyncio\n    SENT.write_text(text + "\\n")\n    await asyncio.Event().wait()\n    return ""\n'
    )
    async with vandal(world, tmp_path / "a", hanging, policy=policy):

        async def is_sent() -> bool:
            return sent(tmp_path / "a").exists()

        await eventually(is_sent)
    renamed = (
        '@tool(effect=Effect.IDEMPOTENT, risk="egress")\nasync def send(text: str) -> str:\n    """Send."""\n    return text\n'
    )
    async with vandal(world, tmp_path / "b", renamed, policy=policy):
        (approval,) = await pending(run)
        assert approval.kind is ApprovalKind.OUTCOME
        await run.approve(approval.id, by="ann")
        assert (await run.result()).status is RunStatus.COMPLETED


async def test_an_earlier_answer_that_carried_an_effect_is_not_given_again(world: World, tmp_path: Path) -> None:
    """`Paid` was true then; said again without paying it is a lie."""
    ways = "fallbacks:\n  - {on: [any], earlier_answer: true}\n  - {on: [any], text: I do not know.}\n"
    bad: JsonValue = {"status": 400, "error": {"type": "invalid_request_error"}}
    paying: JsonValue = {"tool_calls": [{"name": "pay", "arguments": {"amount": 5}}]}
    await world.script({"steps": [paying, {"text": "Paid."}, bad], "per": "global"})
    async with vandal(world, tmp_path / "a", PAY.format(effect="IDEMPOTENT", more=""), listed="pay", fallbacks=ways):
        first = await (await world.start(agent="vandal")).result()
        second = await (await world.start(agent="vandal")).result()
    assert (first.status, first.output) == (RunStatus.COMPLETED, "Paid.")
    assert (second.status, second.output) == (RunStatus.DEGRADED, "I do not know.")


@pytest.mark.parametrize("error", ["ToolFailed", "ToolUnavailable", "RuntimeError"])
async def test_a_secret_in_a_tools_error_reaches_neither_history_nor_database_nor_model(
    world: World, tmp_path: Path, error: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTP clients quote the address in their errors, and the key with it."""
    monkeypatch.setenv("VANDAL_KEY", "canary-4711-secret")
    leaky = (
        "from durable_agents import ToolUnavailable\n"
        '@tool(effect=Effect.AT_MOST_ONCE)\nasync def send(text: str, *, context: ToolContext) -> str:\n    """Send."""\n'
        f"    raise {error}('401 for https://x.example/?key=' + context.settings['key'])\n"
    )
    await world.script(turns(SEND, "done"))
    with caplog.at_level("DEBUG"):
        async with vandal(world, tmp_path / "a", leaky, fallbacks="settings: {key: {env: VANDAL_KEY}}\n"):
            run = await world.start(agent="vandal")
            if error == "RuntimeError":
                (approval,) = await pending(run)
                await run.deny(approval.id, by="ann")
            assert (await run.result()).status is RunStatus.COMPLETED
    history = (await world.history(run)).to_json()
    rows = await world.rows("select body::text as text from message union all select outcome::text from tool_dispatch")
    assert "canary" not in history + caplog.text + "".join(row["text"] for row in rows)
    if error == "ToolFailed":
        assert any("?key=[key]" in row["text"] for row in rows)


async def test_nothing_is_sent_without_the_lease() -> None:
    """The SDK cancels an attempt that was given up, in its own time; before anything is sent we ask ourselves."""
    lease = Lease()
    lease._lost = True
    nothing: Any = None
    for send in (ToolActivities(nothing, nothing)._act, ModelActivities(nothing, nothing, nothing)._send):
        with pytest.raises(ApplicationError, match="another attempt"):
            await send(nothing, lease)


async def test_a_frozen_attempt_sends_nothing_when_it_goes_on(world: World, model_url: str) -> None:
    """A human has found out that nothing was sent; then the frozen worker wakes up, and has all the time it wants."""
    await world.script(turns(tell(), "done"))
    run = await world.start()
    async with open_crashers() as crashers:
        frozen = await crashers.start(world, "after_tool_dispatch#1", world.settings.task_queue, model_url, "SIGSTOP")

        async def is_frozen() -> bool:
            return stopped(frozen.pid)

        await eventually(is_frozen)
        async with world.worker():
            (approval,) = await pending(run)
            await run.deny(approval.id, by="ann", reason="nothing was sent")
            assert (await run.result()).status is RunStatus.COMPLETED
        frozen.send(signal.SIGCONT)
        await world.script(turns(("echo", {"text": "a"}), ("echo", {"text": "b"}), "done"))
        assert (await (await world.start()).result()).status is RunStatus.COMPLETED, "by the worker that was frozen"
        assert (await world.shop_counts())["messages"] == 0


def stopped(pid: int) -> bool:
    """Is the process stopped by a signal?"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
