"""Does a policy allow exactly what it says, and nothing when it says nothing or breaks?"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from durable_agents.domain.canonical import digest
from durable_agents.domain.identifiers import Micros, UserId
from durable_agents.domain.permissions import FACTS, Call, ConditionError, Policy, Rule, Ruling, decide, ever_allowed
from tests.domain.strategies import checked

DIGEST = digest("policy")
LADDERS = {"l": {"rungs": [{"within": "1h"}]}}
GROUPS: dict[str, Any] = {"finance": ["boss", "cfo"], "empty": []}
ROLES: dict[str, Any] = {"staff": ["*"], "bosses": ["boss"], "nobody": [], "payers": ["@finance", "@empty", "clerk"]}


def policy(*rules: dict[str, Any]) -> Policy:
    """A policy of these rules."""
    return Policy.model_validate({"groups": GROUPS, "roles": ROLES, "rules": rules, "ladders": LADDERS})


def call(tool: str = "refund", user: str = "ann", resource: str = "order:A-1", agent: str = "desk", **arguments: object) -> Call:
    """Somebody's call."""
    return Call(
        tool=tool, risk="write", resource=resource, arguments=arguments, user=UserId(user), tenant="acme", agent=agent,
        spent_micros=Micros(1_250_000), calls=3, now=datetime(2026, 11, 20, 17, tzinfo=UTC),
    )  # fmt: skip


def conditions(condition: str, facts: Mapping[str, object]) -> bool:
    """Conditions of these tests: `yes`, `no`, `error`, or a role's name."""
    if condition == "error":
        raise ConditionError("no such key")
    return condition == "yes" or condition == facts["role"]


def ruling(of: Policy, made: Call) -> tuple[Ruling, int | None]:
    """What a policy says, and by which rule."""
    verdict = decide(of, DIGEST, made, conditions)
    assert verdict.policy_digest == DIGEST
    assert verdict.reason
    return verdict.ruling, verdict.rule


ALLOW, DENY, ASK = Ruling.ALLOW, Ruling.DENY, Ruling.ASK


@pytest.mark.parametrize(
    ("rules", "made", "expected"),
    [
        ([], call(), (DENY, None)),
        ([{"allow": "lookup"}], call(), (DENY, None)),
        ([{"allow": "refund"}], call(), (ALLOW, 0)),
        ([{"allow": "ref*"}], call(), (ALLOW, 0)),
        ([{"allow": "REFUND"}], call(), (DENY, None)),
        ([{"allow": "refund"}], call("refund_all"), (DENY, None)),
        ([{"deny": "refund"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"allow": "*"}, {"deny": "refund"}], call(), (ALLOW, 0)),
        ([{"ask": "refund", "ladder": "l"}, {"allow": "*"}], call(), (ASK, 0)),
        ([{"allow": "refund", "when": "no"}, {"allow": "refund"}], call(), (ALLOW, 1)),
        ([{"allow": "refund", "when": "no"}], call(), (DENY, None)),
        ([{"allow": "refund", "when": "yes"}], call(), (ALLOW, 0)),
        ([{"allow": "refund", "when": "error"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"deny": "refund", "when": "error"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"ask": "refund", "when": "error", "ladder": "l"}, {"allow": "*"}], call(), (DENY, 0)),
        ([{"deny": "refund", "when": "no"}, {"allow": "*", "when": "error"}], call(), (DENY, 1)),
        (
            [{"allow": "lookup", "when": "error"}, {"allow": "*"}],
            call(),
            (ALLOW, 1),
        ),  # a rule about another tool is not evaluated
        ([{"allow": "refund", "role": "bosses"}], call(), (DENY, None)),
        ([{"allow": "refund", "role": "bosses"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "bosses"}], call(user="Boss"), (DENY, None)),
        ([{"allow": "refund", "role": "staff"}], call(user="whoever"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "nobody"}], call(user="boss"), (DENY, None)),
        ([{"allow": "refund", "role": "bosses", "when": "bosses"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "when": "*"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "payers"}], call(), (DENY, None)),
        ([{"allow": "refund", "role": "payers"}], call(user="cfo"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "payers"}], call(user="clerk"), (ALLOW, 0)),
        ([{"allow": "refund", "role": "payers"}], call(user="finance"), (DENY, None)),
        ([{"allow": "refund", "role": "payers"}], call(user="@finance"), (DENY, None)),
        ([{"allow": "refund", "role": "payers", "when": "payers"}], call(user="boss"), (ALLOW, 0)),
        ([{"allow": "refund", "agent": "desk"}], call(), (ALLOW, 0)),
        ([{"allow": "refund", "agent": "de*"}], call(), (ALLOW, 0)),
        ([{"allow": "refund", "agent": "desk"}], call(agent="desk-2"), (DENY, None)),
        ([{"deny": "refund", "agent": "clerk"}, {"allow": "refund"}], call(), (ALLOW, 1)),
        ([{"allow": "refund", "resource": "order:A-*"}], call(), (ALLOW, 0)),
        ([{"allow": "refund", "resource": "order:B-*"}], call(), (DENY, None)),
        ([{"allow": "refund", "resource": "order:A-*"}], call(resource=""), (DENY, None)),
        ([{"allow": "refund", "resource": "order:A-1"}], call(resource="order:A-1\norder:B-1"), (DENY, None)),
        ([{"allow": "refund", "resource": "order:A-1"}], call(resource="order:*"), (DENY, None)),
    ],
)
def test_the_first_rule_that_matches_decides(
    rules: list[dict[str, Any]], made: Call, expected: tuple[Ruling, int | None]
) -> None:
    """Each row has been somebody's surprise: order, globs, roles, and above all a rule that breaks."""
    assert ruling(policy(*rules), made) == expected


