"""What happens in a run while a person looks on, and how did it end?"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

from durable_agents.client import RunHandle
from durable_agents.domain.failures import FailureKind
from durable_agents.domain.identifiers import ApprovalId
from durable_agents.domain.prices import format_usd
from durable_agents.domain.runs import RunResult, RunStatus, RunView, TimelineEntry
from durable_agents.errors import AgentError, NotFound, NotReachable, NoWorker
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.screen import Screen
from starter.cli.views import show_approval

LOOK_EVERY = timedelta(milliseconds=400)
PATIENCE = timedelta(seconds=30)
"""How long nobody may answer before following is given up; a worker that died is back within 8 s."""

ENDINGS = {
    RunStatus.COMPLETED: ExitCode.OK,
    RunStatus.DEGRADED: ExitCode.DEGRADED,
    RunStatus.DENIED: ExitCode.DENIED,
    RunStatus.EXPIRED: ExitCode.EXPIRED,
    RunStatus.BUDGET_EXHAUSTED: ExitCode.BUDGET_EXHAUSTED,
    RunStatus.CANCELLED: ExitCode.CANCELLED,
    RunStatus.HANDED_OFF: ExitCode.HANDED_OFF,
    RunStatus.FAILED: ExitCode.FAILED,
}
Look = Callable[[RunView], Awaitable[None]]
"""Called after each look at the run."""


def exit_code(result: RunResult) -> ExitCode:
    """Of a run that was waited for. One that was not let in is no failed run: it can be started again."""
    shed = result.failure is not None and result.failure.kind is FailureKind.SHED
    return ExitCode.OVERLOADED if shed else ENDINGS[result.status]


class Follower:
    """Prints what is new in a run since the last look.

    Args:
        screen: where to.
        handle: the run.
        address: the `--address` for the commands that are shown.
    """

    def __init__(self, screen: Screen, handle: RunHandle, address: str | None = None) -> None:
        self._screen = screen
        self._handle = handle
        self._address = address
        self._last: TimelineEntry | None = None
        self._announced: set[tuple[ApprovalId, int]] = set()
        self._silent_since: float | None = None

    async def until_end(self, on_look: Look | None = None) -> RunResult:
        """Follow the run until it ended.

        Raises:
            CliError: the run was terminated from outside.
            NoWorker: nobody answered for half a minute.
            NotFound: there is no such run.
            NotReachable: the server is gone.
        """
        ending = asyncio.create_task(self._handle.result())
        try:
            with self._screen.busy("waiting for the first news") as busy:
                while not ending.done():
                    await self._look(busy, on_look)
                    await asyncio.wait({ending}, timeout=LOOK_EVERY.total_seconds())
            with suppress(AgentError):  # the result is there; what else happened is only nice to know
                self._show(await self._handle.status(), await self._handle.timeline())
            return await _result(ending)
        finally:
            ending.cancel()

    async def _look(self, busy: Callable[[str], None], on_look: Look | None) -> None:
        try:
            view = await self._handle.status()
            timeline = await self._handle.timeline()
        except (NotFound, NotReachable):
            raise
        except AgentError as error:
            self._no_answer(error)
            return
        self._silent_since = None
        self._show(view, timeline)
        limit = f" of {format_usd(view.budget.cost_micros)}" if view.budget.cost_micros is not None else ""
        busy(f"{view.status} · turn {view.turn} · {format_usd(view.spend.cost_micros)}{limit} · {view.doing}")
        if on_look is not None:
            await on_look(view)

    def _show(self, view: RunView, timeline: tuple[TimelineEntry, ...]) -> None:
        for entry in _after(self._last, timeline):
            self._screen.line(f"{entry.at.astimezone():%H:%M:%S}  {entry.what}")
        self._last = timeline[-1] if timeline else self._last
        for approval in view.pending_approvals:
            if (approval.id, approval.rung) not in self._announced:  # the next rung is news: other people, another deadline
                self._announced.add((approval.id, approval.rung))
                show_approval(self._screen, self._handle.id, approval, self._address)

    def _no_answer(self, error: AgentError) -> None:
        now = asyncio.get_running_loop().time()
        if self._silent_since is None:
            self._silent_since = now
            why = "no worker answers" if isinstance(error, NoWorker) else str(error)
            self._screen.line(f"{why}; the run is stored and goes on when a worker answers", "yellow")
        elif now - self._silent_since > PATIENCE.total_seconds():
            raise error


async def _result(ending: asyncio.Task[RunResult]) -> RunResult:
    try:
        return await ending
    except (NotFound, NotReachable):
        raise
    except AgentError as error:  # terminated from outside
        raise CliError(str(error), ExitCode.FAILED) from error


def _after(last: TimelineEntry | None, timeline: tuple[TimelineEntry, ...]) -> tuple[TimelineEntry, ...]:
    """The lines that came after `last`; all, if the run has forgotten that one."""
    if last is None or last not in timeline:
        return timeline
    places = [place for place, entry in enumerate(timeline) if entry == last]
    return timeline[places[-1] + 1 :]
