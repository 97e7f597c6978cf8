"""Do the rules of the audit log find every change, with anchors or in an export, and nothing where nothing was changed?"""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from durable_agents.domain import audit
from durable_agents.domain.audit import GENESIS, Anchor, Chain, Entry, ExportError, Head, anchor, entry_hash, read_anchors
from durable_agents.domain.canonical import digest
from tests.support.audit_logs import chain as hashed
from tests.support.audit_logs import honest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCALAR = st.none() | st.booleans() | st.integers() | TEXT
BODY = st.dictionaries(TEXT, SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(TEXT, SCALAR, max_size=3), max_size=4)
LOG = list(honest("acme", 12))
END = Head(12, LOG[-1].hash)


def judged(entries: list[Entry], head: Head | None = END, anchors: tuple[Anchor, ...] = ()) -> Chain:
    """A chain at its end."""
    chain = Chain("acme", anchors)
    chain.follow(entries)
    chain.end(head)
    return chain


def anchors_of(*heads: Head, tenant: str = "acme") -> tuple[Anchor, ...]:
    """Anchors that saw these heads."""
    found: list[Anchor] = []
    for head in heads:
        found.append(anchor(found[-1] if found else None, tenant=tenant, head=head, at_micros=1_795_176_000_000_000))
    return tuple(found)


SEEN = anchors_of(Head(5, LOG[4].hash), END)


@given(tenant=TEXT, run=TEXT, event=TEXT, previous=TEXT, sequence=st.integers(), at=st.integers(), body=BODY)
def test_the_spelled_out_hash_is_the_canonical_digest(
    tenant: str, run: str, event: str, previous: str, sequence: int, at: int, body: dict[str, JsonValue]
) -> None:
    """It is spelled out for speed alone; an auditor who implements the documented format must get the same."""
    fields: dict[str, JsonValue] = {
        "tenant": tenant, "sequence": sequence, "previous": previous, "at_micros": at, "run": run, "event": event, "body": body,
    }  # fmt: skip
    expected = digest({"domain": "durable-agents/audit/1", **fields})
    found = entry_hash(tenant=tenant, sequence=sequence, previous=previous, at_micros=at, run=run, event=event, body=body)
    assert found == expected


def test_an_honest_log_is_unbroken_and_meets_its_anchors() -> None:
    """A false alarm is believed once."""
    found = judged(LOG, anchors=SEEN)
    assert (found.problems, found.anchors_met, found.head) == ([], 2, END)
    assert judged([], None).problems == judged([], Head(0, GENESIS)).problems == []


def recomputed() -> list[Entry]:
    """The log with another fifth entry and every hash made anew."""
    return list(
        hashed("acme", ((e.run, e.event, {**e.body, "sequence": e.sequence} if e.sequence == 5 else e.body) for e in LOG))
    )


def inserted() -> list[Entry]:
    """An entry in the middle, the others renumbered."""
    extra = LOG[4]._replace(sequence=6, event="forged")
    return [*LOG[:5], extra, *(e._replace(sequence=e.sequence + 1) for e in LOG[5:])]


TAMPERED: dict[str, tuple[list[Entry], Head | None, int, str]] = {
    "edit": ([*LOG[:4], LOG[4]._replace(event="other"), *LOG[5:]], END, 5, "it was changed"),
    "edit, and its hash": (
        [*LOG[:4], LOG[4]._replace(event="other", hash="f" * 64), *LOG[5:]], END, 5, "it was changed"),
    "delete": ([*LOG[:4], *LOG[5:]], END, 6, "entry 5 is missing"),
    "delete three": ([*LOG[:4], *LOG[7:]], END, 8, "entries 5 to 7 are missing"),
    "insert": (inserted(), Head(13, END.hash), 6, "does not follow entry 5"),
    "reorder": ([*LOG[:3], LOG[4]._replace(sequence=4), LOG[3]._replace(sequence=5), *LOG[5:]], END, 4, "does not follow"),
    "reorder, the numbers too": ([*LOG[:3], LOG[4], LOG[3], *LOG[5:]], END, 5, "entry 4 is missing"),
    "cut the tail": (LOG[:9], END, 9, "its head says 12"),
    "cut the tail, and the head": (LOG[:9], Head(9, LOG[8].hash), 9, "anchor 2 of 2026-11-20T12:00:00+00:00 saw entry 12"),
    "delete all": ([], None, 0, "the log is empty, but anchor 2"),
    "recompute": (recomputed(), Head(12, recomputed()[-1].hash), 5, "the log was computed anew"),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "head", "where", "why"), TAMPERED.values(), ids=TAMPERED.keys())
