"""What is an entry of the audit log, what follows from it, and what does a log look like that somebody has changed?

An entry's hash covers everything it says and its predecessor's hash, so nothing can be changed, removed or put in between without
everything that follows. Whoever owns the database can compute all of it anew; an anchor (the head of a chain at some moment,
kept in a file outside the database) shows that too. Timestamps and amounts are integers: a rounded one does not verify.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from durable_agents.domain.budgets import Budget
from durable_agents.domain.canonical import digest, parse_json
from durable_agents.domain.identifiers import Digest

GENESIS = Digest("0" * 64)
"""What the first entry of a chain follows."""
ENTRY_DOMAIN = "durable-agents/audit/1"
ANCHOR_DOMAIN = "durable-agents/anchor/1"
MOST_PROBLEMS = 20
"""So many problems of one chain are told; the others are counted."""
NOTES_KEPT = 50
REJECTIONS_KEPT = 20
"""So many messages that did not count wait at once to be written down, so that a flood of junk crowds nothing else out."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode

Event = Literal["decision_rejected", "budget_raised", "cancel_requested"]


class Entry(NamedTuple):
    """One entry, in the order in which it is read from anywhere."""

    sequence: int
    previous: str
    hash: str
    at_micros: int
    """When it was written, microseconds since 1970."""
    run: str
    """Empty for what happened to a tenant and not to a run of it."""
    event: str
    body: dict[str, JsonValue]


def entry_hash(
    *, tenant: str, sequence: int, previous: str, at_micros: int, run: str, event: str, body: Mapping[str, JsonValue]
) -> Digest:
    """The hash of an entry: `canonical.digest` of its fields and its domain, spelled out because a log has many entries."""
    text = (
        f'{{"at_micros":{at_micros},"body":{_encode(body)},"domain":"{ENTRY_DOMAIN}","event":{_encode(event)},'
        f'"previous":{_encode(previous)},"run":{_encode(run)},"sequence":{sequence},"tenant":{_encode(tenant)}}}'
    )
    return Digest(sha256(text.encode()).hexdigest())


def inexact(value: JsonValue, place: str = "body") -> str | None:
    """Where a body holds a number that is no integer; None: nowhere. Such a number is not always the same when it is read."""
    if isinstance(value, float):
        return place
    inner: Iterable[tuple[str, JsonValue]] = ()
    if isinstance(value, dict):
        inner = ((f"{place}.{key}", item) for key, item in value.items())
    elif isinstance(value, list):
        inner = ((f"{place}[{number}]", item) for number, item in enumerate(value))
    return next((found for name, item in inner if (found := inexact(item, name)) is not None), None)


class Problem(NamedTuple):
    """What is wrong with a log, and where."""

    tenant: str
    sequence: int
    """The entry; 0: the log as a whole."""
    why: str


class Head(NamedTuple):
    """The end of a chain."""

    sequence: int
    hash: str


EMPTY = Head(0, GENESIS)


class Anchor(NamedTuple):
    """The head of a tenant's chain at some moment, as a line of a file in which each line follows from the one before it."""

    number: int
    """Which line it is, from 1."""
    at_micros: int
    tenant: str
    sequence: int
    head: str
    previous: str
    hash: str

    @property
    def line(self) -> str:
        """As it stands in the file, without the end of the line."""
        return _encode(self._asdict())


def anchor(before: Anchor | None, *, tenant: str, head: Head, at_micros: int) -> Anchor:
    """The line that follows `before`."""
    number, previous = (before.number + 1, before.hash) if before is not None else (1, GENESIS)
    return _hashed(Anchor(number, at_micros, tenant, head.sequence, head.hash, previous, ""))


def _hashed(unhashed: Anchor) -> Anchor:
    fields = {name: value for name, value in unhashed._asdict().items() if name != "hash"}
    return unhashed._replace(hash=digest({"domain": ANCHOR_DOMAIN, **fields}))


class AnchorFile(NamedTuple):
    """What a file of anchors says."""

    anchors: tuple[Anchor, ...]
    problems: tuple[str, ...]
    """Lines that do not follow from the ones before them."""
    torn: int
    """Lines that are no anchors: an append was interrupted there, and the chain goes on after them."""


def read_anchors(lines: Iterable[str], *, whole: bool = True) -> AnchorFile:
    """Read a file of anchors and check that its lines follow from each other. `whole`: they begin with the file's first."""
    found: list[Anchor] = []
    problems: list[str] = []
    torn = 0
    for line in lines:
        one = _read_anchor(line)
        if one is None:
            torn += bool(line.strip())
            continue
        before = found[-1] if found else None
        expected = (1, GENESIS) if before is None else (before.number + 1, before.hash)
        if _hashed(one).hash != one.hash:
            problems.append(f"anchor {one.number} was changed")
        elif (one.number, one.previous) != expected and (before is not None or whole):
            problems.append(f"anchor {one.number} does not follow anchor {expected[0] - 1}")
        found.append(one)
    return AnchorFile(tuple(found), tuple(problems), torn)