def test_a_broken_rule_says_that_it_broke() -> None:
    """Whoever wrote it must find out from the denial."""
    verdict = decide(policy({"allow": "*", "when": "error"}), DIGEST, call(), conditions)
    assert verdict.reason == "rule 0 could not be evaluated (no such key), so it denies"


def test_asking_comes_with_its_ladder_and_the_rules_reason() -> None:
    """The human reads why they are asked."""
    verdict = decide(policy({"ask": "*", "ladder": "l", "reason": "large"}), DIGEST, call(), conditions)
    assert verdict.ladder is not None
    assert verdict.reason == "large"
    assert decide(policy({"allow": "*"}), DIGEST, call(), conditions).ladder is None


names = st.sampled_from(["refund", "lookup", "ref*", "*", "l?okup", "[rl]*", "tell"])


@st.composite
def rule(draw: st.DrawFn) -> dict[str, Any]:
    """Any rule."""
    effect = draw(st.sampled_from(["allow", "deny", "ask"]))
    made: dict[str, Any] = {
        effect: draw(names),
        "role": draw(st.sampled_from(["*", *ROLES])),
        "agent": draw(st.sampled_from(["*", "*", "desk", "d*", "clerk"])),
        "resource": draw(st.sampled_from(["*", "order:*", "order:A-1", ""])),
        "when": draw(st.sampled_from([None, "yes", "no", "error", "staff"])),
    }
    return made | ({"ladder": "l"} if effect == "ask" else {})


calls = st.builds(
    call,
    st.sampled_from(["refund", "lookup", "tell"]),
    st.sampled_from(["ann", "boss", "cfo", "clerk"]),
    st.sampled_from(["order:A-1", "order:B-1", ""]),
)


@checked
@given(st.lists(rule(), max_size=6), calls)
def test_a_tool_that_could_be_allowed_is_never_hidden(rules: list[dict[str, Any]], made: Call) -> None:
    """The model is not shown what the policy can never allow; hiding more would break an agent without a word."""
    made_policy = policy(*rules)
    if ruling(made_policy, made)[0] is not DENY:
        assert ever_allowed(made_policy, made.tool)
        assert ever_allowed(made_policy, made.tool, agent=made.agent, user=made.user)


