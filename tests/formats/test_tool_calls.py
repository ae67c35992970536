"""Function calls: the syntax that is learned from a template, reading, and what of an answer may be a call."""

import ast
import json
import re
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
from cases import rows
from command_line import ROOT
from hypothesis import given, strategies as st
from templates import TEMPLATES, embedded
from tool_templates import ALL_TEMPLATES, LEFT_OUT, TOOL_TEMPLATES, TOOLS, collection, read_back, written

from cerebrum_cli.core.tools import ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.prompt_format import PromptFormat
from cerebrum_cli.formats.template import EmbeddedFormat
from cerebrum_cli.formats.tool_calls import PLAIN_TOOLS, CallSyntax, ToolFormat
from cerebrum_cli.formats.tool_families import FAMILIES

ROUND_TRIPS = {name: tuple(ToolCall(*call) for call in calls) for name, calls in rows("round_trips")}


def normal(value: Any) -> Any:
    """A value of an argument, where some formats write all values as text."""
    if isinstance(value, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return value if isinstance(parsed, str) else parsed
    return value


def same(calls: Sequence[ToolCall]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, {key: normal(value) for key, value in call.arguments.items()}) for call in calls]


# Learned syntax.


@pytest.mark.parametrize(("name", "call", "pair"), rows("learned_calls"))
def test_syntax_of_calls_is_learned(name: str, call: str, pair: str, chatml: LlamaBackend) -> None:
    learned = embedded(chatml, TOOL_TEMPLATES[name]).tool_format
    assert [(syntax.call, syntax.pair) for syntax in learned.syntaxes] == [(call, pair)]
    assert learned.text_arguments == (name == "text arguments")


def test_template_that_writes_one_call_gets_one(chatml: LlamaBackend) -> None:
    silent = [name for name in TOOL_TEMPLATES if not embedded(chatml, TOOL_TEMPLATES[name]).tool_format.writes_several]
    assert silent == ["gpt-oss", "one call at a time"]


@pytest.mark.parametrize(
    ("source", "has_place", "takes_text", "writes_calls"),
    [
        (ALL_TEMPLATES["no place"], False, True, True),
        (ALL_TEMPLATES["no calls"], True, True, False),
        (ALL_TEMPLATES["no results"], True, False, False),
        (TOOL_TEMPLATES["list after a marker"], True, False, True),
        (TEMPLATES["chatml"], False, True, False),
        (TEMPLATES["mistral"], False, False, False),
    ],
)
def test_template_may_lack_a_part_of_calls(
    source: str, has_place: bool, takes_text: bool, writes_calls: bool, chatml: LlamaBackend
) -> None:
    found = embedded(chatml, source).tool_format
    assert (found.has_place, found.takes_text, found.writes_calls) == (has_place, takes_text, writes_calls)


def test_template_that_fails_has_no_calls(chatml: LlamaBackend) -> None:
    assert embedded(chatml, "{{ raise_exception('no') }}").tool_format == PLAIN_TOOLS


# Round trips: what a template writes of calls is read as these calls.


def assert_round_trip(prompt_format: PromptFormat, calls: ToolCalls) -> None:
    if not prompt_format.tool_format.writes_several:
        calls = calls[:1]
    assert same(read_back(prompt_format, calls)) == same(calls)


@pytest.mark.parametrize("case", ROUND_TRIPS)
@pytest.mark.parametrize("template", TOOL_TEMPLATES)
def test_calls_are_read_as_a_template_writes_them(template: str, case: str, chatml: LlamaBackend) -> None:
    assert_round_trip(embedded(chatml, TOOL_TEMPLATES[template]), ROUND_TRIPS[case])


