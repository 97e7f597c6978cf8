"""How does a real worker die, or freeze, at exactly one point?

The product knows nothing of this: the points are wrapped around its functions here, in the process that is about to die.
Importing everything takes seconds, so this process does it once and forks: each line of JSON on its standard input is the
environment of one worker, `{"NAME": "…", "CRASH_AT": "point#n", …}`; it answers with the worker's pid, and when it is gone with
its exit code.
"""

import functools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from temporalio.worker.workflow_sandbox import _runner as sandbox_runner

import worker
from activities import attempts, dispatches, tool_calls
from activities.model_calls import ModelActivities
from activities.prepared_calls import PreparedCall
from activities.providers.anthropic import AnthropicProvider
from activities.runs import RunActivities
from activities.tool_calls import ToolActivities

_passes = 0


def reached(point: str) -> None:
    """Die here if this is the chosen point, passed for the chosen time."""
    global _passes  # noqa: PLW0603 - one counter for one process
    chosen, _, number = os.environ.get("CRASH_AT", "").partition("#")
    if point == chosen:
        _passes += 1
        if _passes == int(number or 1):
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


def serve_forks() -> None:
    """Fork a worker for each line of input; report each worker's end."""
    signal.signal(signal.SIGCHLD, lambda *_: report_ends())
    for line in sys.stdin:
        environment = json.loads(line)
        pid = os.fork()
        if pid == 0:
            be_a_worker(environment)
        say({"name": environment["NAME"], "pid": pid})


def be_a_worker(environment: dict[str, str]) -> NoReturn:
    """What a process started for it alone would do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environment)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    code = worker.main()
    os._exit(code)


def report_ends() -> None:
    """Say which workers are gone, and how."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def say(what: dict[str, object]) -> None:
    """One line of JSON on standard output, in one write."""
    os.write(1, (json.dumps(what) + "\n").encode())


if __name__ == "__main__":
    serve_forks()
