"""Known families: their documented calls, and any calls as they write them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from call_writers import WRITERS
from cases import cases
from command_line import ROOT
from hypothesis import given
from hypothesis import strategies as st
from templates import embedded
from tool_templates import NO_CALLS

from cerebrum_cli.core.tools import ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.tool_calls import ToolFormat
from cerebrum_cli.formats.tool_families import FAMILIES, ToolFamily, family_of

NAMES = [family.name for family in FAMILIES]
TYPES = {"city": "string", "days": "integer", "ratio": "number", "flag": "boolean", "data": "object", "items": "array"}
SCHEMA = {"type": "object", "properties": {key: {"type": kind} for key, kind in TYPES.items()}}
TOOLS = tuple(ToolSpec(name, "does something", SCHEMA) for name in ("weather", "run_python"))
OSLO = ToolCall("weather", {"city": "Oslo"})


def format_of(name: str, chatml: LlamaBackend) -> ToolFormat:
    """The format of a template that has the texts of a family."""
    texts = next(family.texts for family in FAMILIES if family.name == name)
    return embedded(chatml, f"{{# {' '.join(texts)} #}}{NO_CALLS}").tool_format


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.name))
def test_family_is_recognised_and_its_example_is_read(family: ToolFamily, chatml: LlamaBackend) -> None:
    assert family_of(" ".join(family.texts)) == family
    assert format_of(family.name, chatml).read(family.syntax.example, TOOLS)[0] == (OSLO,)
    assert family.source.startswith("https://")


# Documented replies.

DOCUMENTED = json.loads((ROOT / "tests" / "data" / "calls.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", DOCUMENTED, ids=lambda case: f"{case['family']}: {case['what']}")
def test_documented_calls_are_read(case: dict[str, Any], chatml: LlamaBackend) -> None:
    tool_format = format_of(case["family"], chatml)
    calls, _ = tool_format.read(case["reply"], TOOLS)
    assert [[call.name, call.arguments] for call in calls] == case["calls"]
    assert str([call.arguments for call in calls]) == str([arguments for _, arguments in case["calls"]])
    for size in (1, 3, 1000):
        passed = streamed(tool_format, case["reply"], [size])
        if not tool_format.in_headers:
            assert passed.strip() == case.get("before", "")
            assert tool_format.text_beside(case["reply"], len(passed), TOOLS) == case.get("behind", "")


def streamed(tool_format: ToolFormat, text: str, sizes: Sequence[int]) -> str:
    """What is passed on of a reply that comes in pieces."""
    calls, at, passed = tool_format.filter(TOOLS), 0, ""
    while at < len(text):
        for size in sizes:
            passed += calls.feed(text[at : at + size])
            at += size
    assert passed + calls.held == text
    return passed


def test_documented_calls_are_of_most_families() -> None:
    assert len({case["family"] for case in DOCUMENTED}) >= 30


# Any calls.

texts = st.text(st.characters(exclude_categories=("Cs", "Co", "Cc"), include_characters="\n\t"), max_size=20)
NASTY = (
    *('"', "'", "\\", "\\n", '"""', "}", "]}", "```", "</b>", "<b a='1'>", "{x}", "&lt;", "a=1", "[f(x)]", "; ", "'s"),
    *("</parameter>", "</function>", "<tool_call>", "[ARGS]{", '{"name": "weather"}', "]]>", "\u2028", "😀", "007"),
)
strings = st.lists(texts | st.sampled_from(NASTY), max_size=4).map("".join)
plain = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | strings
keys = st.sampled_from(["a", "b_c", "key1"])
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
)
ARGUMENTS = {
    "city": strings,
    "days": st.integers(-(10**12), 10**12),
    "ratio": st.floats(-(10**6), 10**6) | st.integers(-9, 9),
    "flag": st.booleans(),
    "data": st.dictionaries(keys, values, max_size=3),
    "items": st.lists(values, max_size=3),
}
any_calls = st.lists(
    st.builds(ToolCall, st.sampled_from([tool.name for tool in TOOLS]), st.fixed_dictionaries({}, optional=ARGUMENTS)),
    min_size=1,
    max_size=3,
).map(tuple)
said = st.sampled_from(["", "I look it up.", "Zürich — 50 % {of} [it]: a < b.\nSo:"])


@pytest.mark.parametrize("name", NAMES)
@cases(10)
@given(calls=any_calls, before=said, behind=said, sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_any_calls_are_read_as_a_family_writes_them(
    name: str, calls: ToolCalls, before: str, behind: str, sizes: list[int], chatml: LlamaBackend
) -> None:
    tool_format = format_of(name, chatml)
    reply = "\n".join(filter(None, [before, WRITERS[name](calls), behind]))
    read, _ = tool_format.read(reply, TOOLS)
    assert str(read) == str(calls)
    if not tool_format.in_headers:
        assert streamed(tool_format, reply, sizes).strip() == before
        assert tool_format.text_beside(reply, len(before), TOOLS) == behind


def test_every_family_is_written() -> None:
    assert [*WRITERS] == NAMES
