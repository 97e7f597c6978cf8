"""Do `dev` and `demo` start everything, stop everything, and live through what happens in between?"""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from starter.cli.exit_codes import ExitCode
from starter.embedded.servers import reset
from tests.starter.test_cli_system import line_with, started


def environment_of_process(pid: int) -> bytes:
    """What a process was given."""
    return Path(f"/proc/{pid}/environ").read_bytes()


def children_of(folder: Path) -> list[str]:
    """Every process whose environment or command line names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told:
            found.append((process / "cmdline").read_text())
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
async def test_dev_is_found_by_other_terminals_replaces_its_worker_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """One command to have everything, one Ctrl-C to have nothing; between them no environment is needed."""
    here = {"DURABLE_AGENTS_STATE_DIR": str(tmp_path), "ANTHROPIC_API_KEY": "none"}
    async with started("dev", environment=here) as dev:
        worker = int((await line_with(dev, "worker ready")).rpartition("pid ")[2])
        await line_with(dev, "up; ")
        async with started("doctor", "--json", environment=here) as doctor:
            checks = json.loads((await doctor.communicate())[0])
            assert [check["what"] for check in checks if check["good"] is not True] == []
        assert b"OWNER_DATABASE_URL" not in environment_of_process(worker)
        os.kill(worker, signal.SIGKILL)
        await line_with(dev, f"worker {worker} died (signal 9): starting another")
        assert int((await line_with(dev, "worker ready")).rpartition("pid ")[2]) != worker
        async with started("dev", environment=here) as second:
            assert await second.wait() == ExitCode.NOT_REACHABLE
        os.killpg(dev.pid, signal.SIGINT)
        await line_with(dev, "stopping the servers")
        assert await dev.wait() == ExitCode.OK
    assert children_of(tmp_path) == []
    assert not (tmp_path / "endpoints.json").exists()
    reset(tmp_path)


async def test_dev_on_a_busy_port_is_one_line(tmp_path: Path) -> None:
    """A second project on the same machine is normal; a hang, or a traceback of a server's log, is no answer to it."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        async with started("dev", "--temporal-port", port, environment={"DURABLE_AGENTS_STATE_DIR": str(tmp_path)}) as dev:
            _, said = await dev.communicate()
            assert dev.returncode == ExitCode.NOT_REACHABLE
    assert said.decode() == f"error: port {port} for Temporal is in use: choose another port, or stop what listens there\n"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
async def test_the_demo_survives_its_own_kill_and_pays_once(tmp_path: Path) -> None:
    """It is the first thing anybody sees, and it claims exactly one refund and one message."""
    async with started(
        "demo", "--yes", environment={"DURABLE_AGENTS_STATE_DIR": str(tmp_path), "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
    ) as demo:
        said, complaints = (part.decode() for part in await demo.communicate())
    assert demo.returncode == ExitCode.OK, f"{said}{complaints}"
    for words in (
        "stand-in on loopback, no real model is asked",
        "kill -9 ",
        "demo-approver approves ap-",
        "ended: completed",
        "refunds                   1",
        "messages to the customer  1",
        "/namespaces/default/workflows/run%3Adefault%3Ademo-",
    ):
        assert words in said
    assert children_of(tmp_path) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
async def test_a_person_decides_and_closing_the_terminal_stops_everything(tmp_path: Path) -> None:
    """A no must have no effect, and a demo that is left half-way must not keep servers running that nobody knows of."""
    terminal, keyboard = os.openpty()
    try:
        async with started("demo", stdin=keyboard, environment={"DURABLE_AGENTS_STATE_DIR": str(tmp_path)}) as demo:
            for word in ("perhaps", "deny"):
                await line_with(demo, "type approve or deny, then Enter")
                os.write(terminal, f"{word}\n".encode())
            await line_with(demo, " denies ap-")
            await line_with(demo, "refunds                   0")
            await line_with(demo, "messages to the customer  0")
            await line_with(demo, "Press Enter to stop the servers")
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # under `nohup` whoever we start ignores it too
            demo.send_signal(signal.SIGTERM if ignored else signal.SIGHUP)
            _, said = await demo.communicate()
            assert demo.returncode == ExitCode.INTERRUPTED
            assert said.decode() == "error: interrupted: everything the demo started is stopped, start it again any time\n"
    finally:
        os.close(terminal)
        os.close(keyboard)
    assert children_of(tmp_path) == []