def _read_anchor(line: str) -> Anchor | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or set(value) != set(Anchor._fields):
        return None
    one = Anchor(**value)  # type: ignore[arg-type]  # checked in the next lines
    numbers = (one.number, one.at_micros, one.sequence)
    texts = (one.tenant, one.head, one.previous, one.hash)
    good = all(type(number) is int for number in numbers) and all(isinstance(text, str) for text in texts)
    return one if good else None


def latest(anchors: Iterable[Anchor]) -> dict[str, Anchor]:
    """The last anchor of each tenant."""
    return {one.tenant: one for one in anchors}


class Chain:
    """Follows a tenant's log from an entry it is sure of (the beginning, or an anchor) to its end, and says what is wrong.

    After a wrong entry it goes on from what that entry says, so that one change is one problem and not all entries after it.
    """

    def __init__(self, tenant: str, anchors: Iterable[Anchor] = (), *, start: Head = EMPTY) -> None:
        self.tenant = tenant
        self.head = start
        self.problems: list[Problem] = []
        self.count = 0
        """Problems, the ones above `MOST_PROBLEMS` too."""
        self.anchors_met = 0
        self._anchors: dict[int, list[Anchor]] = {}
        for one in anchors:
            if one.tenant == tenant:
                self._anchors.setdefault(one.sequence, []).append(one)
        self._compare(start.sequence, start.hash)

    def follow(self, entries: Iterable[Entry]) -> None:
        """Check the next entries, in their order."""
        expected, previous = self.head
        tenant, anchored = self.tenant, self._anchors
        for sequence, before, stated, at_micros, run, event, body in entries:
            expected += 1
            if sequence != expected:
                self._wrong(sequence, _out_of_order(sequence, expected))
                expected = sequence
            elif before != previous:
                self._wrong(sequence, f"it does not follow entry {sequence - 1}, which was changed, replaced or put there")
            hashed = entry_hash(
                tenant=tenant, sequence=sequence, previous=before, at_micros=at_micros, run=run, event=event, body=body
            )
            if hashed != stated:
                self._wrong(sequence, "what it says is not what its hash was made of: it was changed")
            if anchored:
                self._compare(sequence, stated)
            previous = stated
        self.head = Head(expected, previous)

    def end(self, stated: Head | None) -> None:
        """Compare the end with what the head row says (None: there is no such row), and with anchors of entries that are gone."""
        reached = self.head
        if stated is None:
            if reached.sequence:
                self._wrong(reached.sequence, f"the log has {reached.sequence} entries, but its head is gone")
        elif stated != reached:
            said = f"its head says {stated.sequence} ({stated.hash[:12]})"
            self._wrong(reached.sequence, f"the log ends at entry {reached.sequence} ({reached.hash[:12]}), {said}")
        if self._anchors:
            last = self._anchors[max(self._anchors)][0]
            if last.sequence > reached.sequence:
                what = "is empty" if reached.sequence == 0 else f"ends at entry {reached.sequence}"
                seen = f"anchor {last.number} of {shown_time(last.at_micros)} saw entry {last.sequence}"
                self._wrong(reached.sequence, f"the log {what}, but {seen}: its tail was cut off")

    def _compare(self, sequence: int, stated: str) -> None:
        for one in self._anchors.pop(sequence, ()):
            if one.head == stated:
                self.anchors_met += 1
            else:
                seen = f"anchor {one.number} of {shown_time(one.at_micros)} saw {one.head[:12]}"
                self._wrong(sequence, f"its hash is {stated[:12]}, but {seen}: the log was computed anew")

    def _wrong(self, sequence: int, why: str) -> None:
        self.count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(self.tenant, sequence, why))


def _out_of_order(sequence: int, expected: int) -> str:
    if sequence < expected:
        return f"it stands after entry {expected - 1}"
    gone = f"entry {expected} is" if sequence == expected + 1 else f"entries {expected} to {sequence - 1} are"
    return f"{gone} missing before it"


