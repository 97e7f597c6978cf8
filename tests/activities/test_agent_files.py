"""Is everything that can be wrong in an agent's folder said in one line, with file and line?"""

import shutil
from pathlib import Path

import pytest

from activities.agent_files import AgentFileError, read_definition, read_policy, read_tools
from activities.agents import AgentCatalog, load_agent
from durable_agents.domain.permissions import Policy

AGENT = """\
name: clerk
description: A clerk.
models:
  - provider: anthropic
    model: claude-haiku-5-5
    max_tokens: 500
tools: [look]
budget:
  cost_usd: "5.00"
  turns: 20
input:
  type: object
settings:
  shop: {env: SHOP_URL, default: "http://localhost"}
"""
POLICY = """\
roles:
  staff: ["*"]
rules:
  - allow: look
    role: staff
    when: args.order != ""
ladders:
  l:
    rungs: [{within: 4h}]
"""
TOOLS = '''\
"""Tools."""

from durable_agents import Effect, tool


@tool(effect=Effect.READ)
async def look(order: str) -> str:
    """Look."""
    return order
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An agent's folder with nothing wrong."""
    made = tmp_path / "clerk"
    made.mkdir()
    for name, text in (("agent.yaml", AGENT), ("policy.yaml", POLICY), ("tools.py", TOOLS), ("prompt.md", "You are a clerk.")):
        (made / name).write_text(text)
    return made


def complaint(folder: Path) -> str:
    """The one line that says what is wrong, from the file's name on."""
    with pytest.raises(AgentFileError) as refused:
        load_agent(folder)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(f"{folder}/")
    assert len(line) < 500
    return line.removeprefix(f"{folder}/")


def test_the_folder_as_it_is_makes_an_agent(folder: Path) -> None:
    """The complaints below mean something only if this passes."""
    assert [spec.name for spec in load_agent(folder).pinned.tools] == ["look"]


BROKEN_AGENT = [
    ("description: A clerk.", "description: ''", "agent.yaml:2: description: String should have at least 1 character"),
    ("description: A clerk.", "describtion: A clerk.", "agent.yaml:1: description: Field required"),
    ("description: A clerk.", "description: A clerk.\ndescription: B", "agent.yaml:3: found duplicate key"),
    ("name: clerk", "name: cleric", "agent.yaml:1: name: the name 'cleric' must be the folder's, 'clerk'"),
    ("name: clerk", "name: ../clerk", "agent.yaml:1: name: String should match pattern"),
    ("name: clerk", "name: [clerk", "agent.yaml:2: "),
    ("name: clerk", "\tname: clerk", "agent.yaml:1: found character '\\t' that cannot start any token"),
    ("name: clerk", "name: \x07clerk", "agent.yaml:1: unacceptable character #x0007"),
    ("name: clerk", "a: &a [*a]\nname: clerk", "agent.yaml:1: "),
    ("name: clerk", "a: " + "[" * 1200 + "\nname: clerk", "agent.yaml:1: is nested too deeply"),
    ("name: clerk", "--- {}\n---\nname: clerk", "agent.yaml:2: "),
    ("provider: anthropic", "provider: antropic", "agent.yaml:4: models.0.provider: Input should be 'anthropic' or 'openai'"),
    ("model: claude-haiku-5-5", "modell: claude-haiku-5-5", "agent.yaml:4: models.0.model: Field required"),
    ("max_tokens: 500", "max_tokens: lots", "agent.yaml:6: models.0.max_tokens: Input should be a valid integer"),
    ("max_tokens: 500", "max_tokens: 0", "agent.yaml:6: models.0.max_tokens: Input should be greater than or equal to 16"),
    ("max_tokens: 500", "timeout: 20", 'agent.yaml:6: models.0.timeout: Value error, write a duration with its unit, like "90s"'),
    ("max_tokens: 500", "price: {input: 1e-9, output: 1}", "agent.yaml:6: models.0.price.input: Value error, 1E-9 is finer than"),
    ("tools: [look]", "tools: [look, look]", "agent.yaml:7: tools: Value error, a tool is listed twice"),
    ("tools: [look]", "tools: look", "agent.yaml:7: tools: Input should be a valid tuple"),
    ("tools: [look]", "tools:\n  - look\n  - sell", "agent.yaml:9: tools.1: tools.py has no @tool 'sell' (it has: look)"),
    (
        'cost_usd: "5.00"',
        "cost_usd: 5.00",
        'agent.yaml:9: budget.cost_usd: Value error, write the amount as a string like "0.50"',
    ),
    ('cost_usd: "5.00"', 'cost_usd: "NaN"', "agent.yaml:9: budget.cost_usd: Input should be a finite number"),
    ('cost_usd: "5.00"', "cost: 5", "agent.yaml:9: budget.cost: Extra inputs are not permitted"),
    ("turns: 20", "turns: 2.5", "agent.yaml:10: budget.turns: Input should be a valid integer"),
    ("turns: 20", "turns: yes", "agent.yaml:10: budget.turns: Input should be a valid integer"),
    ("turns: 20", "turns: .inf", "agent.yaml:10: budget.turns: Input should be a valid integer"),
    ("type: object", "type: objekt", "agent.yaml:11: input: not a JSON schema: "),
    ("type: object", "$ref: https://evil.example/schema", "agent.yaml:11: input: not a JSON schema: "),
    ("env: SHOP_URL", "env: shop url", "agent.yaml:14: settings.shop."),
    (
        "description: A clerk.",
        "description: A clerk.\nprompt: ../../etc/passwd",
        "agent.yaml:3: prompt: String should match pattern",
    ),
    ("description: A clerk.", "description: A clerk.\nprompt: other.md", "agent.yaml:3: prompt: other.md cannot be read"),
]


@pytest.mark.parametrize(("old", "new", "line"), BROKEN_AGENT, ids=[new.replace("\n", " ")[:40] for _, new, _ in BROKEN_AGENT])
def test_a_broken_agent_yaml_is_one_line(folder: Path, old: str, new: str, line: str) -> None:
    """Whoever writes an agent reads this line first, often."""
    assert AGENT.count(old) == 1
    (folder / "agent.yaml").write_text(AGENT.replace(old, new))
    assert complaint(folder).startswith(line)


BROKEN_POLICY = [
    ("allow: look", "alow: look", "policy.yaml:4: rules.0.alow: Extra inputs are not permitted"),
    (
        "allow: look",
        "allow: look\n    deny: look",
        "policy.yaml:4: rules.0: Value error, a rule has exactly one of allow, deny, ask",
    ),
    ("allow: look", "ask: look", "policy.yaml:4: rules.0: Value error, `ladder` belongs to `ask`, and only there"),
    ("allow: look", "ask: look\n    ladder: high", "policy.yaml:5: rules.0.ladder: there is no ladder 'high'"),
    ("role: staff", "role: stuff", "policy.yaml:5: rules.0.role: there is no role 'stuff'"),
    ('args.order != ""', "order != 1", "policy.yaml:6: rules.0.when: condition 'order != 1'"),
    ('args.order != ""', "args.order", "policy.yaml:6: rules.0.when: condition 'args.order' gives DYN, not true or false"),
    ('args.order != ""', "1 + 1", "policy.yaml:6: rules.0.when: condition '1 + 1' gives INT, not true or false"),
    ('args.order != ""', "args.order !=", "policy.yaml:6: rules.0.when: condition 'args.order !='"),
    ('args.order != ""', "true == 'x'", "policy.yaml:6: rules.0.when: condition"),
    ("within: 4h", "within: 4", "policy.yaml:9: ladders.l.rungs.0.within: Value error, write a duration with its unit"),
    ("within: 4h", "within: 0s", "policy.yaml:9: ladders.l.rungs.0.within: Input should be greater than"),
    ("rungs: [{within: 4h}]", "rungs: []", "policy.yaml:9: ladders.l.rungs: Tuple should have at least 1 item"),
    ('staff: ["*"]', "staff: all", "policy.yaml:2: roles.staff: Input should be a valid tuple"),
    ("roles:", "- roles:", "policy.yaml:"),
]


@pytest.mark.parametrize(("old", "new", "line"), BROKEN_POLICY, ids=[new.replace("\n", " ")[:40] for _, new, _ in BROKEN_POLICY])
def test_a_broken_policy_yaml_is_one_line(folder: Path, old: str, new: str, line: str) -> None:
    """A policy that is only half understood must not decide anything."""
    assert POLICY.count(old) == 1
    (folder / "policy.yaml").write_text(POLICY.replace(old, new))
    assert complaint(folder).startswith(line)


BROKEN_TOOLS = [
    ("async def look", "def look", "tools.py:6: TypeError: tool look must be `async def`"),
    ("order: str", "order", "tools.py:6: TypeError: tool look: parameter order needs a type"),
    ('    """Look."""\n', "", "tools.py:6: TypeError: tool look needs a docstring: it is what the model reads"),
    ("return order", "return (order", "tools.py:9: SyntaxError: '(' was never closed"),
    (
        "from durable_agents import",
        "from durable_agent import",
        "tools.py:3: ModuleNotFoundError: No module named 'durable_agent'",
    ),
    ('"""Tools."""', "raise ValueError('one\\ntwo')", "tools.py:1: ValueError: one"),
    ('"""Tools."""', "raise SystemExit(5)", "tools.py:1: SystemExit: 5"),
    ("async def look", "async def see", "agent.yaml:7: tools.0: tools.py has no @tool 'look' (it has: see)"),
]


@pytest.mark.parametrize(
    ("old", "new", "line"), BROKEN_TOOLS, ids=[new.strip()[:40] or "no docstring" for _, new, _ in BROKEN_TOOLS]
)
def test_a_broken_tools_py_is_one_line(folder: Path, old: str, new: str, line: str) -> None:
    """It is somebody's code: whatever it raises is that file's error, at its line, and not a traceback of ours."""
    assert TOOLS.count(old) == 1
    (folder / "tools.py").write_text(TOOLS.replace(old, new))
    assert complaint(folder).startswith(line)


@pytest.mark.parametrize("name", ["agent.yaml", "policy.yaml"])
def test_a_file_that_is_no_mapping_or_no_text_is_one_line(folder: Path, name: str) -> None:
    """Empty, a list, binary, missing, a folder."""
    file = folder / name
    for content in (b"", b"# only a comment\n", b"- a\n- b\n", b"text", b"null"):
        file.write_bytes(content)
        assert complaint(folder) == f"{name}:1: must be a mapping of names to values"
    file.write_bytes(b"name: \xff\xfe")
    assert complaint(folder).startswith(f"{name}: cannot be read: ")
    file.unlink()
    assert complaint(folder).startswith(f"{name}: cannot be read: ")
    file.mkdir()
    assert complaint(folder).startswith(f"{name}: cannot be read: ")


def test_a_prompt_is_there_and_says_something(folder: Path) -> None:
    """An agent without instructions does anything."""
    for content in ("", " \n\t"):
        (folder / "prompt.md").write_text(content)
        assert complaint(folder) == "agent.yaml:1: prompt: prompt.md is empty"
    (folder / "prompt.md").unlink()
    assert complaint(folder).startswith("agent.yaml:1: prompt: prompt.md cannot be read: ")


def test_yaml_means_what_it_says(folder: Path) -> None:
    """YAML 1.1 reads `no` and `on` as booleans and 1:30 as 90; a country list with Norway in it is the classic."""
    (folder / "policy.yaml").write_text("roles:\n  no: [on, off, 1e3, 1:30]\nrules: []\n")
    with pytest.raises(AgentFileError, match=r"policy.yaml:2: roles.no.2: Input should be a valid string"):
        read_policy(folder)
    (folder / "policy.yaml").write_text("roles:\n  no: [on, off, 1:30]\nrules: []\n")
    assert read_policy(folder).roles == {"no": ("on", "off", "1:30")}


def test_a_folder_without_tools_has_none(folder: Path) -> None:
    """An agent may only talk."""
    (folder / "tools.py").unlink()
    assert read_tools(folder) == {}
    assert complaint(folder) == "agent.yaml:7: tools.0: tools.py has no @tool 'look' (it has: none)"


def test_a_catalog_says_which_folder_is_wrong(folder: Path, tmp_path: Path) -> None:
    """A missing folder, and two agents of one name."""
    with pytest.raises(AgentFileError, match=r"nowhere: there is no such folder of agents; check DURABLE_AGENTS_AGENTS_PATH"):
        AgentCatalog.load([tmp_path / "nowhere"])
    shutil.copytree(folder, tmp_path / "more" / "clerk")
    with pytest.raises(AgentFileError, match=r"more/clerk/agent.yaml: agent 'clerk' exists already in "):
        AgentCatalog.load([tmp_path, tmp_path / "more"])
    assert AgentCatalog.load([tmp_path]).names() == ("clerk",)
    assert read_definition(folder).name == "clerk"


LEGS = '''

