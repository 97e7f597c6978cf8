"""Is what others wrote printed as data, and is JSON alone on stdout?"""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from durable_agents.domain.approvals import Approval, ApprovalKind, Ladder, Rung
from durable_agents.domain.identifiers import ApprovalId, CallPath, Digest, RunId, UserId
from durable_agents.domain.runs import RunResult, RunStatus
from starter.cli.screen import Screen
from starter.cli.views import show_approval, show_result

BAD_TEXT = "\x1b[2J[red]all is well[/red]\u202e\x07\r\n:boom:"


def approval_of(text: str) -> Approval:
    """An approval in which everything a model or caller can write is `text`."""
    now = datetime.now(UTC)
    return Approval(
        id=ApprovalId("ap-1"),
        kind=ApprovalKind.TOOL_CALL,
        path=CallPath("1.0"),
        tool="issue_refund",
        title=f"issue_refund {text}",
        facts={"order": text},
        model_says=text,
        digest=Digest("d" * 64),
        policy_digest=Digest("p" * 64),
        requester=UserId("u-7"),
        ladder=Ladder(rungs=(Rung(within=timedelta(hours=4)),)),
        requested_at=now,
        deadline=now + timedelta(hours=4),
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_model_wrote_is_printed_inert_and_called_untrusted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    """A request that can clear the screen or recolour itself could make a person consent to something else."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    run = RunId("run:acme:k-1")
    show_approval(Screen(), run, approval_of(BAD_TEXT), None)
    show_result(Screen(), RunResult(run_id=run, status=RunStatus.COMPLETED, output=BAD_TEXT, explanation=BAD_TEXT))
    out = capsys.readouterr().out
    assert "untrusted, the model says" in out
    ours = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", ours)
    assert "\x1b[2J" not in out
    assert ours.count(r"\u001b[2J[red]all is well[/red]\u202e\u0007\u000d\u000a:boom:") == 5
    assert ("\x1b[" in out) == terminal


def test_the_commands_that_decide_are_shown_ready_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody should have to put ids together by hand while a deadline runs."""
    show_approval(Screen(), RunId("run:acme:k-1"), approval_of("A-1001"), "host:7233")
    out = capsys.readouterr().out
    assert "python -m starter approve run:acme:k-1 ap-1 --address host:7233\n" in out
    assert "python -m starter deny run:acme:k-1 ap-1 --address host:7233\n" in out


def test_json_is_alone_on_stdout_and_inert_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A program reads stdout to its end as one document; a person who looks at it is no less safe."""
    screen = Screen(as_json=True)
    screen.line("started")
    screen.document({"text": BAD_TEXT})
    said = capsys.readouterr()
    assert json.loads(said.out) == {"text": BAD_TEXT}
    assert said.out.isascii()
    assert "\x1b" not in said.out
    assert said.err == "started\n"
