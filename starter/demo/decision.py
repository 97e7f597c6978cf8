"""Who decides in the demo: the person at the terminal, or nobody but the demo itself?"""

import asyncio
import sys

from durable_agents.client import RunHandle
from durable_agents.domain.approvals import Approval, same_person
from durable_agents.domain.identifiers import ApprovalId
from durable_agents.domain.runs import RunView
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.screen import Screen

APPROVER = "demo-approver"


class Decider:
    """Decides what waits, once each.

    Args:
        screen: where the question goes.
        handle: the run.
        person: who sits at the terminal.
        yes: approve without asking.
    """

    def __init__(self, screen: Screen, handle: RunHandle, person: str, *, yes: bool) -> None:
        self._screen = screen
        self._handle = handle
        self._person = person
        self._yes = yes
        self._decided: set[ApprovalId] = set()
        self.approved = False
        """Was everything approved that was asked?"""

    async def decide_what_waits(self, view: RunView) -> None:
        """Decide every approval that the run waits for now."""
        for approval in view.pending_approvals:
            if approval.id not in self._decided:
                self._decided.add(approval.id)
                await self._decide(approval)

    async def _decide(self, approval: Approval) -> None:
        by = APPROVER if self._yes or same_person(self._person, approval.requester) else self._person
        self.approved = self._yes or await self._asked(by)
        send = self._handle.approve if self.approved else self._handle.deny
        await send(approval.id, by=by, reason="decided in the demo")
        self._screen.line(f"{by} {'approves' if self.approved else 'denies'} {approval.id} by signal", "bold")

    async def _asked(self, by: str) -> bool:
        while True:
            self._screen.line(f"your decision as {by}: type approve or deny, then Enter", "bold yellow")
            word = (await self.typed_line()).strip().lower()
            if word in {"approve", "a", "yes", "y"}:
                return True
            if word in {"deny", "d", "no", "n"}:
                return False

    async def typed_line(self) -> str:
        """A line from the terminal. Read by the event loop, not by a thread: a thread could not be stopped by Ctrl-C.

        Raises:
            CliError: the terminal is gone.
        """
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(sys.stdin, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(sys.stdin)
        line = sys.stdin.readline()
        if not line:
            raise CliError("nobody decided, the terminal is gone: run `demo` again, or `demo --yes`", ExitCode.INTERRUPTED)
        return line
