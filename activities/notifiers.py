"""How is a person reached?

By `apprise`, to whatever its URLs name (chat, mail, webhook). Without a URL a line in the worker's log must do.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from pydantic import SecretStr

_log = logging.getLogger(__name__)


class NotDelivered(Exception):  # noqa: N818 - a fact about a message, named as one
    """Nobody was reached; the message says no more than is safe to log."""


class NotifierError(ValueError):
    """A notification URL that leads nowhere; the message is one line with the remedy, without the URL's secrets."""


class Notifier(Protocol):
    """Whoever can tell people something."""

    async def tell(self, title: str, body: str) -> None:
        """Tell it. Raises NotDelivered."""
        ...


class LogNotifier:
    """A warning in the worker's log."""

    async def tell(self, title: str, body: str) -> None:
        """Write one line."""
        _log.warning("%s: %s", title, body)


class UrlNotifier:
    """Every URL is told everything."""

    def __init__(self, urls: Sequence[SecretStr]) -> None:
        """Raises NotifierError for a URL that is none."""
        import apprise  # noqa: PLC0415 - a second of import time, which only workers with somebody to tell spend

        self._apprise = apprise.Apprise()
        for number, url in enumerate(urls, 1):
            if not self._apprise.add(url.get_secret_value()):
                raise NotifierError(
                    f"notification URL {number} is none that can be used: see https://github.com/caronc/apprise/wiki"
                )

    async def tell(self, title: str, body: str) -> None:
        """Tell every URL; at least one that could not be told is a failure."""
        if not await self._apprise.async_notify(title=title, body=body):
            raise NotDelivered("a notification URL did not take it; its own log lines say why")


def notifier_of(urls: Sequence[SecretStr]) -> Notifier:
    """The notifier of these URLs."""
    return UrlNotifier(urls) if urls else LogNotifier()
