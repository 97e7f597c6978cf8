"""How does a command speak to people and to programs?

People read lines and tables; with `--json` those go to stderr and stdout carries exactly one JSON document. Every text is
printed as data: rich interprets no markup in it, and `plain` takes the terminal's control codes out of it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from pydantic import BaseModel, JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from starter.cli.plain_text import plain

_PIPE_WIDTH = 200  # not a terminal: ids must not be cut to 80 columns


def shown(text: str, style: str = "") -> Text:
    """Somebody's text, harmless."""
    return Text(plain(text), style=style, overflow="fold")


class Screen:
    """Where a command's words go.

    Args:
        as_json: keep stdout for the one document.
        live: whether a line may move at the bottom of a terminal; not where a person is to type there.
    """

    def __init__(self, *, as_json: bool = False, live: bool = True) -> None:
        self._as_json = as_json
        self._live = live
        self._console = _console(stderr=as_json)

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks on."""
        return self._console.is_terminal

    def line(self, text: str | Text = "", style: str = "") -> None:
        """One line for people."""
        self._console.print(text if isinstance(text, Text) else shown(text, style), soft_wrap=True)

    def facts(self, pairs: Iterable[tuple[str, str]], indent: str = "  ") -> None:
        """Names and values, one line each."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            self.line(shown(f"{indent}{name.ljust(width)}  ", "dim") + shown(value, "none"))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; only its words count, so it has no frame that a pipe would have to strip."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(Text(heading), no_wrap=not self.is_terminal, overflow="fold")
        for row in rows:
            table.add_row(*(shown(cell) for cell in row))
        self._console.print(table)

    def document(self, value: BaseModel | JsonValue) -> None:
        """The one JSON document, ASCII only so that it is inert on a terminal too; nothing unless JSON is wanted."""
        if self._as_json:
            plain_value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            print(json.dumps(plain_value, indent=1, allow_nan=False), flush=True)

    @contextmanager
    def busy(self, doing: str) -> Iterator[Callable[[str], None]]:
        """A line at the bottom of a terminal while something is waited for; gives the function that changes it."""
        if not (self._live and self.is_terminal):
            yield lambda _: None
            return
        with self._console.status(shown(doing)) as status:
            yield lambda text: status.update(shown(text))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
