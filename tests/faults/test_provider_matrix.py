"""Does every way a provider fails have its one answer, through both real SDKs: kind, requests, waiting, money, end?

One agent per row and provider, whose model's name is the row. A loopback provider fails as the row says, twice, and then answers.
"""

import asyncio
import json
import socket
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_agents import RunResult, RunStatus
from durable_agents.domain.model_calls import Provider
from starter.demo import stand_in_model
from starter.demo.loopback import NoAnswer, serve
from tests.support.model_attempts import write_agent
from tests.support.scripts import turns
from tests.support.waiting import eventually
from tests.support.world import World, open_world, settings_for

FAILURES_BEFORE_SUCCESS = 2


@dataclass(frozen=True)
class Row:
    """How a provider fails, and what must follow."""

    name: str
    kind: str
    retried: bool
    held: bool = False
    """Could the failed requests have been billed?"""
    status: int = 500
    type: str = ""
    """The error's type, on both wires."""
    code: str = ""
    """The error's code, on OpenAI's wire; the type when there is none."""
    detail: str = ""
    """The code that says more than the status: `code` on OpenAI's wire, `details.error_code` on Anthropic's."""
    headers: dict[str, str] = field(default_factory=dict)
    raw: str | None = None
    drop: bool = False
    hang: bool = False
    unfinished: bool = False
    """A whole answer, but for why it stopped."""
    wait: float = 0


LIMITED = ("rate_limit_error", "rate_limit_exceeded")

ROWS = [
    Row(
        "rate-limit",
        "rate_limited",
        True,
        status=429,
        headers={"retry-after": "2"},
        wait=2,
        type=LIMITED[0],
        code=LIMITED[1],
    ),
    Row(
        "rate-limit-ms",
        "rate_limited",
        True,
        status=429,
        headers={"retry-after-ms": "1500"},
        wait=1.5,
        type=LIMITED[0],
        code=LIMITED[1],
    ),
    Row(
        "nonsense-wait",
        "rate_limited",
        True,
        status=429,
        headers={"retry-after": "soon"},
        type=LIMITED[0],
        code=LIMITED[1],
    ),
    Row(
        "no-retry",
        "rate_limited",
        False,
        status=429,
        headers={"x-should-retry": "false"},
        type=LIMITED[0],
        code=LIMITED[1],
    ),
    Row("overloaded", "overloaded", True, status=529, type="overloaded_error", code="slow_down"),
    Row("server-error", "provider_error", True, held=True, status=500, type="api_error", code="server_error"),
    Row("bad-gateway", "provider_error", True, held=True, status=502, raw="<html>502</html>"),
    Row("request-timeout", "provider_timeout", True, held=True, status=408, type="timeout_error", code="timeout"),
    Row("conflict", "conflict", True, status=409, type="conflict_error"),
    Row("cut", "provider_timeout", True, held=True, drop=True),
    Row("html", "bad_response", True, held=True, status=200, raw="<html>hello</html>"),
    Row("bad-request", "bad_request", False, status=400, type="invalid_request_error", code="invalid_value"),
    Row("unprocessable", "bad_request", False, status=422, type="invalid_request_error", code="invalid_value"),
    Row("retired", "bad_request", False, status=404, type="not_found_error", code="model_not_found"),
    Row("no-auth", "unauthorized", False, status=401, type="authentication_error", code="invalid_api_key"),
    Row("forbidden", "unauthorized", False, status=403, type="permission_error", code="forbidden"),
    Row("payment", "out_of_money", False, status=402, type="billing_error", code="billing_hard_limit_reached"),
    Row("spend-limit", "out_of_money", False, status=429, type=LIMITED[0], detail="enforced_spend_limit_reached"),
    Row("no-credit", "out_of_money", False, status=429, type=LIMITED[0], detail="credit_balance_exhausted"),
    Row("limit-as-400", "out_of_money", False, status=400, type="invalid_request_error", detail="workspace_spend_limit_reached"),
    Row("too-long", "context_too_long", False, status=400, type="invalid_request_error", detail="context_length_exceeded"),
    Row("slow-down", "overloaded", True, status=503, type="server_error", detail="slow_down"),
    Row("gateway-timeout", "provider_error", True, held=True, status=504, raw="<html>504</html>"),
    Row("error-in-200", "overloaded", True, held=True, status=200, type="overloaded_error", code="server_is_overloaded"),
    Row("unfinished", "bad_response", True, held=True, unfinished=True),
    Row("silent", "provider_timeout", True, held=True, hang=True),
    Row("too-large", "request_too_large", False, status=413, type="request_too_large", code="request_too_large"),
]
PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")


