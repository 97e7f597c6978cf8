"""How does `python -m starter` begin, and how does it end?

It ends by `os._exit`: the Temporal SDK's threads abort an interpreter that shuts down right after its work, in 5 to 25 % of
short runs and with exit code 134 after everything went well (temporalio/sdk-python issue 300, open since 2023). A command line
whose exit code is a lottery is of no use in a script, so what is buffered is flushed and nothing else is waited for.
"""

import contextlib
import os
import sys
from typing import Never

from starter.cli.main import main


def leave(code: int) -> Never:
    """End the process at once, with everything printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone (`| head`), and that is no failure of ours
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
