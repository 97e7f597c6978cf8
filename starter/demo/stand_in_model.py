"""What stands in for the model providers, on their own wire, and what would they have charged?

`POST /v1/messages` speaks Anthropic, `POST /v1/responses` speaks OpenAI, both without streaming; what is said is decided by
`model_script`. `GET /bill` is the true bill: every request that arrived, what it cost, and whether the caller was told. A
client's own books can be held against it.
"""

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import JsonValue, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from starter.demo.loopback import Hold, NoAnswer, fail, one_line, run
from starter.demo.model_script import USAGE_FIELDS, Conversation, Refunds, Reply, Script, Steps, compact, next_reply, parse_script
from starter.demo.model_wires import Fields, Malformed, ModelRequest, cut, new_id, read_anthropic, read_openai


@dataclass
class Entry:
    """One line of the bill. `usage` is what was charged, all zero if nothing was; `status` is None if no answer was given."""

    sequence: int
    wire: str
    model: str | None
    max_tokens: int | None
    body_sha256: str
    usage: dict[str, int]
    status: int | None = None
    outcome: Literal["answered", "dropped", "hanging"] = "hanging"


class Wire(NamedTuple):
    """One provider's form: headers for the key (any of them) and the request id, reading, and writing answer, usage, error."""

    name: str
    key_headers: tuple[str, ...]
    request_id: str
    read: Callable[[bytes], ModelRequest]
    answer: Callable[[ModelRequest, Reply], Fields]
    usage: Callable[[Fields], Fields]
    error: Callable[[int, Fields, str], Fields]


def _anthropic_answer(asked: ModelRequest, reply: Reply) -> Fields:
    text: list[JsonValue] = [{"type": "text", "text": reply.text}] if reply.text else []
    calls: list[JsonValue] = []
    for call in reply.tool_calls:
        calls += [{"type": "tool_use", "id": new_id("toolu_"), "name": call.name, "input": call.arguments}]
    stop = reply.stop_reason or ("tool_use" if reply.tool_calls else "end_turn")
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": text + calls,
        "stop_reason": {"missing": None, "content_filter": "refusal"}.get(stop, stop),
        "stop_sequence": None,
    }


def _anthropic_usage(usage: Fields) -> Fields:
    whole, read, written, output = (usage[name] for name in USAGE_FIELDS)
    # Anthropic's input tokens are those the cache had no part in. What is absurd on purpose goes out as it is.
    sums = isinstance(whole, int) and isinstance(read, int) and isinstance(written, int)
    return {
        "input_tokens": whole - read - written if sums else whole,  # type: ignore[operator]  # checked one line above
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
    }


_ANTHROPIC_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


def _anthropic_error(status: int, error: Fields, request_id: str) -> Fields:
    usual: Fields = {"type": _ANTHROPIC_ERRORS.get(status, "api_error"), "message": f"stand-in answers {status}"}
    return {"type": "error", "error": usual | error, "request_id": request_id}


def _openai_answer(asked: ModelRequest, reply: Reply) -> Fields:
    why = {"max_tokens": "max_output_tokens", "content_filter": "content_filter"}.get(reply.stop_reason or "")
    status = "incomplete" if why else "completed"
    output: list[JsonValue] = []
    if reply.text:
        said: Fields = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        part: Fields = {"type": "refusal", "refusal": reply.text} if reply.stop_reason == "refusal" else said
        output.append({"type": "message", "id": new_id("msg_"), "role": "assistant", "status": status, "content": [part]})
    for call in reply.tool_calls:
        arguments = call.arguments if isinstance(call.arguments, str) else compact(call.arguments)
        ids: Fields = {"id": new_id("fc_"), "call_id": new_id("call_")}
        output.append({"type": "function_call", **ids, "name": call.name, "arguments": arguments, "status": status})
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": None if reply.stop_reason == "missing" else status,
        "incomplete_details": {"reason": why} if why else None,
        "error": None,
        "max_output_tokens": asked.max_tokens,
        "model": asked.model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _openai_usage(usage: Fields) -> Fields:
    whole, read, written, output = (usage[name] for name in USAGE_FIELDS)
    return {
        "input_tokens": whole,
        "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": whole + output if isinstance(whole, int) and isinstance(output, int) else whole,
    }


def _openai_error(status: int, error: Fields, _: str) -> Fields:
    kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
    code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
    usual: Fields = {"message": f"stand-in answers {status}", "type": kind, "param": None, "code": code}
    return {"error": usual | error}


_KEYS = ("authorization", "x-api-key")
ANTHROPIC = Wire("anthropic", _KEYS, "request-id", read_anthropic, _anthropic_answer, _anthropic_usage, _anthropic_error)
OPENAI = Wire("openai", _KEYS[:1], "x-request-id", read_openai, _openai_answer, _openai_usage, _openai_error)

_UNREAD = ModelRequest(model="", max_tokens=None, input_tokens=0, conversation=Conversation())


