"""What does the shop on the other side of the agent's tools do, and what has really happened there?

The shop is somebody else's system: its own process, its own records. A test that claims "never twice" counts refunds and
messages here, in `GET /records`, not in anything the agent believes. Every effect is committed before the reply leaves, so
a lost reply is exactly that: an effect whose outcome the caller does not know.
"""

import argparse
import contextlib
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from starter.demo.loopback import Faults, fail, one_line, run

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL, item TEXT NOT NULL, total TEXT NOT NULL,
                                   status TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refunds (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, "order" TEXT NOT NULL,
                                    amount TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refund_requests (id INTEGER PRIMARY KEY, key TEXT NOT NULL, outcome TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, "order" TEXT NOT NULL, text TEXT NOT NULL);
"""

_CUSTOMERS = ("Ada Winter", "Bo Larsen", "Chidi Okafor", "Dana Petrov", "Elif Demir")
_ITEMS = (
    ("espresso machine", "329.00", "delivered"),
    ("desk lamp", "89.90", "delivered"),
    ("trail shoes", "129.00", "shipped"),
    ("noise-cancelling headphones", "549.00", "delivered"),
)
SEED_ORDERS = tuple((f"A-{1001 + n}", _CUSTOMERS[n % len(_CUSTOMERS)], *_ITEMS[n % len(_ITEMS)]) for n in range(20))
"""Orders A-1001 to A-1020: id, customer, item, total, status."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RefundRequest(_Body):
    """What `POST /refunds` takes: the amount is a decimal string, at most two places, above zero."""

    order: str
    amount: Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,2})?$")]


class MessageRequest(_Body):
    """What `POST /messages` takes."""

    order: str
    text: Annotated[str, Field(min_length=1)]


class Refusal(Exception):  # noqa: N818  # a refusal is an answer of the shop, not an error in it
    """The shop says no: an HTTP status, a code a program can match and a sentence for a person."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.response = JSONResponse({"error": code, "message": message}, status)


class Records:
    """The shop's own books in one sqlite3 file: every method is one committed transaction."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._transaction() as db:
            db.executescript(SCHEMA)
            db.executemany("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?)", SEED_ORDERS)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # One connection per transaction: nothing stays open that a killed process could leave behind half-done.
        with contextlib.closing(sqlite3.connect(self.file)) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing in WAL; only a power cut could, and no test here pulls the plug.
            db.execute("PRAGMA synchronous=NORMAL")
            with db:
                yield db

    def order(self, order_id: str) -> dict[str, JsonValue]:
        """The order; Refusal 404 if the shop does not know it."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM orders WHERE id = ?", (order_id,)).fetchone()
        if row is None:
            raise Refusal(404, "order_unknown", f"there is no order {order_id}")
        return dict(row)

    def refund(self, key: str, asked: RefundRequest) -> tuple[int, dict[str, JsonValue]]:
        """Refund once per key: 201 and the refund, 200 and the first refund on a repeat, Refusal 409 or 422 otherwise.

        Only a single refund is held against the order's total, not their sum: two refunds under two keys must both show in
        the books, or the shop would hide the very mistake the tests look for.
        """
        amount = f"{Decimal(asked.amount):.2f}"
        total = str(self.order(asked.order)["total"])
        if not 0 < Decimal(amount) <= Decimal(total):
            raise Refusal(422, "amount_out_of_range", f"the amount must be above 0 and at most {total}, not {amount}")
        with self._transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            first = db.execute("SELECT * FROM refunds WHERE key = ?", (key,)).fetchone()
            outcome = _outcome(first, asked.order, amount)
            db.execute("INSERT INTO refund_requests (key, outcome) VALUES (?, ?)", (key, outcome))
            if first is None:
                db.execute('INSERT INTO refunds (key, "order", amount) VALUES (?, ?, ?)', (key, asked.order, amount))
        if outcome == "conflict":
            raise Refusal(409, "idempotency_key_reused", "this key was used for another order or amount")
        return (201 if outcome == "created" else 200), self.refund_by_key(key)

    def refund_by_key(self, key: str) -> dict[str, JsonValue]:
        """The refund made under this key; Refusal 404 if there was none."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM refunds WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise Refusal(404, "refund_unknown", "no refund was made under this key")
        return _refund(row)

    def message(self, asked: MessageRequest) -> dict[str, JsonValue]:
        """Send the customer one more message, whatever was sent before."""
        customer = self.order(asked.order)["customer"]
        with self._transaction() as db:
            added = db.execute('INSERT INTO messages ("order", text) VALUES (?, ?)', (asked.order, asked.text))
        return {"id": f"M-{added.lastrowid}", "order": asked.order, "customer": customer, "text": asked.text}

    def everything(self) -> dict[str, JsonValue]:
        """All effects with their counts; `refund_requests` is requests per key, repeats and conflicts included."""
        with self._transaction() as db:
            db.execute("BEGIN")
            refunds = [_refund(row) for row in db.execute("SELECT * FROM refunds ORDER BY id")]
            messages = [{**row, "id": f"M-{row['id']}"} for row in db.execute("SELECT * FROM messages ORDER BY id")]
            per_key = dict(db.execute("SELECT key, count(*) FROM refund_requests GROUP BY key ORDER BY key").fetchall())
            outcomes = dict(db.execute("SELECT outcome, count(*) FROM refund_requests GROUP BY outcome").fetchall())
        counts: dict[str, JsonValue] = {
            "refunds": len(refunds),
            "refund_requests": sum(per_key.values()),
            "duplicate_refund_requests": outcomes.get("duplicate", 0),
            "conflicting_refund_requests": outcomes.get("conflict", 0),
            "messages": len(messages),
        }
        return {"counts": counts, "refunds": list(refunds), "refund_requests": per_key, "messages": list(messages)}