texts = st.text(st.characters(exclude_categories=("Cs", "Co", "Cc"), include_characters="\n\t")) | st.sampled_from(
    ["<b>", "</b>", "{", "}]", '"', "'", "\\n", "```", "a=1", "&lt;", "call:x{", "[f(x)]", "<|"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
arguments = st.dictionaries(st.sampled_from(["city", "code", "data"]), values)
any_calls = st.lists(
    st.builds(ToolCall, st.sampled_from([tool.name for tool in TOOLS]), arguments), min_size=1, max_size=2
).map(tuple)


@given(name=st.sampled_from(sorted(TOOL_TEMPLATES)), calls=any_calls)
def test_any_calls_are_read_as_a_template_writes_them(name: str, calls: ToolCalls, chatml: LlamaBackend) -> None:
    assert_round_trip(embedded(chatml, TOOL_TEMPLATES[name]), calls)


# Calls without markup.

WEATHER = '{"name": "weather", "arguments": {"city": "Oslo"}}'
TAGGED = f"<tool_call>\n{WEATHER}\n</tool_call>"


@pytest.mark.parametrize("text", ["[" * 20_000, '{"a":' * 20_000])
def test_deep_json_is_no_call(text: str) -> None:
    assert PLAIN_TOOLS.read(text, TOOLS).calls == ()


@pytest.mark.parametrize("value", ["NaN", "1e999", '{"Oslo"}', 'b"Oslo"', "{(1, 2): 3}"])
def test_arguments_that_json_cannot_represent_are_an_error_for_the_model(value: str, chatml: LlamaBackend) -> None:
    if value in ("NaN", "1e999"):
        found = PLAIN_TOOLS.read(WEATHER.replace('"Oslo"', value), TOOLS)
    else:  # which Python has
        own = embedded(chatml, TOOL_TEMPLATES["LFM2.5"]).tool_format
        found = own.read(f"<|tool_call_start|>[weather(city={value})]<|tool_call_end|>", TOOLS)
    [call] = found.calls
    assert (call.arguments, call.result.partition(":")[0]) == ({}, "invalid arguments")


# What of an answer may be a call, and is withheld.


TAG = CallSyntax("<tool_call>$calls")


def filtered(text: str, pieces: Sequence[int], *syntaxes: CallSyntax) -> tuple[str, str]:
    """What is passed on of a text that comes in pieces, and what is withheld at its end; sizes of pieces repeat."""
    calls = ToolFormat(syntaxes=syntaxes).filter(TOOLS)
    sizes, at, passed = cycle(pieces), 0, ""
    while at < len(text):
        size = next(sizes)
        passed += calls.feed(text[at : at + size])
        at += size
        assert passed == calls.shown and passed + calls.held == text[:at]
    return passed, calls.held


@pytest.mark.parametrize(("text", "held"), rows("withheld"))
@pytest.mark.parametrize("pieces", [[1], [3, 1, 2], [999]])
def test_only_what_may_be_a_call_is_withheld(text: str, held: str, pieces: list[int]) -> None:
    assert filtered(text, pieces, TAG)[1] == held


answers = st.lists(
    texts
    | st.sampled_from(
        [TAGGED, WEATHER, "\n", "<tool", "<tool_call>", "{", "[", "```", "```json\n", "[weather(", "[1] A"]
    ),
    max_size=6,
).map("".join)
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(text=answers, pieces=sizes, syntaxes=st.sampled_from([(TAG,), ()]))
def test_nothing_is_lost_of_text_beside_calls(text: str, pieces: list[int], syntaxes: tuple[CallSyntax, ...]) -> None:
    passed, held = filtered(text, pieces, *syntaxes)
    assert passed + held == text
    found = ToolFormat(syntaxes=syntaxes).read(text, TOOLS)
    if found.calls:
        assert found.before.startswith(passed)
    else:
        assert found.before == text


@given(
    name=st.sampled_from(sorted(TOOL_TEMPLATES)), calls=any_calls, said=st.sampled_from(["", "I look.\n"]), pieces=sizes
)
def test_nothing_of_a_call_is_passed_on(
    name: str, calls: ToolCalls, said: str, pieces: list[int], chatml: LlamaBackend
) -> None:
    prompt_format = embedded(chatml, TOOL_TEMPLATES[name])
    tools = prompt_format.tool_format
    if tools.in_headers:  # those are no text of the answer
        return
    if not tools.writes_several:
        calls = calls[:1]
    passed, _ = filtered(said + written(prompt_format, calls), pieces, *tools.syntaxes)
    assert passed.strip() == said.strip()


# Every template of llama.cpp's collection, after `make peers`.


def format_of(source: str) -> PromptFormat:
    return EmbeddedFormat(source=source, bos="<s>", eos="</s>", special_tokens=lambda text: ())


@pytest.mark.fuzz
@pytest.mark.parametrize("case", ROUND_TRIPS)
@pytest.mark.parametrize("name", sorted(collection().keys() - LEFT_OUT["writes_no_calls"].keys()))
def test_fuzzed_template_of_the_collection_reads_its_calls(name: str, case: str) -> None:
    if reason := LEFT_OUT["misread"].get(name, LEFT_OUT["misread"].get(f"{name}: {case}")):
        pytest.skip(reason)
    assert_round_trip(format_of(collection()[name]), ROUND_TRIPS[case])


@pytest.mark.fuzz
def test_collection_of_templates_is_fuzzed() -> None:
    templates = collection()
    assert len(templates) > 60, "the collection is not here: run `make peers`"
    silent = [name for name, source in templates.items() if not format_of(source).tool_format.writes_calls]
    assert silent == sorted(LEFT_OUT["writes_no_calls"])


# Documented calls of the families whose chat templates do not show how they write calls, and calls without markup.


DOCUMENTED = rows("calls")
TYPES = {"city": "string", "days": "integer", "ratio": "number", "flag": "boolean", "data": "object", "items": "array"}
SCHEMA = {"type": "object", "properties": {key: {"type": kind} for key, kind in TYPES.items()}}
TYPED_TOOLS = tuple(ToolSpec(name, "does something", SCHEMA) for name in ("weather", "run_python"))


def family_format(name: str, chatml: LlamaBackend) -> ToolFormat:
    """The format of a template that has the texts of a family, if any, and writes no calls."""
    if not name:
        return PLAIN_TOOLS
    texts = next(family.texts for family in FAMILIES if family.name == name)
    return embedded(chatml, f"{{# {' '.join(texts)} #}}{ALL_TEMPLATES['no calls']}").tool_format


@pytest.mark.parametrize("case", DOCUMENTED, ids=lambda case: f"{case['family']}: {case['what']}")
def test_documented_calls_are_read(case: dict[str, Any], chatml: LlamaBackend) -> None:
    tool_format = family_format(case["family"], chatml)
    found = tool_format.read(case["reply"], TYPED_TOOLS)
    assert str([[call.name, call.arguments] for call in found.calls]) == str(case["calls"])
    assert found.are_own == case.get("own", bool(case["calls"] and case["family"]))
    if tool_format.in_headers:
        return
    assert (found.before, found.behind) == (case.get("before", ""), case.get("behind", ""))
    for size in (1, 3, 1000):
        calls = tool_format.filter(TYPED_TOOLS)
        passed = "".join(calls.feed(case["reply"][at : at + size]) for at in range(0, len(case["reply"]), size))
        assert passed + calls.held == case["reply"]
        assert passed == case.get("passed", found.before) or not found.calls


def test_every_family_has_a_documented_call_and_is_in_the_manual() -> None:
    names = [family.name for family in FAMILIES]
    assert {case["family"] for case in DOCUMENTED} == {*names, ""}
    page = (ROOT / "docs" / "functions.md").read_text(encoding="utf-8")
    assert [name for name in names if re.split(r"[\d, ]", name)[0] not in page] == []