@dataclass(frozen=True)
class Paid:
    """An answer that was billed and is none, or not yet; what it changes in a good one, on each wire that can say it."""

    name: str
    requests: int
    end: str
    """The failure's kind; empty: the run completes."""
    anthropic: dict[str, object] | None = None
    openai: dict[str, object] | None = None
    times: int = FAILURES_BEFORE_SUCCESS


def _incomplete(reason: str) -> dict[str, object]:
    return {"status": "incomplete", "incomplete_details": {"reason": reason}}


PAID = [
    Paid("truncated", 2, "truncated", {"stop_reason": "max_tokens"}, _incomplete("max_output_tokens")),
    Paid("truncated-once", 2, "", {"stop_reason": "max_tokens"}, _incomplete("max_output_tokens"), times=1),
    Paid("refused", 1, "refused", {"stop_reason": "refusal"}, _incomplete("content_filter")),
    Paid("empty", 2, "empty_answer", {"content": []}, {"output": []}),
    Paid("empty-once", 2, "", {"content": []}, {"output": []}, times=1),
    Paid("full", 1, "context_too_long", {"stop_reason": "model_context_window_exceeded"}),
    Paid("paused", 3, "", {"stop_reason": "pause_turn"}),
    Paid("no-usage", 1, "", {"usage": None}, {"usage": None}),
    Paid("absurd-usage", 1, "", {"usage": {"input_tokens": 1e30, "output_tokens": -1}}, {"usage": {"input_tokens": "many"}}),
]


def provider_app(seen: Counter[str]) -> Starlette:
    """Fails as the model's name says, twice, then answers 'ok'."""
    rows = {row.name: row for row in ROWS}

    async def answer(request: Request) -> Response:
        model = json.loads(await request.body())["model"]
        wire = "anthropic" if request.url.path.endswith("messages") else "openai"
        seen[f"{model}/{wire}"] += 1
        if seen[f"{model}/{wire}"] > FAILURES_BEFORE_SUCCESS:
            return Response(json.dumps(_success(wire, model)), media_type="application/json")
        row = rows[model]
        if row.hang:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        if row.drop or row.hang:
            return NoAnswer()
        if row.unfinished:
            cut = {name: value for name, value in _success(wire, model).items() if name not in {"stop_reason", "status"}}
            return Response(json.dumps(cut), media_type="application/json")
        if row.raw is not None:
            return Response(row.raw, row.status, row.headers, "text/html")
        said = row.detail or row.code or row.type
        more = {"code": said} if wire == "openai" else {"details": {"error_code": row.detail}} if row.detail else {}
        error = {"message": "the row says so", "type": row.type, **more}
        return Response(json.dumps({"type": "error", "error": error}), row.status, row.headers, "application/json")

    return Starlette(routes=[Route("/v1/messages", answer, methods=["POST"]), Route("/v1/responses", answer, methods=["POST"])])


