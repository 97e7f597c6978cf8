"""How does a command that stays up learn that it shall end, and that it shall end now?"""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """`asked` after the first Ctrl-C, SIGTERM or closing of the terminal, `hurry` after the second."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()

    def __call__(self) -> None:
        """A signal came."""
        (self.hurry if self.asked.is_set() else self.asked).set()

    async def before(self, work: Coroutine[None, None, T]) -> T | None:
        """The work's result, or None if the stop came first; then the work is cancelled and has ended."""
        doing = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self.asked.wait())
        try:
            await asyncio.wait({doing, asked}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return await doing
        finally:
            asked.cancel()
            doing.cancel()
            await asyncio.wait({doing})
        return None


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """A Stop that hears SIGINT, SIGTERM and SIGHUP inside the block."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` ignores SIGHUP
    for number in heard:
        loop.add_signal_handler(number, stop)
    try:
        yield stop
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