class Note(BaseModel):
    """What a run knows that no activity did: it is written down by the next one that can, once."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    """Counted from 1 within a run; with `at` it tells a note from every other of its run."""
    at: AwareDatetime
    event: Event
    facts: dict[str, JsonValue]

    def body(self) -> dict[str, JsonValue]:
        """As the log keeps it."""
        return {**self.facts, "note": self.number, "received_at_micros": micros_of(self.at)}


def kept(notes: Sequence[Note], more: Note) -> tuple[Note, ...]:
    """With one more note, unless too many wait already."""
    most = REJECTIONS_KEPT if more.event == "decision_rejected" else NOTES_KEPT
    waiting = sum(note.event == more.event for note in notes)
    return (*notes, more) if waiting < most else tuple(notes)


def limits(budget: Budget) -> dict[str, JsonValue]:
    """The limits that a budget names, as integers: micro-dollars, milliseconds, counts."""
    found: dict[str, JsonValue] = {}
    for name in Budget.model_fields:
        value = getattr(budget, name)
        if isinstance(value, timedelta):
            found[f"{name}_ms"] = value // timedelta(milliseconds=1)
        elif name == "cost_usd" and value is not None:
            found["cost_micros"] = budget.cost_micros
        elif value is not None:
            found[name] = value
    return found


def micros_of(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def shown_time(at_micros: int) -> str:
    """Microseconds since 1970 as a person reads them, in UTC; any integer, for it may come out of a log that was changed."""
    try:
        return (_EPOCH + at_micros * _MICROSECOND).isoformat(timespec="seconds")
    except OverflowError:
        return f"{at_micros} µs"


EXPORT_FORMAT = "durable-agents/audit-export/1"


class ExportError(ValueError):
    """A file is no whole export. `str()` says in one line where and why."""


def export_beginning(tenants: Sequence[str], at_micros: int) -> str:
    """The first line of an export."""
    return _encode({"kind": "export", "format": EXPORT_FORMAT, "tenants": list(tenants), "at_micros": at_micros})


def export_entry(tenant: str, entry: Entry) -> str:
    """An entry's line."""
    return _encode({"kind": "entry", "tenant": tenant, **entry._asdict()})


def export_head(tenant: str, head: Head | None) -> str:
    """The line behind a tenant's last entry: what its head row says."""
    return _encode({"kind": "head", "tenant": tenant, "head": None if head is None else [head.sequence, head.hash]})


def export_end(lines: int) -> str:
    """The last line: how many there are, itself included."""
    return _encode({"kind": "end", "lines": lines})


def follow_export(lines: Iterable[str], anchors: Sequence[Anchor] = ()) -> Iterator[Chain]:
    """Check the chains of an export, each given when it is at its end.

    Raises:
        ExportError: it is no export, or a part of one.
    """
    chain: Chain | None = None
    tenants: list[str] = []
    ended = number = 0
    for number, line in enumerate(lines, 1):
        value = _export_line(line, number)
        match value.get("kind"):
            case "export" if number == 1 and value.get("format") == EXPORT_FORMAT:
                tenants = _texts(value.get("tenants"), number)
            case "entry" if number > 1 and not ended:
                tenant, entry = _exported(value, number)
                chain = chain or Chain(tenant, anchors)
                if chain.tenant != tenant:
                    raise ExportError(f"line {number}: an entry of {tenant} stands among those of {chain.tenant}")
                chain.follow((entry,))
            case "head" if number > 1 and not ended:
                tenant, head = _exported_head(value, number)
                chain = chain or Chain(tenant, anchors)
                if chain.tenant != tenant or tenant not in tenants:
                    raise ExportError(f"line {number}: the head of {tenant} does not belong here")
                chain.end(head)
                tenants.remove(tenant)
                yield chain
                chain = None
            case "end" if number > 1 and not ended and value.get("lines") == number:
                ended = number
            case _:
                raise ExportError(f"line {number} does not belong there: it is no line of an export, or lines are missing")
    if not ended or chain is not None or tenants:
        raise ExportError(f"it ends after line {number}, before its end: export again")


def _export_line(line: str, number: int) -> dict[str, JsonValue]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ExportError(f"line {number} is no JSON: this is no export of the audit log") from None
    if not isinstance(value, dict):
        raise ExportError(f"line {number} is no JSON object: this is no export of the audit log")
    return value


def _texts(value: JsonValue, number: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ExportError(f"line {number} does not say which tenants there are")
    return [str(one) for one in value]


def _exported(value: dict[str, JsonValue], number: int) -> tuple[str, Entry]:
    tenant = value.pop("tenant", None)
    del value["kind"]
    try:
        entry = Entry(**value)  # type: ignore[arg-type]  # checked in the next lines
    except TypeError:
        raise ExportError(f"line {number} is no entry: its fields are others") from None
    texts = (tenant, entry.previous, entry.hash, entry.run, entry.event)
    good = type(entry.sequence) is int and type(entry.at_micros) is int and isinstance(entry.body, dict)
    if not good or not isinstance(tenant, str) or not all(isinstance(text, str) for text in texts):
        raise ExportError(f"line {number} is no entry: a field is of another type")
    return tenant, entry


def _exported_head(value: dict[str, JsonValue], number: int) -> tuple[str, Head | None]:
    match value:
        case {"tenant": str(tenant), "head": None}:
            return tenant, None
        case {"tenant": str(tenant), "head": [int(sequence), str(stated)]}:
            return tenant, Head(sequence, stated)
    raise ExportError(f"line {number} is no head of a chain")
