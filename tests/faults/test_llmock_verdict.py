"""What does somebody else's judge of retrying clients say about whole runs, whatever its provider does to them?

`llmock` speaks both providers' HTTP, fails as it is told, and judges from what it saw: waits cut short, needless tries, storms,
no backoff, half answers taken. A scenario is a model's name here, so all of them run at once and each has its own breaker.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from llmock.chaos import ChaosSettings, StreamChaos
from llmock.journal import RequestRecord
from llmock.main import create_app
from llmock.ratelimit import LimitSettings
from llmock.scenarios import Behavior, Delay, Fail, Match, StreamFault, ToolFault
from llmock.simulation import MockResponseSettings
from llmock.verdict import Verdict, judge

from durable_agents import RunResult, RunStatus
from durable_agents.domain.model_calls import Provider
from starter.demo.loopback import serve
from tests.support.world import World, open_world, settings_for

PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")
BODY = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
ALWAYS = None


@dataclass(frozen=True)
class Scenario:
    """What llmock does to every run of one model, and what must come of it."""

    name: str
    behaviours: tuple[Behavior, ...]
    requests: int
    status: RunStatus = RunStatus.COMPLETED
    timeout: str = "15s"


def _failing(status: int, times: int | None = 2, wait: float | None = None, code: str | None = None) -> tuple[Behavior, ...]:
    return (Fail(status, times=times, retry_after=wait, code=code),)


RETRYABLE = (408, 409, 429, 500, 502, 503, 504, 529)
HOPELESS = (400, 401, 402, 403, 404, 413, 422)
SCENARIOS = [
    *(Scenario(f"twice-{status}", _failing(status), 3) for status in RETRYABLE),
    *(Scenario(f"refused-{status}", _failing(status, ALWAYS), 1, RunStatus.FAILED) for status in HOPELESS),
    Scenario("says-when", _failing(429, 1, wait=2.0), 2),
    Scenario("says-when-in-milliseconds", _failing(503, 1, wait=1.4), 2),
    Scenario("down", _failing(503, ALWAYS), 3, RunStatus.FAILED),
    Scenario("down-without-a-word", _failing(500, ALWAYS), 3, RunStatus.FAILED),
    Scenario("overflows", _failing(400, ALWAYS, code="context_length_exceeded"), 1, RunStatus.FAILED),
    Scenario("late", (Delay(0.5, times=1),), 1),
    Scenario("too-late", (Delay(2.5, times=1),), 2, timeout="1s"),
    *(Scenario(f"cut-{kind}", (StreamFault(kind, times=ALWAYS),), 1) for kind in ("disconnect", "truncate", "malformed")),
    Scenario("no-such-tool", (ToolFault("unknown_tool"),), 2),
    Scenario("broken-arguments", (ToolFault("malformed_arguments"),), 2),
]


def quiet(*, chaos: ChaosSettings | None = None, limits: LimitSettings | None = None, tools: str = "auto") -> FastAPI:
    """A llmock that does nothing it was not told to, whatever this process's environment says."""
    return create_app(chaos or ChaosSettings(), MockResponseSettings(tool_mode=tools), limits or LimitSettings(), StreamChaos())


def seen(app: FastAPI) -> list[RequestRecord]:
    """What was asked, in order; without waiting, which would block the loop that serves it."""
    records: list[RequestRecord] = app.state.llmock.journal.records()
    return records


def write_agent(folder: Path, name: str, provider: Provider, model: str, timeout: str = "15s") -> None:
    """An agent with one model and one tool."""
    home = folder / name
    home.mkdir(parents=True)
    entry = f"{{provider: {provider}, model: {model}, max_tokens: 100, timeout: {timeout}, price: {{input: 1, output: 2}}}}"
    (home / "agent.yaml").write_text(
        f'name: {name}\ndescription: A scenario.\nmodels: [{entry}]\ntools: [echo]\nbudget: {{cost_usd: "1.00", turns: 9}}\n'
    )
    (home / "prompt.md").write_text("Answer.")
    (home / "policy.yaml").write_text("rules:\n  - allow: echo\n")
    (home / "tools.py").write_text(
        "from durable_agents import Effect, tool\n\n\n"
        '@tool(effect=Effect.READ)\nasync def echo(text: str) -> str:\n    """Say a text again."""\n    return text\n'
    )


async def run_all(world: World, app: FastAPI, agents: Path, names: Iterable[str]) -> dict[str, RunResult]:
    """One run of each agent, all at once, against this llmock."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(app))
        settings = settings_for(world.database.app, world.settings.task_queue, url, agents)
        settings = settings.model_copy(update={"anthropic_base_url": f"{url}/anthropic"})
        own = await stack.enter_async_context(
            open_world(world.endpoints, world.database, world.client, settings, url, world.shop_url)
        )
        await stack.enter_async_context(own.worker(cached=100))
        asked = list(names)
        return dict(zip(asked, await asyncio.gather(*(_run(own, name) for name in asked)), strict=True))


async def _run(world: World, agent: str) -> RunResult:
    """Each run asks in words of its own: the judge takes the same body for a retry, whoever sends it."""
    return await (await world.start({"run": agent}, agent=agent)).result()


def of_model(records: Iterable[RequestRecord], model: str, provider: Provider) -> list[RequestRecord]:
    """One run's requests."""
    return [record for record in records if (record.model, record.provider) == (model, provider)]


