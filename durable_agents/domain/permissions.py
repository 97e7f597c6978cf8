"""May this user's agent make this call: allow, deny, or ask a human?

Rules are tried in order, the first that matches decides, nothing matching means deny. A condition that errors never allows:
the call is denied, because a broken rule that is skipped would let a looser one below it decide.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from durable_agents.domain.approvals import Ladder
from durable_agents.domain.identifiers import Digest, Micros, UserId
from durable_agents.domain.prices import MILLION
from durable_agents.domain.tools import Risk

EVERYBODY = "*"
GROUP = "@"
"""Before the name of a group, where user ids are listed; no user id begins so."""


class Ruling(StrEnum):
    """What a policy says of a call."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Rule(BaseModel):
    """One line of a policy: exactly one of `allow`, `deny`, `ask` names the tool (a glob)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    allow: str | None = None
    deny: str | None = None
    ask: str | None = None
    role: str = EVERYBODY
    agent: str = EVERYBODY
    """A glob: for a document that several agents share."""
    resource: str = EVERYBODY
    when: str | None = None
    """A CEL condition over the `FACTS`; absent: always."""
    ladder: str | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _one_effect(self) -> "Rule":
        named = [effect for effect in Ruling if getattr(self, effect.value) is not None]
        if len(named) != 1:
            raise ValueError("a rule has exactly one of allow, deny, ask")
        if (self.ladder is not None) != (named == [Ruling.ASK]):
            raise ValueError("`ladder` belongs to `ask`, and only there")
        return self

    @property
    def ruling(self) -> Ruling:
        """What the rule says when it matches."""
        return next(effect for effect in Ruling if getattr(self, effect.value) is not None)

    @property
    def tool(self) -> str:
        """The glob of tools it is about."""
        pattern: str = getattr(self, self.ruling.value)
        return pattern


class Policy(BaseModel):
    """An agent's `policy.yaml`, or a version of it that was put in force without a deploy."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Group → user ids; `*` is everybody. Roles and the approvers of ladders name it `@group`."""
    roles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Role → user ids and `@groups` that have it; `*` is everybody."""
    rules: tuple[Rule, ...]
    ladders: dict[str, Ladder] = Field(default_factory=dict)
    trusted_destinations: tuple[str, ...] = Field(default=(), max_length=1000, exclude_if=lambda listed: not listed)
    """Where calls may go although the run has read untrusted text; what is wild stands at `provenance.permitted`."""

    @model_validator(mode="after")
    def _names_exist(self) -> "Policy":
        for number, rule in enumerate(self.rules):
            if rule.ladder is not None and rule.ladder not in self.ladders:
                raise _nothing_called(("rules", number, "ladder"), rule.ladder)
            if rule.role != EVERYBODY and rule.role not in self.roles:
                raise _nothing_called(("rules", number, "role"), rule.role)
        for group, members in self.groups.items():
            for number, member in enumerate(members):
                if member.startswith(GROUP):
                    raise _misplaced(("groups", group, number), "a group lists user ids, not groups: {name}", member)
        for place, name in self._listed():
            if name.startswith(GROUP) and name.removeprefix(GROUP) not in self.groups:
                raise _misplaced(place, "there is no group {name}", name)
        return self

    def document(self) -> JsonValue:
        """The canonical form, of which digests are made."""
        document: JsonValue = self.model_dump(mode="json")
        return document

    def _listed(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """Everybody who is named where groups may be, and where."""
        for role, users in self.roles.items():
            yield from ((("roles", role, number), name) for number, name in enumerate(users))
        for ladder, stated in self.ladders.items():
            for rung, asked in enumerate(stated.rungs):
                place = ("ladders", ladder, "rungs", rung, "approvers")
                yield from (((*place, number), name) for number, name in enumerate(asked.approvers))

    def members(self, listed: Iterable[str]) -> tuple[str, ...]:
        """The user ids meant by user ids and `@groups`, each once, in order."""
        found: dict[str, None] = {}
        for name in listed:
            is_group = name.startswith(GROUP)
            found |= dict.fromkeys(self.groups.get(name.removeprefix(GROUP), ()) if is_group else (name,))
        return tuple(found)

    def roles_of(self, user: UserId) -> tuple[str, ...]:
        """The roles a user has, sorted."""
        listed = {role: self.members(users) for role, users in self.roles.items()}
        return tuple(sorted(role for role, users in listed.items() if EVERYBODY in users or user in users))

    def ladder(self, name: str) -> Ladder | None:
        """The ladder of this name, the groups among its approvers as the users they are; None: there is none."""
        stated = self.ladders.get(name)
        if stated is None:
            return None
        rungs = tuple(rung.model_copy(update={"approvers": self.members(rung.approvers)}) for rung in stated.rungs)
        return stated.model_copy(update={"rungs": rungs})


FACTS = ("args", "tool", "resource", "role", "roles", "user", "tenant", "agent", "risk", "spent", "calls", "now")
"""What a condition can look at."""


class Call(BaseModel):
    """What a rule can look at."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    tool: str
    risk: Risk
    resource: str
    arguments: Mapping[str, object]
    """Validated arguments; decimals as numbers, so that `args.amount > 100` means what it says."""
    user: UserId
    tenant: str
    agent: str
    spent_micros: Micros
    """What the run has cost and may have cost so far, requests of unknown outcome at their maximum."""
    calls: int
    """Tool calls that the run's model has asked for before this one, made or not."""
    now: datetime
    """Aware; conditions read it in UTC."""


