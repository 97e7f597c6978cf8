"""Does the demo's shop keep the promises the fault tests count on?"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from pydantic import JsonValue

from starter.demo.loopback import serve
from starter.demo.shop import create_app

DEADLINE = 5
"""Seconds after which a wait has failed."""


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite3"


@pytest.fixture
async def shop(records: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serve(create_app(records)) as base_url, httpx2.AsyncClient(base_url=base_url, timeout=DEADLINE) as client:
        yield client


async def refund(shop: httpx2.AsyncClient, key: str, amount: JsonValue = "20.00", order: str = "A-1001") -> httpx2.Response:
    return await shop.post("/refunds", json={"order": order, "amount": amount}, headers={"Idempotency-Key": key})


async def counts(shop: httpx2.AsyncClient) -> dict[str, int]:
    counted: dict[str, int] = (await shop.get("/records")).json()["counts"]
    return counted


async def test_the_twenty_seed_orders_are_there_and_no_other(shop: httpx2.AsyncClient) -> None:
    """The demo and its documentation name orders by id."""
    first = (await shop.get("/orders/A-1001")).json()
    assert first == {
        "id": "A-1001", "customer": "Ada Winter", "item": "espresso machine", "total": "329.00", "status": "delivered",
    }  # fmt: skip
    assert (await shop.get("/orders/A-1020")).status_code == 200
    for unknown in ("A-1000", "A-1021"):
        answer = await shop.get(f"/orders/{unknown}")
        assert (answer.status_code, answer.json()["error"]) == (404, "order_unknown")


async def test_a_repeated_key_gets_the_first_refund_and_no_second_one(shop: httpx2.AsyncClient) -> None:
    """This is what an idempotent tool relies on after a lost reply."""
    first, again = await refund(shop, "k-1", "20"), await refund(shop, "k-1", "20.00")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == {"id": "R-1", "order": "A-1001", "amount": "20.00", "key": "k-1"}
    books = (await shop.get("/records")).json()
    assert books["refund_requests"] == {"k-1": 2}
    assert (books["counts"]["refunds"], books["counts"]["duplicate_refund_requests"]) == (1, 1)


@pytest.mark.parametrize(("amount", "order"), [("21.00", "A-1001"), ("20.00", "A-1002")])
async def test_a_key_used_for_something_else_is_refused(shop: httpx2.AsyncClient, amount: str, order: str) -> None:
    """A client that derives one key for two effects must hear of it, not get the wrong refund confirmed."""
    await refund(shop, "k-1")
    answer = await refund(shop, "k-1", amount, order)
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_reused")
    counted = await counts(shop)
    assert (counted["refunds"], counted["conflicting_refund_requests"]) == (1, 1)


@pytest.mark.parametrize("amount", ["0", "0.00", "-1", "329.01", "1e2", "NaN", "1.005", "", "٣", 20, None])
async def test_an_amount_that_is_not_owed_is_refused_without_effect(shop: httpx2.AsyncClient, amount: JsonValue) -> None:
    """The shop is the last line of defence against a model's arithmetic."""
    assert (await refund(shop, "k-1", amount)).status_code == 422
    assert set((await counts(shop)).values()) == {0}


async def test_the_whole_total_may_be_refunded(shop: httpx2.AsyncClient) -> None:
    """The limit is the total itself, not something below it."""
    assert (await refund(shop, "k-1", "329.00")).status_code == 201


async def test_a_refund_needs_a_key_a_known_order_and_a_proper_body(shop: httpx2.AsyncClient) -> None:
    """Every refusal is JSON with a code, so tools can tell them apart."""
    keyless = await shop.post("/refunds", json={"order": "A-1001", "amount": "1"})
    assert (keyless.status_code, keyless.json()["error"]) == (400, "idempotency_key_required")
    assert (await refund(shop, "k-1", order="A-9")).json()["error"] == "order_unknown"
    broken = await shop.post("/refunds", content="{", headers={"Idempotency-Key": "k-1"})
    assert (broken.status_code, broken.json()["error"]) == (422, "malformed")
    assert (await shop.get("/nowhere")).json()["error"] == "http"


async def test_the_shop_can_be_asked_what_became_of_a_key(shop: httpx2.AsyncClient) -> None:
    """Reconciling needs an answer for keys that were used and for keys that never arrived."""
    await refund(shop, "run/1:call 2")
    assert (await shop.get("/refunds/by-key/run%2F1:call%202")).json()["id"] == "R-1"
    assert (await shop.get("/refunds/by-key/never")).status_code == 404


async def test_each_message_request_is_one_more_message(shop: httpx2.AsyncClient) -> None:
    """The one effect that cannot be taken back or recognised: a blind retry must show here."""
    for _ in range(2):
        assert (await shop.post("/messages", json={"order": "A-1002", "text": "Hello"})).status_code == 201
    sent = (await shop.get("/records")).json()["messages"]
    assert sent == [{"id": "M-1", "order": "A-1002", "text": "Hello"}, {"id": "M-2", "order": "A-1002", "text": "Hello"}]
    assert (await shop.post("/messages", json={"order": "A-9", "text": "Hello"})).status_code == 404


