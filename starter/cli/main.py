"""What happens around every command: arguments in, exit code out, and one line for whatever went wrong?"""

import sys
import traceback
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from starter.cli.app import app
from starter.cli.exit_codes import CliError, ExitCode
from starter.cli.plain_text import one_line

DEBUG = "--debug"
PROGRAM = "python -m starter"


def main(arguments: Sequence[str]) -> ExitCode:
    """Run one command and say how it ended. Never raises, never prints a traceback unless `--debug` is among the arguments."""
    wanted = [argument for argument in arguments if argument != DEBUG]  # wherever it stands: people append it
    try:
        ended = app(wanted, standalone_mode=False, prog_name=PROGRAM)
        if ended == ExitCode.INTERRUPTED and not isinstance(ended, ExitCode):
            raise KeyboardInterrupt  # typer made a number of it
        return ExitCode(ended or ExitCode.OK)
    except (BrokenPipeError, SystemExit):  # who read it has seen enough (`| head`); rich makes a SystemExit of that
        return ExitCode.OK
    except BaseException as error:  # noqa: BLE001 - the one place where every error becomes an exit code
        if DEBUG in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        print(f"error: {one_line(message)}", file=sys.stderr)
        return code


def _explain(error: BaseException) -> tuple[ExitCode, str]:
    if isinstance(error, TyperException):
        return ExitCode.USAGE, f"{error.format_message().rstrip('.')}: see `{PROGRAM} --help`, and `{PROGRAM} COMMAND --help`"
    if isinstance(error, CliError):
        return error.code, str(error)
    if isinstance(error, typer.Abort | EOFError):
        return ExitCode.INTERRUPTED, "nobody answered: nothing was decided, run the command again"
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted: runs go on without the command line, `runs` lists them"
    from starter.cli.errors import explain  # noqa: PLC0415 - import time: its exceptions live in heavy packages

    return explain(error)
