"""How are the heads of audit chains kept where whoever owns the database cannot change them?

In a file that is only ever appended to, one line for each head that has moved, each line hash-chained to the one before it.
Best on a disk of somebody else, append-only (`chattr +a`) or copied away; several files are as good as one.
"""

import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from activities import audit
from activities.account_limits import known_tenants
from activities.postgres import Database
from durable_agents.domain.audit import Anchor, AnchorFile, Chain, Head, Problem, anchor, latest, read_anchors
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT

TAIL_BYTES = 4 * 1024 * 1024
"""An append reads no more of the file than this (some 10,000 lines): a file of years must not slow down every round."""


class AnchorFileError(Exception):
    """The file cannot be used. `str()` is one line: cause and remedy."""


class AnchorFileBusyError(AnchorFileError):
    """Another process appends to the file."""


@dataclass(frozen=True)
class Anchored:
    """What an append of anchors did."""

    appended: tuple[Anchor, ...]
    unchanged: int
    """Tenants with nothing new since their last anchor."""
    problems: tuple[Problem, ...]
    """Logs that do not continue what was anchored of them; they get no new anchor."""


def read(path: Path) -> AnchorFile:
    """Every anchor of a file.

    Raises:
        AnchorFileError: there is no such file, or it cannot be read.
    """
    try:
        with path.open(encoding="utf8", errors="replace") as file:
            return read_anchors(file)
    except OSError as error:
        raise AnchorFileError(f"{path} cannot be read ({error.strerror}): check the path of the anchors") from None


async def append_heads(database: Database, path: Path) -> Anchored:
    """Append the head of every tenant's chain that has moved since its last anchor, and continues what was anchored.

    Raises:
        AnchorFileError: the file cannot be written, or its end was changed.
    """
    heads: dict[str, Head] = {}
    problems: list[Problem] = []
    unchanged = 0
    with _locked(path) as descriptor:
        tail = _tail(descriptor, path)
        before = latest(tail)
        async for tenant, found in _judged(database, before):
            if isinstance(found, Chain):
                problems += found.problems
            elif found is None:
                unchanged += 1
            else:
                heads[tenant] = found
        appended = list(_following(tail[-1] if tail else None, heads))
        _write(descriptor, path, appended)
    return Anchored(tuple(appended), unchanged, tuple(problems))


async def _judged(database: Database, before: dict[str, Anchor]) -> AsyncIterator[tuple[str, Chain | Head | None]]:
    tenants = dict.fromkeys((SYSTEM_TENANT, *await known_tenants(database), *map(TenantId, before)))
    for tenant in tenants:
        yield tenant, await audit.anchorable(database, tenant, before.get(tenant))


def _following(last: Anchor | None, heads: dict[str, Head]) -> Iterator[Anchor]:
    now = time.time_ns() // 1000
    for tenant, head in heads.items():
        last = anchor(last, tenant=tenant, head=head, at_micros=now)
        yield last


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, for this process alone; made where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
    except OSError as error:
        raise AnchorFileError(f"{path} cannot be written ({error.strerror}): give a file that may be appended to") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise AnchorFileBusyError(f"{path} is being appended to by another process: try again") from None
    finally:
        os.close(descriptor)


def _tail(descriptor: int, path: Path) -> Sequence[Anchor]:
    size = os.fstat(descriptor).st_size
    start = max(0, size - TAIL_BYTES)
    text = os.pread(descriptor, TAIL_BYTES, start).decode(errors="replace")
    found = read_anchors(text.splitlines()[1 if start else 0 :], whole=start == 0)
    if found.problems:
        raise AnchorFileError(f"{path}: {found.problems[0]}: keep it as evidence, and go on with a new file")
    if size and not found.anchors and (start or found.torn):
        raise AnchorFileError(f"{path} is no file of anchors: give another one, or a new one")
    return found.anchors


def _write(descriptor: int, path: Path, anchors: Sequence[Anchor]) -> None:
    """In one piece, on a line of its own even where an earlier append was torn, and on the disk when it returns."""
    if not anchors:
        return
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    data = (("\n" if torn else "") + "".join(f"{one.line}\n" for one in anchors)).encode()
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError as error:
        raise AnchorFileError(f"{path} cannot be written ({error.strerror}): free its disk, then anchor again") from None
