"""How is a server run as our own child: on which port, until when is it waited for, and how does it end?

What the embedded PostgreSQL and the embedded Temporal share. Nothing here ever waits without a deadline, and no process is
signalled because of a number in a file alone: either we hold its handle, or its command line proves that it is ours.
"""

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.02  # how often a starting or ending server is looked at
STOP_GRACE = timedelta(seconds=30)  # PostgreSQL writes a checkpoint at its end, Temporal drains for about a second

_HANDED_OVER: list[subprocess.Popen[bytes]] = []


class EmbeddedServerError(RuntimeError):
    """What a person can put right about an embedded server: one line, cause and remedy."""


class ServerDiedError(EmbeddedServerError):
    """The server ended while it was being started; the message holds the telling line of its log."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(f"{name} ended while starting ({telling_line(log)}): put that right and start again; log: {log}")
        # Somebody took the port between our look at it and the server's own bind.
        self.port_was_taken = any("address already in use" in line.lower() for line in _lines(log))


def free_ports(count: int) -> list[int]:
    """Returns `count` different loopback ports that nobody listens on now."""
    with ExitStack() as held:  # all are held until the last is found, so that none comes twice
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def port_problem(port: int) -> str | None:
    """Says why a server could not listen on the loopback port `port`, or None when it could."""
    if not 0 < port < 65536:
        return "is not a port number"
    with socket.socket() as probe:
        # As the servers do: a port whose old connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
    return None


def require_port(port: int, name: str) -> int:
    """Returns `port`; raises EmbeddedServerError when the person asked for one that cannot be had."""
    if problem := port_problem(port):
        raise EmbeddedServerError(f"port {port} for {name} {problem}: choose another port, or stop what listens there")
    return port


def first_free_port(preferred: Sequence[int | None]) -> int:
    """Returns the first preferred port that is free, else any free one."""
    free = (port for port in preferred if port is not None and port_problem(port) is None)
    return next(free, None) or free_ports(1)[0]


def telling_line(log: Path) -> str:
    """Returns the last line of a server's log that names an error, else the last one; at most 300 characters."""
    lines = [line.strip()[:300] for line in reversed(_lines(log)) if line.strip()]
    # PostgreSQL's last line is always that it is shut down; the one with FATAL says why.
    errors = (line for line in lines if re.search(r"\b(FATAL|PANIC|Error):", line))
    return next(errors, None) or next(iter(lines), "it wrote nothing")


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError:
        return []


def spawn(
    command: Sequence[str], *, log: Path, alive: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a server as our child, in its own session so that a Ctrl-C in the terminal does not reach it before us.

    Args:
        command: program and arguments.
        log: where stdout and stderr go; the log of the start before is kept beside it with the ending `.1`.
        alive: descriptor of a held lock. The server inherits it, so the lock is held exactly as long as the server lives.
        environment: the server's environment; ours when None.
    """
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(alive,),
            start_new_session=True,
        )


async def wait_until_ready(
    answers: Callable[[], Awaitable[bool]], child: subprocess.Popen[bytes], *, name: str, log: Path, limit: timedelta
) -> None:
    """Returns when `answers` says yes and the child lives.

    Raises:
        ServerDiedError: the child ended first.
        EmbeddedServerError: it did neither within `limit`.
    """

    async def ready() -> bool:
        asked = asyncio.ensure_future(answers())
        try:
            while child.poll() is None and not asked.done():  # the port may be another's, that never answers
                await asyncio.wait({asked}, timeout=POLL_SECONDS)
        finally:
            asked.cancel()
        if child.poll() is not None:  # looked at last: whoever answered then was not our child
            raise ServerDiedError(name, log)
        return asked.result()

    if not await comes_true(ready, limit):
        raise EmbeddedServerError(
            f"{name} did not answer within {int(limit.total_seconds())} s ({telling_line(log)}): "
            f"look into {log}, then start again"
        )


async def comes_true(condition: Callable[[], Awaitable[bool]], limit: timedelta) -> bool:
    """Returns whether `condition` came true before `limit` was over; asks it at least once."""
    try:
        async with asyncio.timeout(limit.total_seconds()):
            while True:
                if await condition():
                    return True
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        return False


async def ended_within(limit: timedelta, ended: Callable[[], bool]) -> bool:
    """Like `comes_true`, for a condition that is known at once."""

    async def condition() -> bool:
        return ended()

    return await comes_true(condition, limit)


async def terminate_child(child: subprocess.Popen[bytes], *, grace: timedelta = STOP_GRACE) -> None:
    """Ends our child: SIGINT (orderly for both servers), and SIGKILL when it is not gone after `grace`."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        if not await ended_within(grace, lambda: child.poll() is not None):
            child.kill()
    child.wait()


def hand_over(child: subprocess.Popen[bytes]) -> None:
    """Leaves our child to the other processes that use it. The handle is kept: Python warns of one that is forgotten."""
    _HANDED_OVER.append(child)


async def terminate_left_behind(pid: int, is_ours: Callable[[int], bool | None]) -> None:
    """Ends a server that another process of ours started, and which is nobody's child here.

    Args:
        pid: where it is said to run.
        is_ours: looks at the process itself, see `command_names`; it is signalled only while this is True.
    """
    for number in (signal.SIGINT, signal.SIGKILL):
        if is_ours(pid) is not True:
            return
        os.kill(pid, number)
        if await ended_within(STOP_GRACE, lambda: is_ours(pid) is not True):
            return


def command_names(pid: int, words: Sequence[str]) -> bool | None:
    """Whether the command line of the process `pid` holds all `words`; None when the system does not tell."""
    line = _command_from_proc(pid) if Path("/proc/self/cmdline").exists() else _command_from_ps(pid)
    return None if line is None else all(word in line for word in words)


def _command_from_proc(pid: int) -> str | None:
    """Empty when there is no such process, None when it is hidden from us."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:
        return None


def _command_from_ps(pid: int) -> str | None:
    """The same on systems without /proc (macOS); None when there is no `ps`."""
    try:
        asked = subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "command="], capture_output=True, check=False)
    except OSError:
        return None
    return asked.stdout.decode(errors="replace")


async def to_the_end(work: Coroutine[None, None, T]) -> T:
    """Awaits work that a cancellation must not leave half done, e.g. a thread that writes: it ends first, then the caller."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
