"""Does `spend` say what the providers would bill, after real runs, and do prices that change change nothing that was recorded?"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from activities.prices import price_of
from durable_agents import RunHandle, RunStatus
from durable_agents.domain.model_calls import Provider
from durable_agents.domain.prices import Usage, cost
from starter.cli.exit_codes import ExitCode
from starter.cli.main import main
from tests.support.scripts import refund, tell, turns
from tests.support.waiting import pending
from tests.support.world import AGENTS, World, settings_for
from worker import open_resources

WIRES: dict[str, Provider] = {"anthropic": "anthropic", "openai": "openai"}


def spend(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What `spend` tells a program, in a thread: it has an event loop of its own."""
    monkeypatch.setenv("DATABASE_URL", world.database.app)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ("spend", "--tenant", "acme", "--json", *arguments)).result() == ExitCode.OK
    return json.loads(capsys.readouterr().out)


async def billed(world: World) -> dict[str, int]:
    """The stand-in's bill, priced by the price list itself, per model."""
    costs: dict[str, int] = {}
    entries: Any = (await world.bill())["requests"]
    for entry in entries:
        price, usage = price_of(WIRES[entry["wire"]], entry["model"]), entry["usage"]
        assert price is not None
        used = Usage(
            input_tokens=usage["input_tokens"],
            cached_input_tokens=usage["cached_tokens"],
            cache_write_tokens=usage["cache_write_tokens"],
            output_tokens=usage["output_tokens"],
        )
        costs[entry["model"]] = costs.get(entry["model"], 0) + cost(price, used)
    return costs


async def test_spend_is_the_providers_bill_by_every_user_agent_and_step(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finance holds this report against the invoice; a micro-dollar of difference is a day of somebody's work."""
    await world.script(turns([refund("1.00"), tell()], ("echo", {"text": "x"}), "done"))
    async with world.worker():
        started = [
            await world.start(user=user, agent=agent) for user, agent in (("ann", "clerk"), ("bob", "clerk"), ("ann", "router"))
        ]
        results = [await run.result() for run in started]
    assert {result.status for result in results} == {RunStatus.COMPLETED}
    bill, totals = await billed(world), (await world.bill())["totals"]
    assert isinstance(totals, dict)
    by_model = spend(world, capsys, monkeypatch, "--by", "model")
    assert {group["model"]: group["cost_micros"] for group in by_model["groups"]} == bill
    assert len(bill) > 1
    total = by_model["total"]
    assert [total[name] for name in ("calls", "input_tokens", "output_tokens")] == [
        totals[name] for name in ("requests", "input_tokens", "output_tokens")
    ]
    assert (total["unknown_micros"], total["overrun_micros"], total["completed"]) == (0, 0, 3)
    assert total["per_completed_micros"] == -(-sum(bill.values()) // 3)
    (ledger,) = await world.rows("select sum(spent_micros) as cost_micros, sum(unknown_micros) as unknown_micros from envelope")
    assert {name: total[name] for name in ledger.keys()} == dict(ledger), "the ledger and the journal agree"  # noqa: SIM118
    by_run = spend(world, capsys, monkeypatch, "--by", "user,agent,run")["groups"]
    told = {group["run"]: (group["user"], group["agent"], group["cost_micros"]) for group in by_run}
    assert told == {
        run.id: (user, agent, result.spend.cost_micros)
        for run, result, user, agent in zip(started, results, ("ann", "bob", "ann"), ("clerk", "clerk", "router"), strict=True)
    }
    steps = spend(world, capsys, monkeypatch, "--by", "step,tool")["groups"]
    assert [(group["step"], group["tool"], group["calls"]) for group in steps] == [
        ("1", "issue_refund+tell_customer", 3), ("2", "echo", 3), ("3", "(answer)", 3),
    ]  # fmt: skip


async def test_what_spend_does_not_know_it_shows_as_held_and_the_bill_lies_between(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider bills an answer that was lost on the way; a report below the bill is a surprise at the end of the month."""
    step: JsonValue = {"text": "lost", "bill_then_drop": True}
    await world.script({"steps": [step, {"text": "done"}], "per": "global"})
    async with world.worker():
        run = await world.start()
        result = await run.result()
    assert result.status is RunStatus.COMPLETED
    total, bill = spend(world, capsys, monkeypatch)["total"], sum((await billed(world)).values())
    assert total["calls"] == 2
    assert total["cost_micros"] < bill <= total["cost_micros"] + total["unknown_micros"]
    assert total["unknown_micros"] == result.spend.unknown_micros
    (ledger,) = await world.rows("select sum(spent_micros) as cost_micros, sum(unknown_micros) as unknown_micros from envelope")
    assert (total["cost_micros"], total["unknown_micros"]) == tuple(ledger)


def priced(folder: Path, dollars: str) -> None:
    """State a price in the agent's file."""
    text = (AGENTS / "clerk" / "agent.yaml").read_text()
    price = f"    price: {{input: '{dollars}', output: '{dollars}'}}\n"
    (folder / "clerk" / "agent.yaml").write_text(text.replace("    max_tokens: 500\n", f"    max_tokens: 500\n{price}"))


async def under_price(world: World, stack: AsyncExitStack, folder: Path, dollars: str) -> World:
    """The same world after a new price was written and its workers were started anew."""
    priced(folder, dollars)
    settings = settings_for(world.database.app, world.settings.task_queue, world.model_url, folder)
    return replace(world, settings=settings, resources=await stack.enter_async_context(open_resources(settings)))


async def test_a_changed_price_changes_neither_a_recorded_cost_nor_a_run_under_way(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A price list is updated on a Tuesday; what Monday cost, and what a waiting run may still cost, stays what was agreed."""
    shutil.copytree(AGENTS / "clerk", tmp_path / "clerk")
    await world.script(turns(refund(), "done"))

    async def rest_of(run: RunHandle) -> int:
        (approval,) = await pending(run)
        await run.approve(approval.id, by="ann")
        return (await run.result()).spend.cost_micros

    async with AsyncExitStack() as stack:
        cheap = await under_price(world, stack, tmp_path, "1")
        async with cheap.worker():
            ended, waiting = await world.start(key="ended"), await world.start(key="waiting")
            recorded = await rest_of(ended)
            await pending(waiting)
        before = spend(world, capsys, monkeypatch, "--by", "run", "--run", "ended")
        dear = await under_price(world, stack, tmp_path, "10")
        async with dear.worker():
            under_way = await rest_of(waiting)
            anew = await world.start(key="anew")
            new = await rest_of(anew)
    assert spend(world, capsys, monkeypatch, "--by", "run", "--run", "ended") == before
    told = {group["run"]: group["cost_micros"] for group in spend(world, capsys, monkeypatch, "--by", "run")["groups"]}
    assert told == {ended.id: recorded, waiting.id: under_way, anew.id: new}
    used = await world.rows(
        "select run_id, sum((outcome -> 'usage' ->> 'input_tokens')::int + (outcome -> 'usage' ->> 'output_tokens')::int)"
        " as tokens from model_call group by run_id"
    )
    tokens = {row["run_id"]: row["tokens"] for row in used}
    assert recorded == tokens[ended.id], "one micro-dollar a token"
    assert under_way == tokens[waiting.id]
    assert new == 10 * tokens[anew.id]
    sources = await world.rows("select distinct terms #>> '{models,0,price,source}' as source from run")
    assert [row["source"] for row in sources] == ["agent.yaml"]
    await world.replay(waiting)
