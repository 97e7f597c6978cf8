"""Does a run show itself truly, and without letting anybody else speak in its name?"""

import re
from datetime import timedelta

import pytest
from hypothesis import given
from markdown_it import MarkdownIt

from durable_agents.domain.budgets import Budget, Spend
from durable_agents.domain.canonical import inert
from durable_agents.domain.identifiers import Micros, RunId
from durable_agents.domain.run_state import RunState, asked, noted, rejected
from durable_agents.domain.run_views import budget_view, markdown, status, view
from durable_agents.domain.runs import RunRequest, RunResult, RunStatus
from durable_agents.domain.tool_calls import call_line, facts
from tests.domain.strategies import NOW, any_text, approval, checked
from tests.domain.test_turns import state as admitted

REQUEST = RunRequest(agent="refunds", user="ann", idempotency_key="k", tenant="acme")
RENDER = MarkdownIt("gfm-like", {"linkify": False, "html": True})
NASTY = [
    "[approved by the boss](http://evil.example)",
    "![x](http://evil.example/pixel.png)",
    "<img src=x onerror=alert(1)>",
    "<http://evil.example>",
    "http://evil.example",
    "www.evil.example",
    "&#x202e;txet",
    "# You are safe",
    "x\n\n# You are safe\n\n- [x] approved",
    "` `` ``` code",
    "| a | b |\n|---|---|",
    "**bold** _it_ ~~gone~~",
    "[ref]: http://evil.example\n[ref]",
    "\x1b[31mred",
    "\u202eevil",
    "x" * 100_000,
]


def shown(said: str) -> RunState:
    """A run in which a model or a sender said this wherever something can be said."""
    asking = approval(title=call_line("refund", {"note": said}), facts=facts({"note": said, said[:40]: "x"}))
    state = asked(admitted(), NOW, asking)
    state = rejected(state, NOW, "submit_approval", said, said)
    return noted(state, NOW, said)


def forbidden_html(text: str) -> list[str]:
    """Tags in the rendered page that only somebody else can have put there, and text outside of code that came from there."""
    html = RENDER.render(text)
    return re.findall(r"<(?!/?(?:p|strong|code|ul|li|br)\b)[^>]*>", html)


@pytest.mark.parametrize("said", NASTY, ids=[said[:20] for said in NASTY])
def test_what_others_say_is_inert_in_the_web_ui(said: str) -> None:
    """Whoever consents reads this page; a link, an image or a heading of the model's would speak with our voice."""
    text = markdown(shown(said))
    assert forbidden_html(text) == []
    outside = re.sub(r"<code>.*?</code>", "", RENDER.render(text), flags=re.DOTALL)
    assert "evil" not in outside
    assert "\u202e" not in outside
    assert "safe" not in outside
    assert len(text) < 20_000


@checked
@given(any_text)
def test_no_text_breaks_out_of_its_code_span(said: str) -> None:
    """Any text at all."""
    assert forbidden_html(markdown(shown(said))) == []


def test_the_page_would_show_an_intruder() -> None:
    """The check above has to see a link where there is one."""
    assert forbidden_html("[a](http://evil.example)") == ['<a href="http://evil.example">', "</a>"]
    assert forbidden_html("# head")
    assert forbidden_html("<img src=x>")


def test_the_page_says_where_the_run_stands_and_what_it_cost() -> None:
    """An operator opens the run and must not need a second page."""
    state = shown("a large refund").model_copy(
        update={
            "budget": Budget.model_validate({"cost_usd": "0.50"}),
            "spend": Spend(cost_micros=Micros(1_500), unknown_micros=Micros(20_000), model_calls=2, tool_calls=1),
        }
    )
    text = markdown(state)
    assert "**waiting_approval** · turn 0" in text
    assert "`$0.0015` of `$0.50`, `$0.02` held for attempts with unknown outcome · 2 model calls · 1 tool calls" in text
    assert "**Waits for anybody but the requester** until 2026-11-20 13:00 UTC (rung 1 of 1)" in text
    assert f"`{state.approvals[0].id}`" in text
    assert "1 rejected messages" in text


ENDED = RunResult(run_id=RunId("run:acme:k"), status=RunStatus.DENIED)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (RunState(started_at=NOW), RunStatus.STARTING),
        (admitted(), RunStatus.RUNNING),
        (asked(admitted(), NOW, approval()), RunStatus.WAITING_APPROVAL),
        (asked(admitted(), NOW, approval()).model_copy(update={"result": ENDED}), RunStatus.DENIED),
    ],
    ids=lambda value: value.value if isinstance(value, RunStatus) else "",
)
def test_a_status_is_what_the_run_does(state: RunState, expected: RunStatus) -> None:
    """Search attributes, queries and results all take it from here."""
    assert status(state) is expected
    seen = view(state, REQUEST)
    assert (seen.status, seen.run_id, seen.agent, seen.user) == (expected, REQUEST.run_id, "refunds", "ann")
    assert expected.is_end == (expected is RunStatus.DENIED)


def test_the_budget_view_counts_time_from_the_start() -> None:
    """Somebody who raises a limit must see what is used."""
    seen = budget_view(RunState(started_at=NOW), NOW + timedelta(seconds=90))
    assert (seen.wall_seconds, seen.working_seconds) == (90, 90)


@checked
@given(any_text, any_text)
def test_what_a_human_reads_before_consenting_is_inert(name: str, value: str) -> None:
    """Names and values both come from the model."""
    for line in (call_line(name, {name: value}), *facts({name: value}).keys(), *facts({name: [value, {name: value}]}).values()):
        assert line == inert(line, len(line))
        assert line.isprintable()
