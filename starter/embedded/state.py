"""What keeps two processes from spoiling one state folder, and how is it known that a server of it still lives?

Kernel locks (flock), because the kernel lets go of them whatever way a process ends, `kill -9` included. Three for each server:

- `starting`: held while a server is being started or stopped; one at a time.
- `users`: held, shared, by every process that uses the server; the last one to leave ends it.
- `alive`: inherited by the server itself and all its children, so it is free exactly when none of them lives. This needs no pid.
"""

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

from starter.embedded.processes import EmbeddedServerError, ended_within

START_LIMIT = timedelta(seconds=200)  # longer than the longest start that could be waited for (crash recovery)


def prepare_state_folder(state_dir: Path) -> None:
    """Makes the state folder: for this user alone, and invisible to git.

    Raises:
        EmbeddedServerError: it cannot be made or written.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ignore = state_dir / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError as error:
        raise EmbeddedServerError(
            f"the state folder {state_dir} cannot be written ({error.strerror}): choose another one, or make it yours"
        ) from None


def write_aside(path: Path, text: str) -> None:
    """Replaces a file in one step, readable by this user alone: a crash leaves the old content or the new."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)


class ServerLocks:
    """The three locks of one server in one state folder.

    To look whether a lock is held is to take it for an instant, so looks happen inside `starting` only.
    """

    def __init__(self, state_dir: Path, server: str) -> None:
        self._starting = state_dir / f"{server}.starting.lock"
        self._users = state_dir / f"{server}.users.lock"
        self._alive = state_dir / f"{server}.alive.lock"
        self._using: int | None = None

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Holds the right to start or stop the server; waits for whoever has it now.

        Raises:
            EmbeddedServerError: another process has had it for too long.
        """
        descriptor = _open(self._starting)
        try:
            if not await ended_within(START_LIMIT, lambda: _lock(descriptor, fcntl.LOCK_EX)):
                raise EmbeddedServerError(
                    f"another process has been starting or stopping the server for more than "
                    f"{int(START_LIMIT.total_seconds())} s ({self._starting}): end that process, then start again"
                )
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def nobody_here(self) -> Iterator[bool]:
        """Holds off every start while inside; gives False when a server or a user of it is there already."""
        descriptor = _open(self._starting)
        try:
            yield _lock(descriptor, fcntl.LOCK_EX) and not self.server_alive() and not _held(self._users)
        finally:
            os.close(descriptor)

    def join(self) -> None:
        """Counts this process among the users. Call it inside `starting`."""
        if self._using is None:
            self._using = _open(self._users)
            _lock(self._using, fcntl.LOCK_SH)

    def leave(self) -> bool:
        """Ends the use; returns whether nobody else uses the server. Call it inside `starting`."""
        if self._using is not None:
            os.close(self._using)
            self._using = None
        return not _held(self._users)

    def server_alive(self) -> bool:
        """Whether the server, or any process it started, still lives."""
        return _held(self._alive)

    @contextmanager
    def lock_for_server(self) -> Iterator[int]:
        """Gives the descriptor a new server has to inherit. It may have none of the old server's processes beside it."""
        descriptor = _open(self._alive)
        try:
            if not _lock(descriptor, fcntl.LOCK_EX):
                raise EmbeddedServerError(f"the server of {self._alive.parent} still runs: stop it, then start again")
            yield descriptor
        finally:
            os.close(descriptor)  # the server's own copy keeps the lock


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int, kind: int) -> bool:
    """Takes the lock if it can be had at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held(path: Path) -> bool:
    """Whether anybody holds the lock."""
    if not path.exists():
        return False
    descriptor = _open(path)
    try:
        return not _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
