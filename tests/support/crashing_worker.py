"""A real worker that kills itself with SIGKILL at one chosen point: `CRASH_AT=point#n python tests/support/crashing_worker.py`.

The product knows nothing of this: the points are wrapped around its functions here, in the process that is about to die.
"""

import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from temporalio.worker.workflow_sandbox import _runner as sandbox_runner

import worker
from activities import attempts, dispatches, tool_calls
from activities.model_calls import ModelActivities
from activities.prepared_calls import PreparedCall
from activities.providers.anthropic import AnthropicProvider
from activities.runs import RunActivities
from activities.tool_calls import ToolActivities

POINT, _, NUMBER = os.environ["CRASH_AT"].partition("#")
_passes = 0


def reached(point: str) -> None:
    """Die here if this is the chosen point, passed for the chosen time."""
    global _passes  # noqa: PLW0603 - one counter for one process
    if point == POINT:
        _passes += 1
        if _passes == int(NUMBER or 1):
            die()


def die() -> None:
    """SIGKILL to ourselves: nothing is flushed, nothing is closed. With CRASH_SIGNAL=SIGSTOP we freeze, and may come back."""
    os.kill(os.getpid(), signal.Signals[os.environ.get("CRASH_SIGNAL", "SIGKILL")])


def around(owner: Any, name: str, before: str = "", after: str = "", only: type | None = None) -> None:
    """Put points before and after an async function; `after` only where its result is of the type `only`."""
    original: Callable[..., Awaitable[object]] = getattr(owner, name)

    @functools.wraps(original)
    async def wrapped(*args: object, **kwargs: object) -> object:
        reached(before)
        result = await original(*args, **kwargs)
        if only is None or isinstance(result, only):
            reached(after)
        return result

    setattr(owner, name, wrapped)


around(RunActivities, "admit_run", before="before_admission", after="after_admission")
around(RunActivities, "finish_run", before="before_finish", after="after_finish")
around(ModelActivities, "_open", before="before_model_dispatch", after="after_model_dispatch")
around(AnthropicProvider, "complete", after="after_model_reply")
around(attempts, "record", after="while_recording_answer")
around(ModelActivities, "_record_answer", after="after_answer_recorded")
around(ToolActivities, "_begin", before="before_tool_dispatch")
around(ToolActivities, "_begin", after="after_tool_dispatch", only=PreparedCall)
around(tool_calls, "_send", before="before_effect", after="after_effect")
around(dispatches, "settle", after="while_settling")
around(ToolActivities, "_settle", after="after_effect_recorded")


def _dying_activation(original: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(original)
    def activate(*args: object, **kwargs: object) -> object:
        result = original(*args, **kwargs)
        reached("in_workflow_task")
        return result

    return activate


sandbox_runner._Instance.activate = _dying_activation(sandbox_runner._Instance.activate)  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    sys.exit(worker.main())
