"""May this user's agent make this call: allow, deny, or ask a human?

Rules are tried in order, the first that matches decides, nothing matching means deny. A condition that errors never allows:
the call is denied, because a broken rule that is skipped would let a looser one below it decide.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from durable_agents.domain.approvals import Ladder
from durable_agents.domain.identifiers import Digest, UserId
from durable_agents.domain.tools import Risk

EVERYBODY = "*"


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
    resource: str = EVERYBODY
    when: str | None = None
    """A CEL condition over `args`, `tool`, `resource`, `role`, `user`, `tenant`, `risk`; absent: always."""
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
    """An agent's `policy.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    roles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Role → user ids who have it; `*` is everybody."""
    rules: tuple[Rule, ...]
    ladders: dict[str, Ladder] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_exist(self) -> "Policy":
        for number, rule in enumerate(self.rules):
            if rule.ladder is not None and rule.ladder not in self.ladders:
                raise _nothing_called(("rules", number, "ladder"), rule.ladder)
            if rule.role != EVERYBODY and rule.role not in self.roles:
                raise _nothing_called(("rules", number, "role"), rule.role)
        return self

    def roles_of(self, user: UserId) -> tuple[str, ...]:
        """The roles a user has, sorted."""
        return tuple(sorted(role for role, users in self.roles.items() if EVERYBODY in users or user in users))


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
        if not matching or not fnmatchcase(call.tool, rule.tool) or not fnmatchcase(call.resource, rule.resource):
            continue
        try:
            applies = rule.when is None or evaluate(rule.when, _facts(call, matching[0]))
        except ConditionError as error:
            reason = f"rule {number} could not be evaluated ({error}), so it denies"
            return Verdict(ruling=Ruling.DENY, rule=number, reason=reason, policy_digest=policy_digest)
        if applies:
            ladder = policy.ladders[rule.ladder] if rule.ladder is not None else None
            reason = rule.reason or f"rule {number}"
            return Verdict(ruling=rule.ruling, rule=number, reason=reason, ladder=ladder, policy_digest=policy_digest)
    return Verdict(ruling=Ruling.DENY, rule=None, reason="no rule allows it", policy_digest=policy_digest)


def ever_allowed(policy: Policy, tool: str) -> bool:
    """Could any rule allow or ask for this tool? What the policy can never allow is not even shown to the model."""
    for rule in policy.rules:
        if fnmatchcase(tool, rule.tool):
            if rule.ruling is not Ruling.DENY:
                return True
            if rule.when is None and rule.role == EVERYBODY and rule.resource == EVERYBODY:
                return False
    return False


def _nothing_called(place: tuple[str | int, ...], name: str) -> ValidationError:
    """An error that knows its place, so that whoever reads the file can be told the line."""
    error = PydanticCustomError("no_such_name", "there is no {kind} {name}", {"kind": place[-1], "name": repr(name)})
    return ValidationError.from_exception_data("Policy", [InitErrorDetails(type=error, loc=place, input=name)])


def _facts(call: Call, role: str) -> dict[str, object]:
    return {
        "args": dict(call.arguments),
        "tool": call.tool,
        "resource": call.resource,
        "role": role,
        "user": call.user,
        "tenant": call.tenant,
        "risk": call.risk,
    }
