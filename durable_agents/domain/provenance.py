"""Where does a text come from, and may a call act on it without a human?

Nobody can tell harmless text from harmful, so nothing here reads it for intentions. Once untrusted text is in a conversation,
what the model asks for may be somebody else's wish, and a call that acts must go where the operator or the user said it may:
its destination stands, whole, in their own words or on the policy's list. Everything else is a human's to decide.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from durable_agents.domain.approvals import Ladder
from durable_agents.domain.canonical import inert, visible
from durable_agents.domain.effects import Effect
from durable_agents.domain.permissions import Policy, Ruling, Verdict, ever_unasked
from durable_agents.domain.tools import ToolSpec, resource_fields, resource_of

_SEPARATORS = re.compile(r"""[\s,;<>()\[\]{}|"`“”„«»，、；]+""")
_TRAILING = ".:!?…。"
_PAIRED = "'*_"
_FOLDED = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?[^/]*", re.IGNORECASE)
"""The part of a token whose case means nothing: all of it, but for what follows the host of an address."""
_SHOWN = 60


class Label(StrEnum):
    """Whose words a message may be."""

    TRUSTED = "trusted"  # the operator's, the user's, or the model's and a trusted tool's that have read nothing else
    UNTRUSTED = "untrusted"


def result_label(context: Label, spec: ToolSpec | None) -> Label:
    """The label of what a call brought, asked for in a conversation of this label; without a tool: of what we said ourselves."""
    return context if spec is None or spec.trusted else Label.UNTRUSTED


@dataclass(frozen=True)
class TrustedText:
    """The words of the operator and of the user, as whole tokens."""

    exact: frozenset[str]
    folded: frozenset[str]

    @classmethod
    def of(cls, prompt: str, given: JsonValue) -> "TrustedText":
        """The tokens of a prompt and of every value of a run's input; a value is also a token as a whole."""
        values = [value for value in _leaves(given) if value.strip()]
        exact = {token for text in (prompt, *values) for token in _tokens(text)} | {value.strip() for value in values}
        return cls(frozenset(exact), frozenset(_folded(_plain(token)) for token in exact))

    def has(self, value: str) -> bool:
        """Does the value stand in the text, whole? What hides characters does not, nor does what only looks like it."""
        if not value.strip() or not all(map(visible, value)):
            return False
        return value in self.exact or (_plain(value) == value and _folded(value) in self.folded)


def permitted(value: str, patterns: Iterable[str]) -> bool:
    """Is the value on the policy's list? `*` is a part of a name or host, `**` also what follows it in an address."""
    if not value or _plain(value) != value:
        return False
    folded = _folded(value)
    return any(_pattern(pattern).fullmatch(folded) for pattern in patterns)


def problem(
    spec: ToolSpec, arguments: Mapping[str, JsonValue], label: Label, text: TrustedText, permits: Sequence[str]
) -> str | None:
    """Why the call may not be made without a human, as its policy's reason is worded; None: nothing is against it."""
    if label is Label.TRUSTED or not acts(spec):
        return None
    resource_permitted = permitted(resource_of(spec, arguments), permits)
    named = spec.destination if resource_permitted else (*spec.destination, *resource_fields(spec.resource))
    values = [value for name in dict.fromkeys(named) for value in _leaves(arguments.get(name)) if value]
    for value in values:
        if not text.has(value) and not permitted(value, permits):
            return f"reads untrusted text; '{inert(value, _SHOWN)}' stands in no trusted text"
    if values or resource_permitted:
        return None
    return "reads untrusted text, and names no destination that could stand in trusted text"


def acts(spec: ToolSpec) -> bool:
    """Can the tool change the world or carry data out? One that is no read in its effect does, whatever risk it declares."""
    return spec.risk != "read" or spec.effect is not Effect.READ


def judged(verdict: Verdict, against: str | None, ladder: Ladder) -> Verdict:
    """The policy's verdict, never weakened: what it allows needs a human where provenance has something against it."""
    if against is None or verdict.ruling is not Ruling.ALLOW:
        return verdict
    return verdict.model_copy(update={"ruling": Ruling.ASK, "reason": against, "ladder": ladder})


def way_out(agent: str, tools: Sequence[ToolSpec], policy: Policy) -> tuple[int, str] | None:
    """Private data, untrusted text, and a tool that carries out what nothing gates: the tool's place, and what is wrong."""
    private = next((spec.name for spec in tools if spec.private), None)
    untrusted = next((spec.name for spec in tools if not spec.trusted), None)
    if private is None or untrusted is None:
        return None
    for place, spec in enumerate(tools):
        names_one = bool(spec.destination or resource_fields(spec.resource))
        if spec.risk == "egress" and not names_one and ever_unasked(policy, spec.name, agent=agent):
            legs = f"private data ({private}), untrusted text ({untrusted}) and a way out that nothing gates ({spec.name})"
            remedy = f"say where {spec.name} sends by `destination=` in its @tool, or `ask` or `deny` it in the policy"
            return place, f"agent {agent} has {legs}: {remedy}"
    return None


def _leaves(value: JsonValue) -> list[str]:
    """Every text and number in a value, as text."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [json.dumps(value)]


def _tokens(text: str) -> Iterable[str]:
    """The words of a text as a reader takes them: without the full stop after them, or the quotes around them."""
    for piece in _SEPARATORS.split(text):
        token = piece
        while token:
            yield token
            ended = token.rstrip(_TRAILING)
            is_quoted = len(ended) > 2 and ended[0] == ended[-1] and ended[0] in _PAIRED
            token = ended[1:-1] if is_quoted else ended if ended != token else ""


def _plain(token: str) -> str:
    """One spelling for what looks alike by Unicode's own account, and nothing that is not seen."""
    compatible = unicodedata.normalize("NFKC", token)
    return unicodedata.normalize("NFKC", "".join(char for char in compatible if visible(char)))


def _folded(token: str) -> str:
    """Without its case, where case means nothing. Not `casefold`: that makes one of `straße.example` and `strasse.example`."""
    found = _FOLDED.match(token)
    end = 0 if found is None else found.end()
    return token[:end].lower() + token[end:]


def _pattern(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", _folded(_plain(pattern)))
    wild = {"*": r"[\w.+~-]*", "**": r"""[^\s,;<>()\[\]{}|"`\\@]*"""}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts))