def approve(verdict: Verdict) -> None:
    """No FAIL, and no WARN but the guess at backoff, from gaps that a busy machine stretches; our least waits are certain."""
    verdict.assert_ok()
    assert {finding.code for finding in verdict.warnings} <= {"no_backoff"}, verdict.render()
    for call in verdict.calls:
        for tries, (before, after) in enumerate(pairwise(call.attempts)):
            if before.status >= 400:
                assert after.started_at - before.ended_at >= 2**tries, verdict.render()


async def test_the_verdict_has_no_fail_whatever_the_provider_does(world: World, tmp_path: Path) -> None:
    """60 runs: an outside judge finds every wait kept, every try spent where it can help, and no half answer taken."""
    app = quiet(tools="off")
    for provider in PROVIDERS:
        for one in SCENARIOS:
            write_agent(tmp_path, f"{one.name}-{provider}", provider, one.name, one.timeout)
            for behaviour in one.behaviours:
                match = {**vars(behaviour.match), "provider": provider, "model": one.name}
                app.state.llmock.scenarios.add(type(behaviour)(**{**vars(behaviour), "match": Match(**match)}))
    cases = [(one, provider) for one in SCENARIOS for provider in PROVIDERS]
    results = await run_all(world, app, tmp_path, [f"{one.name}-{provider}" for one, provider in cases])
    approve(judge(seen(app)))
    assert not any(record.stream for record in seen(app))  # an answer comes whole or not at all: none of its streams to cut
    for one, provider in cases:
        requests = of_model(seen(app), one.name, provider)
        where = f"{one.name} at {provider}: {results[f'{one.name}-{provider}']}, {requests}"
        assert results[f"{one.name}-{provider}"].status is one.status, where
        assert len(requests) == one.requests, where
        if isinstance(one.behaviours[0], Fail):  # the judge has seen tries of one call, not calls that each failed once
            assert [len(call.attempts) for call in judge(requests).calls] == [one.requests], where


async def test_a_quota_that_is_used_up_is_waited_for_and_not_tested(world: World, tmp_path: Path) -> None:
    """The limit is shared by all runs of a key: who is told to wait must not be overtaken by others who ask at once."""
    app = quiet(limits=LimitSettings(rpm=60), tools="off")
    for provider in PROVIDERS:
        write_agent(tmp_path, f"a-{provider}", provider, "m")
        write_agent(tmp_path, f"b-{provider}", provider, "m")
        key = "test-key" if provider == "anthropic" else "Bearer test-key"
        while app.state.llmock.limiter.admit(provider, key, 1).allowed:
            pass
    results = await run_all(world, app, tmp_path, [f"{name}-{provider}" for name in "ab" for provider in PROVIDERS])
    approve(judge(seen(app)))
    assert {result.status for result in results.values()} == {RunStatus.COMPLETED}, results
    assert any(record.status == 429 for record in seen(app))


async def test_failures_by_chance_bring_no_needless_try(world: World, tmp_path: Path) -> None:
    """Nobody chose which request fails, or how: a mixture no table of cases thought of."""
    app = quiet(chaos=ChaosSettings(error_rates={429: 0.15, 500: 0.15, 529: 0.15, 400: 0.1}), tools="off")
    names = [(f"{n}-{provider}", provider) for n in range(6) for provider in PROVIDERS]
    for name, provider in names:
        write_agent(tmp_path, name, provider, name)
    results = await run_all(world, app, tmp_path, [name for name, _ in names])
    verdict = judge(seen(app))
    approve(verdict)
    assert verdict.faults, "none of 12 has a chance below 1 in 1000"
    assert {result.status for result in results.values()} <= {RunStatus.COMPLETED, RunStatus.FAILED}


@pytest.mark.parametrize(
    ("fault", "body", "tries", "code"),
    [
        (Fail(429, retry_after=2.0), BODY, 2, "retry_after_ignored"),
        (Fail(401), BODY, 2, "retried_non_retryable"),
        (Fail(500, times=ALWAYS), BODY, 11, "retry_storm"),
        (StreamFault("truncate"), {**BODY, "stream": True}, 1, "truncated_stream_accepted"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_the_judge_fails_a_client_that_deserves_it(fault: Behavior, body: dict[str, object], tries: int, code: str) -> None:
    """A verdict that nobody can fail says nothing: each of its FAILs is shown to be one, on the naive loop many ship."""
    app = quiet()
    app.state.llmock.scenarios.add(fault)
    async with serve(app) as url, httpx2.AsyncClient() as http:
        for _ in range(tries):
            await http.post(f"{url}/anthropic/v1/messages", json=body)
    verdict: Verdict = judge(seen(app))
    assert code in {finding.code for finding in verdict.errors}, verdict.render()
    with pytest.raises(AssertionError, match="FAIL"):
        verdict.assert_ok()
    starts = [record.started_at for record in seen(app)]
    assert all(after - before < 1 for before, after in pairwise(starts))
