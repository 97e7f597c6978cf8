"""Tools of every effect class, against the shop, whose answers are the operator's own: provenance has nothing against them."""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated

import httpx2
from pydantic import Field, JsonValue

from durable_agents import Effect, ToolContext, ToolFailed, ToolUnavailable, tool

Amount = Annotated[Decimal, Field(gt=0, max_digits=9, decimal_places=2)]


async def _ask(context: ToolContext, method: str, path: str, body: JsonValue = None) -> JsonValue:
    headers = {"Idempotency-Key": context.idempotency_key}
    try:
        async with httpx2.AsyncClient(base_url=context.settings["shop_url"], timeout=5) as shop:
            response = await shop.request(method, path, json=body, headers=headers)
    except httpx2.ConnectError as error:
        raise ToolUnavailable("the shop is closed") from error
    if 400 <= response.status_code < 500:
        raise ToolFailed(f"{response.status_code}: {response.json()['message']}")
    response.raise_for_status()
    answer: JsonValue = response.json()
    return answer


@tool(effect=Effect.READ, resource="order:{order}", trusted=True)
async def lookup_order(order: str, *, context: ToolContext) -> dict[str, JsonValue]:
    """Look up an order."""
    answer = await _ask(context, "GET", f"/orders/{order}")
    assert isinstance(answer, dict)
    return answer


@tool(effect=Effect.IDEMPOTENT, risk="write", resource="order:{order}", trusted=True)
async def issue_refund(order: str, amount: Amount, *, context: ToolContext) -> dict[str, JsonValue]:
    """Refund an order."""
    answer = await _ask(context, "POST", "/refunds", {"order": order, "amount": f"{amount:.2f}"})
    assert isinstance(answer, dict)
    return answer


async def find_refund(order: str, amount: Decimal, *, context: ToolContext) -> dict[str, JsonValue] | None:
    """What became of a refund with this call's key."""
    del order, amount
    async with httpx2.AsyncClient(base_url=context.settings["shop_url"], timeout=5) as shop:
        response = await shop.get(f"/refunds/by-key/{context.idempotency_key}")
    if response.status_code == 404:
        return None
    response.raise_for_status()
    answer: dict[str, JsonValue] = response.json()
    return answer


@tool(effect=Effect.RECONCILABLE, risk="write", resource="order:{order}", reconcile=find_refund, trusted=True)
async def refund_and_check(order: str, amount: Amount, *, context: ToolContext) -> dict[str, JsonValue]:
    """Refund an order; what became of it can be asked afterwards."""
    answer = await _ask(context, "POST", "/refunds", {"order": order, "amount": f"{amount:.2f}"})
    assert isinstance(answer, dict)
    return answer


@tool(effect=Effect.AT_MOST_ONCE, risk="egress", resource="order:{order}", trusted=True)
async def tell_customer(order: str, text: str, *, context: ToolContext) -> dict[str, JsonValue]:
    """Tell the customer of an order something."""
    answer = await _ask(context, "POST", "/messages", {"order": order, "text": text})
    assert isinstance(answer, dict)
    return answer


@tool(effect=Effect.READ, trusted=True)
async def echo(text: str, times: int = 1) -> str:
    """Say a text again."""
    return text * times


@tool(effect=Effect.READ, resource="order:{order}", cache=timedelta(hours=1), trusted=True)
async def remember_order(order: str, *, context: ToolContext) -> dict[str, JsonValue]:
    """Look up an order, or remember it from the last time."""
    answer = await _ask(context, "GET", f"/orders/{order}")
    assert isinstance(answer, dict)
    return answer


@tool(effect=Effect.READ, trusted=True)
async def forbidden(text: str) -> str:
    """Do what is forbidden unless one says please."""
    return text
