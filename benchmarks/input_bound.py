"""How far is our bound on input tokens above what real tokenizers count, and is it ever below?

`python benchmarks/input_bound.py [turns]` plays conversations of 30 turns through `ContextSize`, as a run keeps it, and counts
each request with public tokenizers. The provider is simulated around them: hidden tool instructions, framing, arguments written
anew with or without spaces.
"""

import base64
import importlib.util
import json
import os
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import JsonValue

from durable_agents.domain.identifiers import Micros
from durable_agents.domain.messages import Message, TextBlock, ToolCallBlock, ToolResultBlock
from durable_agents.domain.model_calls import ContextSize, ModelAnswer, StopReason
from durable_agents.domain.prices import Usage, most_tokens

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("tiktoken", "tokenizers", "litellm")
REMEDY = "python -m pip install --no-deps --target EXTRA tiktoken regex tokenizers litellm, then set PYTHONPATH=EXTRA"
HIDDEN, PER_MESSAGE, PER_CALL = 530, 7, 12
"""Tokens that a provider adds: tool instructions (530 is the most Anthropic documents), around a message, around a tool call."""
SIZES = (60, 600, 6000)
"""Characters of a tool's result."""
Count = Callable[[str], int]
Make = Callable[[random.Random, int], str]

GERMAN = (
    "Die Bestellung wurde am Donnerstag versandt, ist aber laut Sendungsverfolgung noch nicht zugestellt worden. ",
    "Wegen der außergewöhnlichen Verspätung möchte die Kundin den Kaufpreis zurückerstattet bekommen. ",
    "Gemäß unseren Geschäftsbedingungen prüft die Rückerstattungsabteilung größere Beträge gesondert. ",
    "Bitte bestätigen Sie Überweisungsempfänger, Verwendungszweck und die Straße der Lieferanschrift. ",
)
CHINESE = (
    "订单已于星期四发货，但物流信息显示尚未送达客户手中。",
    "由于延误时间较长，客户要求全额退款，并希望得到书面说明。",
    "根据公司规定，超过一定金额的退款需要主管审批后方可执行。",
    "请确认收款账户、退款原因以及收货地址是否正确。",
)
HINDI = ("ग्राहक ने गुरुवार को भेजे गए ऑर्डर के लिए धनवापसी का अनुरोध किया है। ", "कृपया पता और राशि की पुष्टि करें। ")
EMOJI = ("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🧑🏿‍🚀", "🇩🇪", "🥹", "🫠", "🔥", "1️⃣", "🤌🏾")
LONGER_ELSEWHERE = ("\ufdfa", "\ufdfb", "½", "㌀", "\u0f77", "\u2a0c", "\U0001d1bd", "\ufb2c", "\u334a")
"""Characters that Unicode's normal forms make longer, up to eleven times: nothing in prose, everything in an attack."""