@tool(effect=Effect.READ, private=True, trusted=True)
async def ledger() -> str:
    """Read what is nobody's business."""
    return ""


@tool(effect=Effect.AT_MOST_ONCE, risk="egress")
async def post(text: str) -> str:
    """Tell the world."""
    return text
'''


def test_private_data_untrusted_text_and_an_ungated_way_out_are_not_loaded_together(folder: Path) -> None:
    """Whoever writes the text reads the data: no prompt prevents it, so the worker does not start with such an agent."""
    (folder / "agent.yaml").write_text(AGENT.replace("tools: [look]", "tools: [look, ledger, post]"))
    (folder / "policy.yaml").write_text(POLICY.replace("rules:", "rules:\n  - allow: post"))
    (folder / "tools.py").write_text(TOOLS + LEGS)
    line = AGENT[: AGENT.index("tools:")].count("\n") + 1
    assert complaint(folder) == (
        f"agent.yaml:{line}: tools.2: agent clerk has private data (ledger), untrusted text (look) and a way out that nothing"
        " gates (post): say where post sends by `destination=` in its @tool, or `ask` or `deny` it in the policy"
    )
    remedies = {
        "tools.py": ('risk="egress")', 'risk="egress", destination=("text",))'),
        "policy.yaml": ("- allow: post", "- {ask: post, ladder: l}"),
    }
    for name, (old, new) in remedies.items():
        before = (folder / name).read_text()
        (folder / name).write_text(before.replace(old, new))
        pinned = load_agent(folder).pinned
        opened = Policy.model_validate({"rules": [{"allow": "*"}]})
        assert [place for place, _ in pinned.misfits(opened)] == ([("rules",)] if name == "policy.yaml" else [])
        (folder / name).write_text(before)