class Verdict(BaseModel):
    """What a policy decided, and by which rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ruling: Ruling
    rule: int | None
    """The rule's place, from 0; None: no rule matched."""
    reason: str
    ladder: Ladder | None = None
    policy_digest: Digest


class ConditionError(Exception):
    """A condition could not be evaluated to true or false."""


Evaluate = Callable[[str, Mapping[str, object]], bool]
"""Evaluates a CEL condition; raises ConditionError for anything but true and false."""


def decide(policy: Policy, policy_digest: Digest, call: Call, evaluate: Evaluate) -> Verdict:
    """The verdict on a call."""
    roles = policy.roles_of(call.user)
    for number, rule in enumerate(policy.rules):
        matching = [role for role in (*roles, EVERYBODY) if rule.role == role]
        about = (call.tool, rule.tool), (call.resource, rule.resource), (call.agent, rule.agent)
        if not matching or not all(fnmatchcase(what, pattern) for what, pattern in about):
            continue
        try:
            applies = rule.when is None or evaluate(rule.when, _facts(call, matching[0], roles))
        except ConditionError as error:
            reason = f"rule {number} could not be evaluated ({error}), so it denies"
            return Verdict(ruling=Ruling.DENY, rule=number, reason=reason, policy_digest=policy_digest)
        if applies:
            ladder = policy.ladder(rule.ladder) if rule.ladder is not None else None
            reason = rule.reason or f"rule {number}"
            return Verdict(ruling=rule.ruling, rule=number, reason=reason, ladder=ladder, policy_digest=policy_digest)
    return Verdict(ruling=Ruling.DENY, rule=None, reason="no rule allows it", policy_digest=policy_digest)


def ever_allowed(policy: Policy, tool: str, *, agent: str | None = None, user: UserId | None = None) -> bool:
    """Could any rule allow or ask for this tool? What the policy can never allow is not even shown to the model.

    Without an agent, or a user: of whichever agent, for whomever.
    """
    roles = None if user is None else {EVERYBODY, *policy.roles_of(user)}
    for rule in policy.rules:
        could_match = (roles is None or rule.role in roles) and (agent is None or fnmatchcase(agent, rule.agent))
        if could_match and fnmatchcase(tool, rule.tool):
            if rule.ruling is not Ruling.DENY:
                return True
            of_all = rule.resource == EVERYBODY and (rule.role == EVERYBODY or roles is not None)
            if rule.when is None and of_all and (rule.agent == EVERYBODY or agent is not None):
                return False
    return False


def ever_unasked(policy: Policy, tool: str, *, agent: str) -> bool:
    """Could any rule allow this tool of this agent without asking a human?"""
    for rule in policy.rules:
        if not fnmatchcase(agent, rule.agent) or not fnmatchcase(tool, rule.tool):
            continue
        if rule.ruling is Ruling.ALLOW:
            return True
        of_everybody = rule.role == EVERYBODY or EVERYBODY in policy.members(policy.roles[rule.role])
        if rule.when is None and rule.resource == EVERYBODY and of_everybody:
            return False
    return False


def _nothing_called(place: tuple[str | int, ...], name: str) -> ValidationError:
    """An error that knows its place, so that whoever reads the file can be told the line."""
    error = PydanticCustomError("no_such_name", "there is no {kind} {name}", {"kind": place[-1], "name": repr(name)})
    return ValidationError.from_exception_data("Policy", [InitErrorDetails(type=error, loc=place, input=name)])


def _misplaced(place: tuple[str | int, ...], message: str, name: str) -> ValidationError:
    error = PydanticCustomError("no_such_name", message, {"name": repr(name)})
    return ValidationError.from_exception_data("Policy", [InitErrorDetails(type=error, loc=place, input=name)])


def _facts(call: Call, role: str, roles: tuple[str, ...]) -> dict[str, object]:
    return {
        "args": dict(call.arguments),
        "tool": call.tool,
        "resource": call.resource,
        "role": role,
        "roles": list(roles),
        "user": call.user,
        "tenant": call.tenant,
        "agent": call.agent,
        "risk": call.risk,
        "spent": call.spent_micros / MILLION,
        "calls": call.calls,
        "now": call.now,
    }