def dice_of(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same texts at every run, and nothing to guard


def pieces(of: Sequence[str]) -> Make:
    def make(dice: random.Random, size: int) -> str:
        text = ""
        while len(text) < size:
            text += dice.choice(of)
        return text[:size]

    return make


def excerpt(pattern: str) -> Make:
    whole = "\n".join(file.read_text() for file in sorted(ROOT.glob(pattern)))

    def make(dice: random.Random, size: int) -> str:
        start = dice.randrange(max(1, len(whole) - size))
        return whole[start : start + size]

    return make


def records(dice: random.Random, size: int) -> str:
    rows = [
        {
            "id": f"A-{dice.randrange(10**6)}",
            "amount": f"{dice.random() * 1000:.2f}",
            "paid": dice.random() < 0.5,
            "lines": [1, 2, 3],
        }
        for _ in range(size // 80 + 1)
    ]
    return json.dumps(rows)[:size]


def binary(dice: random.Random, size: int) -> str:
    return base64.b64encode(dice.randbytes(size)).decode()[:size]


def digits(dice: random.Random, size: int) -> str:
    return "".join(dice.choice("0123456789,.;- ") for _ in range(size))


def any_text(dice: random.Random, size: int) -> str:
    characters = (chr(dice.choice((dice.randrange(0x20, 0x3000), dice.randrange(0xE000, 0x30000)))) for _ in range(size))
    return "".join(character for character in characters if unicodedata.category(character) != "Cs")


KINDS: dict[str, Make] = {
    "English prose": excerpt("docs/*.md"),
    "German": pieces(GERMAN),
    "Chinese": pieces(CHINESE),
    "Hindi": pieces(HINDI),
    "code": excerpt("activities/*.py"),
    "JSON results": records,
    "base64": binary,
    "digits": digits,
    "emoji": pieces(EMOJI),
    "any Unicode": any_text,
    "normal forms": pieces(LONGER_ELSEWHERE),
    "arguments": digits,
}
"""In `arguments` the answers are long lists of numbers and the results short: what a provider writes anew is most of all."""


@dataclass(frozen=True)
class Sample:
    """One call: what we hold for, and what the provider counted."""

    kind: str
    tokenizer: str
    spaced: bool
    call: int
    bound: int
    real: int


def tokenizers() -> dict[str, Count]:
    """The counters, by name. Ends the program when they are not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed, and no part of the project: {REMEDY}", file=sys.stderr)
        raise SystemExit(2)
    spec = importlib.util.find_spec("litellm")  # found, never imported: only its files are wanted
    assert spec is not None
    assert spec.origin is not None
    files = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(files)
    tiktoken: Any = importlib.import_module("tiktoken")
    hugging: Any = importlib.import_module("tokenizers")

    def of_openai(name: str) -> Count:
        encoding = tiktoken.get_encoding(name)
        return lambda text: len(encoding.encode_ordinary(text))

    def of_file(name: str) -> Count:
        encoding = hugging.Tokenizer.from_file(str(files / name))
        return lambda text: len(encoding.encode(text, add_special_tokens=False).ids)

    return {
        "o200k_base": of_openai("o200k_base"),
        "cl100k_base": of_openai("cl100k_base"),
        "Claude 2": of_file("anthropic_tokenizer.json"),
        "DeepSeek": of_file("deepseek_tokenizer.json"),
    }


def schemas(number: int) -> list[JsonValue]:
    """Tools as a run offers them."""
    return [
        {
            "name": f"tool_{index}",
            "description": "Look something up, or change it, in the shop's own records. " * (index + 1),
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "required": ["order"],
                "properties": {
                    "order": {"type": "string", "description": "The order's number.", "pattern": "^[A-Z]-[0-9]{4}$"},
                    "amount": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}], "default": None},
                },
            },
        }
        for index in range(number)
    ]


def rendered(message: Message, *, spaced: bool) -> tuple[str, int]:
    """What a provider makes of a message, and the tokens it adds."""
    parts, added = [], PER_MESSAGE
    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            separators = (", ", ": ") if spaced else (",", ":")
            arguments = json.dumps(block.arguments, ensure_ascii=False, sort_keys=True, separators=separators)
            parts.append(f"{block.id}{block.tool}{arguments}")
            added += PER_CALL
        elif isinstance(block, ToolResultBlock):
            parts.append(f"{block.call_id}{block.tool}{block.text}")
            added += PER_CALL
    return "".join(parts), added


def conversation(kind: str, size: int, tools: int, turns: int) -> Iterator[tuple[Message, Message]]:
    """Each turn's answer, which calls a tool with such text and numbers in its arguments, and the tool's result."""
    dice, make = dice_of(f"{kind} {size} {tools}"), KINDS[kind]
    numbers, told = (size, 2) if kind == "arguments" else (size // 30, size)
    for turn in range(turns):
        arguments: dict[str, JsonValue] = {"text": make(dice, told // 4), "numbers": [dice.randrange(10) for _ in range(numbers)]}
        call = ToolCallBlock(id=f"call_{turn:012d}", tool="tool_0", arguments=arguments)
        result = ToolResultBlock(call_id=call.id, tool=call.tool, text=make(dice, told))
        yield Message(role="assistant", blocks=(TextBlock(text=make(dice, 80)), call)), Message(role="tool", blocks=(result,))


def samples(kind: str, size: int, tools: int, turns: int, name: str, count: Count, *, spaced: bool) -> Iterator[Sample]:
    """Play one conversation: before each call our bound, then the count; after it the books as a run keeps them."""
    make, offered = KINDS[kind], schemas(tools)
    system = make(dice_of(kind), 400)
    first = Message(role="user", blocks=(TextBlock(text=make(dice_of(str(size)), size)),))
    context = ContextSize().plus(most_tokens([system, offered, first.model_dump(mode="json")]))

    def counted(message: Message) -> int:
        text, added = rendered(message, spaced=spaced)
        return count(text) + added

    real = count(system) + PER_MESSAGE + (HIDDEN if tools else 0) + counted(first)
    real += sum(count(json.dumps(tool, ensure_ascii=False)) + PER_CALL for tool in offered)
    for number, (answer, result) in enumerate(conversation(kind, size, tools, turns), 1):
        yield Sample(kind, name, spaced, number, context.bound(0), real)
        generated = count(rendered(answer, spaced=False)[0])  # as tightly as a model can write it
        usage = Usage(input_tokens=real, output_tokens=generated)
        told = answered(usage, most_tokens(answer.model_dump(mode="json")))
        context = context.plus(told.message_bytes).counted(0, told.counted_tokens)
        context = context.plus(most_tokens(result.model_dump(mode="json")))
        real += counted(answer) + counted(result)


def answered(usage: Usage, size: int) -> ModelAnswer:
    """What a run keeps of an answer."""
    return ModelAnswer(
        stop=StopReason.TOOL_CALLS,
        text="",
        calls=(),
        usage=usage,
        cost_micros=Micros(0),
        message_bytes=size,
        head="",
        model="",
    )


def line(name: str, found: Sequence[Sample]) -> str:
    """One row: how many times the real count the bound is."""
    cells = [f"{name:14}"]
    for chosen in ([one for one in found if one.call == 1], [one for one in found if one.call > 1]):
        ratios = [one.bound / one.real for one in chosen] or [float("nan")]
        cells.append(f"{min(ratios):8.2f} {median(ratios):8.2f} {max(ratios):8.2f}")
    return " | ".join(cells)


def main(turns: int) -> int:
    """Print the table; 1 when a bound was below a count."""
    counters = tokenizers()
    found = [
        sample
        for kind in KINDS
        for size in SIZES
        for tools in (0, 1, 12)
        for name, count in counters.items()
        for spaced in (False, True)
        for sample in samples(kind, size, tools, turns, name, count, spaced=spaced)
    ]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in NEEDED)
    print(f"bound / real count of input tokens, {len(found):,} calls of conversations of {turns} turns ({versions})")
    print(f"{'':14} | first call: min, median, max | later calls: min, median, max")
    for kind in KINDS:
        print(line(kind, [one for one in found if one.kind == kind]))
    print()
    for name in counters:
        print(line(name, [one for one in found if one.tokenizer == name]))
    print(line("all", found))
    below = [one for one in found if one.bound < one.real]
    for one in below[:5]:
        print(f"BELOW: {one}", file=sys.stderr)
    print(f"{len(below)} bounds below the real count")
    return 1 if below else 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