async def test_a_dropped_reply_leaves_its_effect_behind(shop: httpx2.AsyncClient) -> None:
    """The caller sees a broken connection although the money has moved: the case the effect classes exist for."""
    await shop.post("/faults", json={"path": "/refunds", "after_effect": "drop", "times": 1})
    with pytest.raises(httpx2.RemoteProtocolError):
        await refund(shop, "k-1")
    assert (await counts(shop))["refunds"] == 1
    assert (await refund(shop, "k-1")).status_code == 200


async def test_an_error_after_the_effect_leaves_its_effect_behind(shop: httpx2.AsyncClient) -> None:
    """A 500 says nothing about whether the effect happened."""
    await shop.post("/faults", json={"path": "/messages", "after_effect": "500"})
    assert (await shop.post("/messages", json={"order": "A-1001", "text": "Hello"})).status_code == 500
    assert (await counts(shop))["messages"] == 1


async def test_an_error_before_the_effect_has_none_and_ends_after_its_times(shop: httpx2.AsyncClient) -> None:
    """Tests order an exact number of failures and must get exactly that number, on that path only."""
    await shop.post("/faults", json={"path": "/refunds", "before_effect": "503", "times": 2})
    assert (await shop.get("/refunds/by-key/k-1")).status_code == 404
    assert [(await refund(shop, "k-1")).status_code for _ in range(3)] == [503, 503, 201]
    assert (await counts(shop))["refund_requests"] == 1


async def test_a_hanging_request_has_had_its_effect_and_answers_when_released(shop: httpx2.AsyncClient) -> None:
    """A worker is killed exactly here: after the effect, before the reply."""
    await shop.post("/faults", json={"path": "/refunds", "after_effect": "hang"})
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(refund(shop, "k-1"))
        assert (await shop.get("/hanging", params={"at_least": "1"})).json() == {"hanging": 1}
        assert not waiting.done()
        assert (await counts(shop))["refunds"] == 1
        assert (await shop.post("/release")).json() == {"released": 1}
    assert waiting.result().status_code == 201


async def test_faults_can_be_forgotten_and_name_many_paths(shop: httpx2.AsyncClient) -> None:
    """A test cleans up after itself, and a fault for all orders need not name each."""
    await shop.post("/faults", json={"path": "/orders/*", "before_effect": "500", "times": 9})
    assert (await shop.get("/orders/A-1003")).status_code == 500
    assert (await shop.delete("/faults")).json() == {"pending": []}
    assert (await shop.get("/orders/A-1003")).status_code == 200
    assert (await shop.post("/faults", json={"path": "/refunds", "after_effect": "explode"})).status_code == 422


async def test_the_server_leaves_in_time_with_a_request_still_hanging(records: Path) -> None:
    """A test that failed in the middle must not hang the suite."""
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks, httpx2.AsyncClient(timeout=DEADLINE) as client:
        async with serve(create_app(records)) as base_url:
            await client.post(f"{base_url}/faults", json={"path": "/orders/*", "after_effect": "hang"})
            hanging = tasks.create_task(_error_of(client, f"{base_url}/orders/A-1001"))
            await client.get(f"{base_url}/hanging?at_least=1")
        assert isinstance(await hanging, httpx2.RemoteProtocolError)
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"{base_url}/records")


async def _error_of(client: httpx2.AsyncClient, url: str) -> Exception | None:
    try:
        await client.get(url)
    except httpx2.HTTPError as error:
        return error
    return None


async def test_the_books_outlive_the_server(records: Path) -> None:
    """The file is the shop's memory: a restarted shop still knows its keys."""
    for status in (201, 200):
        async with serve(create_app(records)) as base_url, httpx2.AsyncClient(base_url=base_url) as client:
            assert (await refund(client, "k-1")).status_code == status


def test_the_process_says_where_it_listens_and_has_committed_what_it_answered(records: Path) -> None:
    """Whoever starts it reads the address from the first line; killed without warning, it loses nothing it answered."""
    command = [sys.executable, "-m", "starter.demo.shop", "--port", "0", "--records", str(records)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().removeprefix("listening on ").strip()
        body = {"order": "A-1001", "amount": "5"}
        assert httpx2.post(f"{address}/refunds", json=body, headers={"Idempotency-Key": "k"}).status_code == 201
        os.kill(process.pid, signal.SIGKILL)
    db = sqlite3.connect(records)
    assert db.execute("SELECT key, amount FROM refunds").fetchall() == [("k", "5.00")]
    db.close()


async def test_a_taken_port_ends_the_process_with_one_line(records: Path) -> None:
    """A person who starts it twice reads the cause and the remedy, not a traceback."""
    async with serve(create_app(records)) as base_url:
        command = [sys.executable, "-m", "starter.demo.shop", "--port", base_url.rpartition(":")[2], "--records", str(records)]
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert (process.returncode, out, err.count(b"\n")) == (1, b"", 1)
    assert b"choose another with --port" in err