@checked
@given(st.lists(rule(), max_size=6), calls)
def test_whom_a_policy_can_never_allow_it_allows_nothing(rules: list[dict[str, Any]], made: Call) -> None:
    """What is hidden from one user's runs, or from one agent, is hidden because each of its calls would be denied."""
    made_policy = policy(*rules)
    if not ever_allowed(made_policy, made.tool, agent=made.agent, user=made.user):
        assert ruling(made_policy, made)[0] is DENY
    if not ever_allowed(made_policy, made.tool):
        assert not ever_allowed(made_policy, made.tool, agent=made.agent, user=made.user)


people = st.sampled_from(["ann", "boss", "cfo", "clerk", "eve"])
listed = st.lists(st.sampled_from(["ann", "boss", "cfo", "*", "@one", "@two"]), max_size=4)


@checked
@given(st.lists(people, max_size=3), st.lists(people, max_size=3), st.dictionaries(st.sampled_from("abc"), listed), people)
def test_a_group_stands_for_its_members_and_for_nobody_else(
    one: list[str], two: list[str], roles: dict[str, list[str]], user: str
) -> None:
    """Whoever writes `@finance` means the people in it: the same policy with the names written out decides the same."""
    with_groups = Policy.model_validate({"groups": {"one": one, "two": two}, "roles": roles, "rules": []})
    members = {"@one": one, "@two": two}
    written_out = {role: [name for item in names for name in members.get(item, [item])] for role, names in roles.items()}
    without = Policy.model_validate({"roles": written_out, "rules": []})
    assert with_groups.roles_of(UserId(user)) == without.roles_of(UserId(user))


def test_a_ladder_asks_the_members_of_its_groups() -> None:
    """An approver called `@finance` is nobody: the run would wait in vain."""
    rungs = [{"approvers": ["@finance", "ann", "boss"], "within": "1h"}, {"approvers": ["@empty"], "within": "1h"}]
    made = Policy.model_validate(
        {"groups": GROUPS, "rules": [{"ask": "refund", "ladder": "l"}], "ladders": {"l": {"rungs": rungs, "on_expiry": "end"}}}
    )
    ladder = decide(made, DIGEST, call(), conditions).ladder
    assert ladder is not None
    assert [rung.approvers for rung in ladder.rungs] == [("boss", "cfo", "ann"), ()]
    assert ladder.on_expiry == "end"
    assert made.ladder("m") is None


def test_conditions_see_the_run_as_it_stands() -> None:
    """Spend is dollars, time is a time: a condition over a missing fact, or one in another unit, denies or lets through."""
    seen: list[Mapping[str, object]] = []

    def look(condition: str, facts: Mapping[str, object]) -> bool:
        assert condition == "yes"
        seen.append(facts)
        return True

    decide(policy({"allow": "refund", "role": "payers", "when": "yes"}), DIGEST, call(user="boss", amount=5.0), look)
    (facts,) = seen
    assert set(facts) == set(FACTS)
    assert (facts["spent"], facts["calls"], facts["now"]) == (1.25, 3, datetime(2026, 11, 20, 17, tzinfo=UTC))
    assert (facts["role"], facts["roles"], facts["agent"]) == ("payers", ["bosses", "payers", "staff"], "desk")


@checked
@given(st.lists(rule(), max_size=6), calls, rule())
def test_rules_after_the_one_that_decides_change_nothing(rules: list[dict[str, Any]], made: Call, extra: dict[str, Any]) -> None:
    """First match wins, so a policy can be read from the top; appending can only open what was denied by default."""
    before = ruling(policy(*rules), made)
    after = ruling(policy(*rules, extra), made)
    assert before in (after, (DENY, None))


@checked
@given(st.lists(rule(), max_size=6), calls)
def test_an_error_above_never_lets_a_rule_below_decide(rules: list[dict[str, Any]], made: Call) -> None:
    """A broken rule that is skipped would let a looser one decide: the commonest hole in policy engines."""
    broken = {"allow": "*", "when": "error"}
    assert ruling(policy(broken, *rules), made) == (DENY, 0)