def test_each_kind_of_tampering_is_found_where_it_is(entries: list[Entry], head: Head | None, where: int, why: str) -> None:
    """Whoever must explain it to a court needs the entry and the kind, not an alarm."""
    found = judged(entries, head, SEEN)
    assert (found.problems[0].sequence, why in found.problems[0].why) == (where, True), found.problems


def test_one_change_is_one_break() -> None:
    """Where everything after it counted as broken, nobody would see the second change."""
    changed = [e._replace(event="other") if e.sequence in (3, 9) else e for e in LOG]
    assert [problem.sequence for problem in judged(changed).problems] == [3, 9]
    everything = judged([e._replace(event="other") for e in honest("acme", 500)], Head(500, "x"))
    assert (len(everything.problems), everything.count) == (audit.MOST_PROBLEMS, 501)


@given(st.integers(0, 11), st.sampled_from(["hash", "previous", "run", "event"]), st.text("0af", min_size=1, max_size=3))
def test_no_single_field_can_be_changed(place: int, field: str, text: str) -> None:
    """Any field of any entry."""
    changed = LOG[place]._replace(**{field: text})  # type: ignore[arg-type]
    assert judged([*LOG[:place], changed, *LOG[place + 1 :]]).problems


@pytest.mark.parametrize("change", [{"sequence": 4}, {"tenant": "rival"}, {"head": "f" * 64}, {"at_micros": 1}, {"number": 7}])
def test_a_changed_anchor_is_found(change: dict[str, object]) -> None:
    """Who can change a log and its anchors must change every line after it, and every copy of the file."""
    lines = [one.line for one in SEEN]
    lines[0] = json.dumps({**json.loads(lines[0]), **change})
    assert read_anchors(lines).problems
    assert read_anchors([lines[1]]).problems == ("anchor 2 does not follow anchor 0",)


@pytest.mark.parametrize("line", ["", "x", "{}", '{"number": 1', "[1]", "NaN", '{"number": true}'])
def test_a_torn_line_is_passed_over_and_the_chain_goes_on(line: str) -> None:
    """A full disk tears an append; the lines before and after it are as good as ever."""
    found = read_anchors([SEEN[0].line, line, SEEN[1].line])
    assert (found.anchors, found.problems, found.torn) == (SEEN, (), int(bool(line)))


def exported(entries: list[Entry] = LOG) -> list[str]:
    """An export of one log."""
    lines = [audit.export_beginning(["acme"], 1), *(audit.export_entry("acme", entry) for entry in entries)]
    return [*lines, audit.export_head("acme", END), audit.export_end(len(lines) + 2)]


def test_an_export_is_checked_like_the_log_itself() -> None:
    """It is what an auditor gets; who hands it over could have changed it."""
    (chain,) = audit.follow_export(exported(), SEEN)
    assert (chain.problems, chain.anchors_met) == ([], 2)
    (chain,) = audit.follow_export(exported([*LOG[:4], LOG[4]._replace(event="other"), *LOG[5:]]))
    assert [problem.sequence for problem in chain.problems] == [5]


def broken_exports() -> Iterator[tuple[str, list[str]]]:
    """Files that are no export, or a part of one."""
    whole = exported()
    yield "nothing", []
    for cut in (1, 5, len(whole) - 2, len(whole) - 1):
        yield f"cut after {cut}", whole[:cut]
    yield "a line is gone", [*whole[:5], *whole[6:]]
    yield "without its beginning", whole[1:]
    yield "twice", [*whole, *whole]
    yield "no JSON", [*whole[:5], "x", *whole[5:]]
    yield "another tenant", [*whole[:5], whole[5].replace('"acme"', '"rival"'), *whole[6:]]
    yield "a field more", [*whole[:5], whole[5].replace('{"at', '{"more":1,"at'), *whole[6:]]
    yield "a field of another type", [*whole[:5], whole[5].replace('"sequence":5', '"sequence":"5"'), *whole[6:]]
    yield "too deep", [whole[0], "[" * 100_000]


@pytest.mark.parametrize("lines", [lines for _, lines in broken_exports()], ids=[name for name, _ in broken_exports()])
def test_a_part_of_an_export_is_refused(lines: list[str]) -> None:
    """What is not there cannot be found wanting: the file must say where it ends."""
    with pytest.raises(ExportError) as refused:
        list(audit.follow_export(lines))
    assert "\n" not in str(refused.value)
