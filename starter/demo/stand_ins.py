"""What does the refunds agent need that a newcomer does not have: a shop, and a model?

Both as children on loopback. With a key of the person's own the real model is asked, and nobody stands in for it.
"""

import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from durable_agents.settings import Settings
from starter.children import ROOT, Child, Program

STOP_GRACE = timedelta(seconds=15)
LISTENING = "listening on "
REAL_MODEL = "claude-haiku-5-5 (real API)"
STAND_IN_MODEL = "stand-in on loopback, no real model is asked"


@dataclass(frozen=True)
class StandIns:
    """Where they are, in a worker's environment and in words."""

    environment: dict[str, str]
    shop: str
    model: str


async def open_stand_ins(stack: AsyncExitStack, settings: Settings, folder: Path) -> StandIns:
    """Start a shop with its records in `folder`, and without a key a model; the stack stops them."""
    records = (folder / "shop.sqlite3").resolve()
    shop = _url(await start_child(stack, _service("shop", folder, "--records", str(records))))
    environment = {"SHOP_URL": shop, "NO_PROXY": "127.0.0.1"}
    if settings.anthropic_api_key is not None:
        return StandIns(environment, shop, REAL_MODEL)
    model = _url(await start_child(stack, _service("stand_in_model", folder)))
    environment |= {
        "ANTHROPIC_BASE_URL": model,
        "ANTHROPIC_API_KEY": "stand-in",
        "OPENAI_BASE_URL": f"{model}/v1",
        "OPENAI_API_KEY": "stand-in",  # also in place of a real key: no real model is asked, not even as a fallback
    }
    return StandIns(environment, shop, STAND_IN_MODEL)


async def start_child(stack: AsyncExitStack, program: Program) -> Child:
    """A child that the stack stops."""
    child = await Child.start(program)
    stack.push_async_callback(child.stop, STOP_GRACE)
    return child


def log_to(file: Path) -> Callable[[str], None]:
    """Keeps what a child says."""
    return partial(_log, file)


def _service(name: str, folder: Path, *arguments: str) -> Program:
    command = (sys.executable, "-m", f"starter.demo.{name}", *arguments)
    return Program(name.replace("_", " "), command, dict(os.environ), LISTENING, log_to(folder / f"{name}.log"), ROOT)


def _log(file: Path, line: str) -> None:
    with file.open("a", encoding="utf8") as out:
        out.write(f"{line}\n")


def _url(child: Child) -> str:
    return child.ready_line.removeprefix(LISTENING)