@pytest.mark.timeout(110)
async def test_every_row_of_the_provider_table_has_its_one_answer_through_both_sdks(world: World, tmp_path: Path) -> None:
    """Two runs a row: what passes is tried again after the wait, what cannot succeed is asked once; money as the table says."""
    for row in ROWS:
        for provider in PROVIDERS:
            _write_agent(tmp_path / "agents", f"{row.name}-{provider}", provider, row.name, "1s" if row.hang else "15s")
    seen: Counter[str] = Counter()
    async with serve(provider_app(seen)) as url:
        settings = settings_for(world.database.app, world.settings.task_queue, url, tmp_path / "agents")
        async with open_world(world.endpoints, world.database, world.client, settings, url, world.shop_url) as matrix:
            async with matrix.worker(cached=100):
                cases = [(row, provider) for row in ROWS for provider in PROVIDERS]
                results = await asyncio.gather(*(_run(matrix, row, provider) for row, provider in cases))
            for (row, provider), result in zip(cases, results, strict=True):
                await _check(matrix, row, provider, result, seen[f"{row.name}/{provider}"])


def paid_app(seen: Counter[str]) -> Starlette:
    """Answers as the model's name says, as often as it says, then with 'ok'."""
    rows = {row.name: row for row in PAID}

    async def answer(request: Request) -> Response:
        model = json.loads(await request.body())["model"]
        wire = "anthropic" if request.url.path.endswith("messages") else "openai"
        seen[f"{model}/{wire}"] += 1
        spoilt = getattr(rows[model], wire) if seen[f"{model}/{wire}"] <= rows[model].times else {}
        return Response(json.dumps({**_success(wire, model), **spoilt}), media_type="application/json")

    return Starlette(routes=[Route("/v1/messages", answer, methods=["POST"]), Route("/v1/responses", answer, methods=["POST"])])


async def test_every_paid_answer_that_is_none_has_its_one_end_through_both_sdks(world: World, tmp_path: Path) -> None:
    """What was billed is settled, never held nor asked for blindly again: told to the model once, gone on with, or ended."""
    cases = [(row, provider) for row in PAID for provider in PROVIDERS if getattr(row, provider) is not None]
    for row, provider in cases:
        _write_agent(tmp_path / "agents", f"{row.name}-{provider}", provider, row.name)
    seen: Counter[str] = Counter()
    async with serve(paid_app(seen)) as url:
        settings = settings_for(world.database.app, world.settings.task_queue, url, tmp_path / "agents")
        async with open_world(world.endpoints, world.database, world.client, settings, url, world.shop_url) as matrix:
            async with matrix.worker(cached=100):
                handles = [await matrix.start(agent=f"{row.name}-{provider}") for row, provider in cases]
                results = await asyncio.gather(*(handle.result() for handle in handles))
            for (row, provider), result in zip(cases, results, strict=True):
                where = f"{row.name} at {provider}: {result}"
                assert seen[f"{row.name}/{provider}"] == row.requests, where
                assert (result.failure.kind if result.failure else "") == row.end, where
                assert result.status is (RunStatus.FAILED if row.end else RunStatus.COMPLETED), where
                attempts = await matrix.rows(
                    "select state, hold_micros, cost_micros from model_attempt where run_id = $1", result.run_id
                )
                assert [attempt["state"] for attempt in attempts] == ["settled"] * row.requests, where
                assert result.spend.unknown_micros == 0, where
                assert result.spend.cost_micros == sum(attempt["cost_micros"] for attempt in attempts), where
                if row.name.endswith("usage"):  # nobody knows what it cost: the most it could have
                    assert [attempt["cost_micros"] for attempt in attempts] == [attempts[0]["hold_micros"]], where
            told = await matrix.rows("select title from notification where kind = 'usage'")
            assert {title.partition(" ")[0] for (title,) in told} == {"anthropic", "openai"}, "somebody must hear of it"


async def _run(matrix: World, row: Row, provider: str) -> RunResult:
    return await (await matrix.start(agent=f"{row.name}-{provider}", key=f"{row.name}-{provider}")).result()