def _outcome(first: sqlite3.Row | None, order: str, amount: str) -> str:
    if first is None:
        return "created"
    return "duplicate" if (first["order"], first["amount"]) == (order, amount) else "conflict"


def _refund(row: sqlite3.Row) -> dict[str, JsonValue]:
    return {"id": f"R-{row['id']}", "order": row["order"], "amount": row["amount"], "key": row["key"]}


Asked = TypeVar("Asked", bound=_Body)


async def _body(request: Request, model: type[Asked]) -> Asked:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise Refusal(422, "malformed", one_line(error)) from error


class Shop:
    """The shop's HTTP face."""

    def __init__(self, records: Records) -> None:
        self.records = records

    async def order(self, request: Request) -> Response:
        """GET /orders/{id}."""
        return JSONResponse(self.records.order(request.path_params["id"]))

    async def refund(self, request: Request) -> Response:
        """POST /refunds."""
        key = request.headers.get("idempotency-key", "")
        if not key:
            raise Refusal(400, "idempotency_key_required", "send the header Idempotency-Key")
        status, refund = self.records.refund(key, await _body(request, RefundRequest))
        return JSONResponse(refund, status)

    async def refund_by_key(self, request: Request) -> Response:
        """GET /refunds/by-key/{key}."""
        return JSONResponse(self.records.refund_by_key(request.path_params["key"]))

    async def message(self, request: Request) -> Response:
        """POST /messages."""
        return JSONResponse(self.records.message(await _body(request, MessageRequest)), 201)

    async def everything(self, _: Request) -> Response:
        """GET /records."""
        return JSONResponse(self.records.everything())


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Refusal(error.status_code, "http", error.detail)
    assert isinstance(error, Refusal)
    return error.response


def create_app(records: Path) -> Starlette:
    """The shop as an app; its books are opened, and made and filled with the seed orders if the file is new."""
    shop, faults = Shop(Records(records)), Faults()
    return Starlette(
        routes=[
            Route("/orders/{id}", shop.order),
            Route("/refunds", shop.refund, methods=["POST"]),
            Route("/refunds/by-key/{key:path}", shop.refund_by_key),
            Route("/messages", shop.message, methods=["POST"]),
            Route("/records", shop.everything),
            *faults.routes(),
        ],
        middleware=[Middleware(faults.around)],
        exception_handlers={Refusal: _refuse, HTTPException: _refuse},
    )


def main() -> None:
    """Run the shop as a process."""
    parser = argparse.ArgumentParser(prog="python -m starter.demo.shop", description="The demo's shop, on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--records", type=Path, required=True, help="the sqlite3 file of the shop's books")
    asked = parser.parse_args()
    try:
        app = create_app(asked.records)
    except sqlite3.Error as error:
        fail(f"the records in {asked.records} cannot be opened ({error}); choose another file with --records")
    run(app, asked.port)


if __name__ == "__main__":
    main()