class StandIn:
    """The providers' stand-in: what it was told to say, how far it got, and its bill."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.hold = Hold()
        self.bill: list[Entry] = []
        self._taken = Counter[str]()

    async def ask(self, wire: Wire, request: Request) -> Response:
        """Answer one model request, and put it on the bill before anything can go wrong with the answer."""
        body = await request.body()
        asked, reply = self._decide(wire, request, body)
        reported, charged = _usage(asked, reply)
        digest, number = hashlib.sha256(body).hexdigest(), len(self.bill) + 1
        entry = Entry(number, wire.name, asked.model or None, asked.max_tokens, digest, charged)
        self.bill.append(entry)
        if (reply.hang and not await self.hold.until_released(request)) or reply.bill_then_drop:
            entry.outcome = "dropped"
            return NoAnswer()
        entry.outcome, entry.status = "answered", reply.status
        return _response(wire, asked, reply, reported)

    def _decide(self, wire: Wire, request: Request, body: bytes) -> tuple[ModelRequest, Reply]:
        if not any(header in request.headers for header in wire.key_headers):
            return _UNREAD, Reply(status=401, error={"message": f"no key: send {' or '.join(wire.key_headers)}"})
        try:
            asked = wire.read(body)
        except Malformed as error:
            return _UNREAD, Reply(status=400, error={"message": str(error)})
        return asked, cut(self._next(asked), asked.max_tokens)

    def _next(self, asked: ModelRequest) -> Reply:
        if not isinstance(self.script, Steps):
            return next_reply(self.script, asked.conversation)
        key = "" if self.script.per == "global" else asked.conversation.key()
        script = self.script.model_copy(update={"taken": self._taken[key]})
        self._taken[key] += 1
        return next_reply(script, asked.conversation)

    async def rescript(self, request: Request) -> Response:
        """POST /script says something else from now on, DELETE /script goes back to the refunds clerk."""
        try:
            self.script = Refunds() if request.method == "DELETE" else parse_script(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": "malformed", "message": one_line(error)}, 422)
        self._taken.clear()
        return JSONResponse({"script": type(self.script).__name__.lower()})

    async def show_bill(self, request: Request) -> Response:
        """GET /bill: every request with its cost, and the totals; DELETE /bill begins a new one."""
        if request.method == "DELETE":
            self.bill.clear()
        totals = {name: sum(entry.usage[name] for entry in self.bill) for name in USAGE_FIELDS}
        outcomes = Counter(entry.outcome for entry in self.bill)
        totals |= {"requests": len(self.bill), "answered": outcomes["answered"], "dropped": outcomes["dropped"]}
        return JSONResponse({"requests": [asdict(entry) for entry in self.bill], "totals": totals})


def _usage(asked: ModelRequest, reply: Reply) -> tuple[Fields, dict[str, int]]:
    """What the answer reports, overrides included, and what is charged: overrides where they are numbers of tokens."""
    nothing = dict.fromkeys(USAGE_FIELDS, 0)
    charged = nothing | {"input_tokens": asked.input_tokens, "output_tokens": reply.output_tokens()}
    override = {} if reply.usage == "missing" else reply.usage
    reported: Fields = {**charged, **override}
    charged |= {name: n for name, n in override.items() if name in charged and type(n) is int and n >= 0}
    return reported, charged if reply.is_billed() else nothing


def _response(wire: Wire, asked: ModelRequest, reply: Reply, reported: Fields) -> Response:
    request_id = new_id("req_")
    headers = {wire.request_id: request_id, **reply.headers}
    if reply.raw is not None:
        return Response(reply.raw, reply.status, headers, reply.content_type)
    if not reply.is_answer():
        return JSONResponse(wire.error(reply.status, reply.error, request_id), reply.status, headers)
    extra = {name: value for name, value in reported.items() if name not in USAGE_FIELDS}
    usage: Fields = {} if reply.usage == "missing" else {"usage": wire.usage(reported) | extra}
    return JSONResponse(wire.answer(asked, reply) | usage, reply.status, headers)


def create_app(script: Script | None = None) -> Starlette:
    """The stand-in as an app; it begins with the refunds clerk unless given another script."""
    stand_in = StandIn(script or Refunds())
    return Starlette(
        routes=[
            Route("/v1/messages", partial(stand_in.ask, ANTHROPIC), methods=["POST"]),
            Route("/v1/responses", partial(stand_in.ask, OPENAI), methods=["POST"]),
            Route("/script", stand_in.rescript, methods=["POST", "DELETE"]),
            Route("/bill", stand_in.show_bill, methods=["GET", "DELETE"]),
            *stand_in.hold.routes(),
        ]
    )


def main() -> None:
    """Run the stand-in as a process."""
    parser = argparse.ArgumentParser(prog="python -m starter.demo.stand_in_model", description="A model on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--script", type=Path, help="a JSON file with what to say; the refunds clerk if not given")
    asked = parser.parse_args()
    try:
        script = parse_script(asked.script.read_bytes()) if asked.script else None
    except (OSError, ValidationError) as error:
        why = one_line(error) if isinstance(error, ValidationError) else error
        fail(f"the script {asked.script} cannot be used ({why}); see starter/demo/model_script.py for the shapes")
    run(create_app(script), asked.port)


if __name__ == "__main__":
    main()
