"""What can the refunds agent do at the shop?

Each function says by its errors what is known of its effect: ToolFailed, the shop said no; ToolUnavailable, the request never
left; anything else, e.g. a lost reply or a 5xx, leaves it open, and the tool's effect class decides what follows.
"""

from decimal import Decimal
from typing import Annotated

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from durable_agents import Effect, ToolContext, ToolFailed, ToolUnavailable, tool

OrderId = Annotated[str, Field(pattern=r"^[A-Z]-[0-9]{1,10}$", description="The order number, e.g. A-1001")]
Amount = Annotated[Decimal, Field(gt=0, max_digits=9, decimal_places=2, description="At most two decimals")]
REPLY_TIMEOUT_SECONDS = 10.0  # well under the tool's own 30 s, so that the reason is the shop's silence and not ours


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Order(_Answer):
    """An order as the shop knows it."""

    id: str
    customer: str
    item: str
    total: str
    status: str


class Refund(_Answer):
    """A refund in the shop's books."""

    id: str
    order: str
    amount: str


class Message(_Answer):
    """A message the shop has sent."""

    id: str
    order: str


@tool(effect=Effect.READ, risk="read", resource="order:{order}")
async def lookup_order(order: OrderId, *, context: ToolContext) -> Order:
    """Look up an order: its customer, item, total and status."""
    return Order.model_validate(await _ask(context, "GET", f"/orders/{order}"))


@tool(effect=Effect.IDEMPOTENT, risk="write", resource="order:{order}")
async def issue_refund(order: OrderId, amount: Amount, *, context: ToolContext) -> Refund:
    """Refund an amount of an order to its customer. The amount cannot exceed the order's total."""
    body: JsonValue = {"order": order, "amount": f"{amount:.2f}"}
    return Refund.model_validate(await _ask(context, "POST", "/refunds", body))


@tool(effect=Effect.AT_MOST_ONCE, risk="egress", resource="order:{order}")
async def tell_customer(
    order: OrderId, text: Annotated[str, Field(min_length=1, max_length=2000)], *, context: ToolContext
) -> Message:
    """Send the order's customer a message. It cannot be called back."""
    return Message.model_validate(await _ask(context, "POST", "/messages", {"order": order, "text": text}))


async def _ask(context: ToolContext, method: str, path: str, body: JsonValue = None) -> JsonValue:
    headers = {"Idempotency-Key": context.idempotency_key}
    try:
        async with httpx2.AsyncClient(base_url=context.settings["shop_url"], timeout=REPLY_TIMEOUT_SECONDS) as shop:
            response = await shop.request(method, path, json=body, headers=headers)
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise ToolUnavailable(f"the shop cannot be reached ({type(error).__name__})") from error
    if 400 <= response.status_code < 500:
        raise ToolFailed(f"the shop refused ({response.status_code}): {_reason(response)}")
    response.raise_for_status()
    answer: JsonValue = response.json()
    return answer


def _reason(response: httpx2.Response) -> str:
    """The shop's own sentence, if its answer has one."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    reason = answer.get("message") if isinstance(answer, dict) else None
    return " ".join(str(reason or "no reason given").split())[:300]