@pytest.mark.parametrize(
    ("rules", "tool", "shown"),
    [
        ([], "refund", False),
        ([{"deny": "*"}, {"allow": "refund"}], "refund", False),
        ([{"deny": "*", "role": "nobody"}, {"allow": "refund"}], "refund", True),
        ([{"deny": "*", "when": "no"}, {"allow": "refund"}], "refund", True),
        ([{"deny": "*", "resource": "order:*"}, {"ask": "refund", "ladder": "l"}], "refund", True),
        ([{"allow": "lookup"}], "refund", False),
        ([{"deny": "*", "agent": "desk"}, {"allow": "refund"}], "refund", True),
        ([{"allow": "refund", "role": "nobody"}], "refund", True),
    ],
)
def test_what_can_never_be_allowed_is_not_offered(rules: list[dict[str, Any]], tool: str, shown: bool) -> None:
    """A model that sees a tool will try it; each try costs a turn."""
    assert ever_allowed(policy(*rules), tool) is shown


@pytest.mark.parametrize(
    ("rules", "user", "shown"),
    [
        ([{"allow": "refund", "role": "bosses"}], "ann", False),
        ([{"allow": "refund", "role": "bosses"}], "boss", True),
        ([{"deny": "*", "role": "bosses"}, {"allow": "refund"}], "boss", False),
        ([{"deny": "*", "role": "bosses"}, {"allow": "refund"}], "ann", True),
        ([{"deny": "*", "role": "bosses", "when": "no"}, {"allow": "refund"}], "boss", True),
        ([{"deny": "*", "agent": "desk"}, {"allow": "refund"}], "ann", False),
        ([{"allow": "refund", "agent": "clerk"}], "ann", False),
    ],
)
def test_least_privilege_is_of_this_user_and_this_agent(rules: list[dict[str, Any]], user: str, shown: bool) -> None:
    """A clerk's run needs no tool that only a boss could ever use, and an injected text finds none there to try."""
    assert ever_allowed(policy(*rules), "refund", agent="desk", user=UserId(user)) is shown


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        ({"rules": [{}]}, ("rules", 0)),
        ({"rules": [{"allow": "a", "deny": "b"}]}, ("rules", 0)),
        ({"rules": [{"ask": "a"}]}, ("rules", 0)),
        ({"rules": [{"allow": "a", "ladder": "l"}], "ladders": LADDERS}, ("rules", 0)),
        ({"rules": [{"allow": "a"}, {"ask": "a", "ladder": "x"}]}, ("rules", 1, "ladder")),
        ({"rules": [{"allow": "a", "role": "x"}]}, ("rules", 0, "role")),
        ({"rules": [{"allow": "a", "if": "x"}]}, ("rules", 0, "if")),
        ({"rules": [], "roles": {"r": ["ann", "@none"]}}, ("roles", "r", 1)),
        ({"rules": [], "groups": {"g": ["ann", "@g"]}}, ("groups", "g", 1)),
        (
            {"rules": [], "ladders": {"l": {"rungs": [{"approvers": ["@none"], "within": "1h"}]}}},
            ("ladders", "l", "rungs", 0, "approvers", 0),
        ),
        ({"rules": "allow all"}, ("rules",)),
        ({}, ("rules",)),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_its_place(broken: dict[str, Any], place: tuple[str | int, ...]) -> None:
    """A typo in a policy must stop the worker, not open or close a door by guessing."""
    with pytest.raises(ValidationError) as refused:
        Policy.model_validate(broken)
    assert refused.value.errors()[0]["loc"] == place


def test_roles_are_the_users_own_sorted() -> None:
    """Sorted, because the order of a set would differ between workers."""
    assert policy().roles_of(UserId("boss")) == ("bosses", "payers", "staff")
    assert policy().roles_of(UserId("ann")) == ("staff",)
    assert Rule(allow="x").ruling is ALLOW
