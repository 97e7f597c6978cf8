"""How is somebody else's text made harmless for a terminal?

Names, facts and a model's words are data. Printed as they are they could move the cursor, recolour or hide what a person reads
before consenting; so every character that does not print is shown as its number.
"""

import sys


def plain(text: str) -> str:
    """`text` with control, bidi and invisible characters as their numbers; what prints stays as it is."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


def one_line(text: str, limit: int = 600) -> str:
    """The first line of `text`, harmless and not longer than a person reads."""
    line = plain(text.strip().partition("\n")[0])
    return line if len(line) <= limit else f"{line[:limit]}…"


def say(text: str) -> None:
    """Print a message for people where it cannot spoil a JSON document."""
    print(plain(text), file=sys.stderr, flush=True)