async def _check(matrix: World, row: Row, provider: str, result: RunResult, requests: int) -> None:
    where = f"{row.name} at {provider}: {result}"
    attempts = await matrix.rows(
        "select state, failure, hold_micros, cost_micros, dispatched_at from model_attempt where run_id = $1 order by attempt",
        f"run:acme:{row.name}-{provider}",
    )
    failed = [attempt for attempt in attempts if attempt["failure"] is not None]
    assert {attempt["failure"] for attempt in failed} == {row.kind}, where
    assert {attempt["state"] for attempt in failed} == {"unknown" if row.held else "released"}, where
    assert result.spend.unknown_micros == sum(attempt["hold_micros"] for attempt in failed) * row.held, where
    if not row.retried:
        assert (requests, len(attempts)) == (1, 1), where
        assert result.status is RunStatus.FAILED, where
        assert result.failure is not None, where
        assert result.failure.kind == row.kind, where
        return
    assert (requests, len(attempts)) == (3, 3), where
    assert result.status is RunStatus.COMPLETED, where
    assert attempts[-1]["state"] == "settled", where
    gaps = [(b["dispatched_at"] - a["dispatched_at"]).total_seconds() for a, b in pairwise(attempts)]
    assert min(gaps) >= max(row.wait, 0.9), where


def _write_agent(folder: Path, name: str, provider: str, model: str, timeout: str = "15s") -> None:
    home = folder / name
    home.mkdir(parents=True)
    price = "{input: 1, output: 2}"
    entry = f"{{provider: {provider}, model: {model}, max_tokens: 100, timeout: {timeout}, price: {price}}}"
    (home / "agent.yaml").write_text(f'name: {name}\ndescription: One row.\nmodels: [{entry}]\nbudget: {{cost_usd: "1.00"}}\n')
    (home / "prompt.md").write_text("Answer.")
    (home / "policy.yaml").write_text("rules: []\n")


def _success(wire: str, model: str) -> dict[str, object]:
    if wire == "anthropic":
        usage: dict[str, object] = {"input_tokens": 5, "output_tokens": 1}
        content = [{"type": "text", "text": "ok"}]
        return {"id": "m", "type": "message", "role": "assistant", "model": model, "content": content,
                "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}  # fmt: skip
    text = {"type": "output_text", "text": "ok", "annotations": []}
    output = [{"type": "message", "id": "i", "role": "assistant", "status": "completed", "content": [text]}]
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6, **details}
    return {"id": "r", "object": "response", "created_at": 1, "model": model, "status": "completed", "output": output,
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage}  # fmt: skip


async def test_a_provider_that_cannot_be_reached_is_tried_again_and_has_cost_nothing(world: World, tmp_path: Path) -> None:
    """No connection is the failure that certainly cost nothing: its money is free again, and the third try brings the answer."""
    for provider in PROVIDERS:
        write_agent(tmp_path / "agents", provider)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
    settings = settings_for(world.database.app, world.settings.task_queue, f"http://127.0.0.1:{port}", tmp_path / "agents")

    async def failed_twice() -> bool:
        rows = await world.rows("select count(*) as tries from model_attempt where failure = 'unreachable'")
        return int(rows[0]["tries"]) == FAILURES_BEFORE_SUCCESS * len(PROVIDERS)

    async with (
        open_world(world.endpoints, world.database, world.client, settings, world.model_url, world.shop_url) as away,
        away.worker(cached=100),
    ):
        runs = [await away.start(agent=provider) for provider in PROVIDERS]
        await eventually(failed_twice)
        async with serve(stand_in_model.create_app(), port) as url:
            (await away.http.post(f"{url}/script", json=turns("done"))).raise_for_status()
            results = [await run.result() for run in runs]
            bill = (await away.http.get(f"{url}/bill")).json()["requests"]
    assert [(result.status, result.spend.unknown_micros) for result in results] == [(RunStatus.COMPLETED, 0)] * 2
    assert len(bill) == len(PROVIDERS)
    rows = await world.rows("select state, cost_micros > 0 as cost from model_attempt order by run_id, attempt")
    assert [tuple(row) for row in rows] == [("released", False), ("released", False), ("settled", True)] * 2
