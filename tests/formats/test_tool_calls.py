"""Function calls: the syntax that is learned from a template, reading, and what of an answer may be a call."""

import ast
import json
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import TEMPLATES, embedded
from tool_templates import (
    NO_CALLS,
    NO_PLACE,
    NO_RESULTS,
    TOOL_TEMPLATES,
    TOOLS,
    collection,
    read_back,
    written,
)

from cerebrum_cli.core.tools import ToolCall, ToolCalls
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.call_readers import CallSyntax
from cerebrum_cli.formats.prompt_format import PromptFormat
from cerebrum_cli.formats.template import EmbeddedFormat
from cerebrum_cli.formats.tool_calls import PLAIN_TOOLS, ToolFormat

PROGRAM = "def f(x):\n    return x['a'] + \"b\\n\"\n\nprint(f({'a': 1}))\n"
OSLO = ToolCall("weather", {"city": "Oslo"})
ROUND_TRIPS = {
    "text": (OSLO,),
    "text and number": (ToolCall("weather", {"city": "Oslo", "days": 3}),),
    "program": (ToolCall("run_python", {"code": PROGRAM}),),
    "unicode": (ToolCall("weather", {"city": "São Paulo ☃ 北京", "flag": True}),),
    "nested": (ToolCall("weather", {"data": {"a": [1, 2.5, {"b": None}], "c": 'x "q"'}, "items": ["x", "y"]}),),
    "two calls": (OSLO, ToolCall("run_python", {"code": "print(1)\n"})),
    "no arguments": (ToolCall("weather", {}),),
    "markup": (ToolCall("weather", {"city": "<b>&amp; {x} </b> 'q' }} ]"}),),
    "text of a number": (ToolCall("weather", {"city": "007"}),),
}


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


@pytest.mark.parametrize(
    ("name", "opening", "markers"),
    [
        ("JSON in a tag", "<tool_call>", ("<tool_call>", "</tool_call>")),
        ("list after a marker", "[TOOL_CALLS]", ("[TOOL_CALLS]",)),
        ("name, then JSON", "<function=", ("</function>",)),
        ("name, then pairs", "<tool_call>", ("<tool_call>", "</parameter>", "</function>")),
        ("keys and values in tags", "<tool_call>", ("<arg_key>", "</arg_value>")),
        ("pairs as attributes", "<calls>", ("<calls>", "</invoke>")),
        ("one call at a time", "", ()),
        ("text arguments", "<|call|>", ("<|call|>", "<|end_call|>")),
        ("Gemma 4", "<|tool_call>", ("<|tool_call>", "<tool_call|>", '<|"|>')),
        ("gpt-oss", "", ()),
        ("LFM2.5", "<|tool_call_start|>", ("<|tool_call_start|>", "<|tool_call_end|>")),
    ],
)
def test_syntax_of_calls_is_learned(name: str, opening: str, markers: tuple[str, ...], chatml: LlamaBackend) -> None:
    learned = embedded(chatml, TOOL_TEMPLATES[name]).tool_format
    assert (learned.has_place, learned.writes_calls, learned.openings[:1]) == (
        True,
        True,
        (opening,) if opening else (),
    )
    assert {*markers} <= {*learned.markers}
    assert learned.writes_several == (name not in ("one call at a time", "gpt-oss"))
    assert learned.text_arguments == (name == "text arguments")
    assert learned.in_headers == (name == "gpt-oss")


@pytest.mark.parametrize(
    ("source", "has_place", "takes_text", "writes_calls"),
    [
        (NO_PLACE, False, True, True),
        (NO_CALLS, True, True, False),
        (NO_RESULTS, True, False, False),
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
BARE = {
    WEATHER: ((OSLO,), "", ""),
    f"I look.\n{WEATHER}\nSo.": ((OSLO,), "I look.", "So."),
    f"I look:\n```json\n{WEATHER}\n```": ((OSLO,), "I look:", ""),
    f"```{WEATHER}```": ((OSLO,), "", ""),
    f"{WEATHER}\n```sh\nls\n```": ((OSLO,), "", "```sh\nls\n```"),
    f"[{WEATHER},\n {WEATHER}]": ((OSLO, OSLO), "", ""),
    f"{WEATHER}\n{WEATHER}; {WEATHER};": ((OSLO, OSLO, OSLO), "", ""),
    f"{{{WEATHER}": ((OSLO,), "", ""),  # Qwen2.5-Coder 1.5B, whose template shows two braces
    f"```json\n{{{WEATHER}}}\n```\nSo.": ((OSLO,), "", "So."),
    f"First:\n{WEATHER}\nthen:\n{WEATHER}": ((OSLO, OSLO), "First:", "then:"),
    '{"tool": "weather", "parameters": {"city": "Oslo"}}': ((OSLO,), "", ""),
    '{"function": {"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}': ((OSLO,), "", ""),
    '{"name": "weather", "arguments": {}}': ((ToolCall("weather", {}),), "", ""),
    '{"name": "run_python", "arguments": {"code": "a = 1\nprint(a)"}}': (
        (ToolCall("run_python", {"code": "a = 1\nprint(a)"}),),
        "",
        "",
    ),
}
NO_CALL = (
    "",
    "It is sunny.",
    f"Use {WEATHER}.",
    '{"name": "unknown", "arguments": {}}',
    '{"name": "weather", "arguments": ["Oslo"]}',
    '{"name": "weather"}',
    '{"name": 5, "arguments": {}}',
    f"[{WEATHER}, 5]",
    "[]",
    '{"city": "Oslo"}',
    '{"weather": {"city": "Oslo"}}',
    "[1] A source.\n[2](https://example.org)",
    "[weather(city='Oslo')]",
    "weather(city='Oslo')",
    "[" * 20_000,
    '{"a":' * 20_000,
    "```python\nprint('{}')\n```\nThat is all.",
    '```json\n{"name": "Ann", "age": 5}\n```',
    "{% for x in y %}\n{{ x }}\n{% endfor %}",
)
TAGGED = f"<tool_call>\n{WEATHER}\n</tool_call>"


@pytest.mark.parametrize("text", BARE)
def test_calls_without_markup_are_read(text: str) -> None:
    assert PLAIN_TOOLS.read(text, TOOLS) == (*BARE[text], False)


@pytest.mark.parametrize("text", NO_CALL)
def test_text_that_names_no_function_is_no_call(text: str) -> None:
    assert PLAIN_TOOLS.read(text, TOOLS) == ((), text, "", False)


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_arguments_that_json_cannot_represent_are_an_error_for_the_model(value: str) -> None:
    [call] = PLAIN_TOOLS.read(WEATHER.replace('"Oslo"', value), TOOLS).calls
    assert (call.arguments, call.result.partition(":")[0]) == ({}, "invalid arguments")


@pytest.mark.parametrize("value", ['{"Oslo"}', 'b"Oslo"', "{(1, 2): 3}"])
def test_python_values_that_json_does_not_have_are_an_error_for_the_model(value: str, chatml: LlamaBackend) -> None:
    own = embedded(chatml, TOOL_TEMPLATES["LFM2.5"]).tool_format
    [call] = own.read(f"<|tool_call_start|>[weather(city={value})]<|tool_call_end|>", TOOLS).calls
    assert (call.arguments, call.result.partition(":")[0]) == ({}, "invalid arguments")


def test_backslashes_of_a_text_in_python_are_kept(chatml: LlamaBackend) -> None:
    own = embedded(chatml, TOOL_TEMPLATES["LFM2.5"]).tool_format
    [call] = own.read(r"<|tool_call_start|>[run_python(code='a\d\'b\n\\')]<|tool_call_end|>", TOOLS).calls
    assert call.arguments == {"code": "a\\d'b\n\\"}


def test_half_a_character_in_a_call_is_replaced() -> None:
    calls = PLAIN_TOOLS.read(WEATHER.replace("Oslo", "\\ud83d"), TOOLS).calls
    assert calls == (ToolCall("weather", {"city": "\ufffd"}),)


def test_half_a_character_in_an_unknown_name_is_replaced(chatml: LlamaBackend) -> None:
    own = embedded(chatml, TOOL_TEMPLATES["JSON in a tag"]).tool_format
    [call] = own.read(TAGGED.replace("weather", "\\ud83d"), TOOLS).calls
    assert call.name == "\ufffd"


def test_own_syntax_counts_anywhere_and_first(chatml: LlamaBackend) -> None:
    own = embedded(chatml, TOOL_TEMPLATES["JSON in a tag"]).tool_format
    other = '{"name": "run_python", "arguments": {"code": "1"}}'
    assert own.read(f"{other}\nI look: {TAGGED}", TOOLS) == ((OSLO,), f"{other}\nI look:", "", True)
    assert own.read(other, TOOLS) == ((ToolCall("run_python", {"code": "1"}),), "", "", False)
    unknown = (ToolCall("unknown", {"city": "Oslo"}),)
    assert own.read(TAGGED.replace("weather", "unknown"), TOOLS) == (unknown, "", "", True)
    assert own.read(f"{TAGGED}\n{TAGGED}".removesuffix("</tool_call>"), TOOLS) == ((OSLO, OSLO), "", "", True)
    assert own.read("<tool_call>\n{}\n</tool_call>", TOOLS).calls == ()


def test_markup_that_text_is_about_stays_in_it(chatml: LlamaBackend) -> None:
    own = embedded(chatml, TOOL_TEMPLATES["JSON in a tag"]).tool_format
    found = own.read(f"`<tool_call>` begins a call:\n{TAGGED}\n`</tool_call>` ends it, {{so}}.", TOOLS)
    assert found == ((OSLO,), "`<tool_call>` begins a call:", "`</tool_call>` ends it, {so}.", True)


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


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("It is sunny.", ""),
        ("It is sunny.\n", "\n"),
        ("a < b", ""),
        ("a <", " <"),
        ("a <tool_", " <tool_"),
        ("a <tool_box> b", ""),
        (f"I look: {TAGGED}\nSo.", f" {TAGGED}\nSo."),
        (f"I look:\n{TAGGED}", f"\n{TAGGED}"),
        (f"I look:\n{WEATHER}", f"\n{WEATHER}"),
        (f"I look: {WEATHER}", ""),
        (f"I look:\n```json\n{WEATHER}\n```\n", f"\n```json\n{WEATHER}\n```\n"),
        ("I look:\n  {", "\n  {"),
        ("I look:\n  [", "\n  ["),
        (f"I look:\n[{WEATHER[:20]}", f"\n[{WEATHER[:20]}"),
        ('{"name": "weather", "arguments": {"flag": tru', '{"name": "weather", "arguments": {"flag": tru'),
        ('{"name": "weather", "arguments": {"days": 1.', '{"name": "weather", "arguments": {"days": 1.'),
        ('{"name": "weather", "arguments": {"city": "\\u00', '{"name": "weather", "arguments": {"city": "\\u00'),
        ("weather(city=", ""),
        ("[weather(city=", ""),
        ("[1] A source.", ""),
        ("[link](https://example.org)", ""),
        ("{% for x in y %}", ""),
        ("{\n  return a", ""),
        ("{{ x }", ""),
        (f"{{{WEATHER[:20]}", f"{{{WEATHER[:20]}"),
        ('{"name": "Ann"} and', ""),
        ('{"name": "unknown", "arguments": {}}', ""),
        ("``", "``"),
        ("```python\n", "```python\n"),
        ("```python\np", ""),
        ("```python\nprint({})\n```\nThat is ", " "),
        ('```json\n{"name": "Ann",', '```json\n{"name": "Ann",'),
        ('```json\n{"name": "Ann"}', ""),
    ],
)
@pytest.mark.parametrize("pieces", [[1], [3, 1, 2], [999]])
def test_only_what_may_be_a_call_is_withheld(text: str, held: str, pieces: list[int]) -> None:
    assert filtered(text, pieces, TAG)[1] == held


answers = st.lists(
    texts
    | st.sampled_from(
        [TAGGED, WEATHER, "\n", "<tool", "<tool_call>", "{", "[", "```", "```json\n", "[weather(", *NO_CALL[1:14]]
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

NO_FUNCTIONS = "it mentions no functions"
SHOWS_NO_CALLS = "it lists functions, but calls are texts to it"
CHANGES_LISTS = "it changes a list, which the sandbox forbids"
WRITES_NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B": NO_FUNCTIONS,
    "Kimi-K2-Instruct": CHANGES_LISTS,
    "Kimi-K2-Thinking": CHANGES_LISTS,
    "LFM2-8B-A1B": SHOWS_NO_CALLS,
    "LFM2.5-Instruct": SHOWS_NO_CALLS,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "it shows no functions, and a call only without content",
    "fireworks-ai-llama-3-firefunction-v2": "it gets functions as text, in another variable",
    "google-gemma-2-2b-it": NO_FUNCTIONS,
    "ibm-granite-granite-3.3-2B-Instruct": SHOWS_NO_CALLS,
    "llama-cpp-deepseek-r1": "it writes a generator as JSON, which fails",
    "llama-cpp-rwkv-world": NO_FUNCTIONS,
    "microsoft-Phi-3.5-mini-instruct": NO_FUNCTIONS,
}
UNESCAPED = "it escapes neither quotes nor line ends"
MISREAD = {
    **{("LFM2.5-8B-A1B", case): UNESCAPED for case in ("program", "markup")},
    ("MiniMax-M3", "nested"): "objects are elements of XML",
    **{
        ("CohereForAI-c4ai-command-r-plus-tool_use", case): "it needs a description of each argument"
        for case in ROUND_TRIPS
    },
}


def format_of(source: str) -> PromptFormat:
    return EmbeddedFormat(source=source, bos="<s>", eos="</s>", special_tokens=lambda text: ())


@pytest.mark.fuzz
@pytest.mark.parametrize("case", ROUND_TRIPS)
@pytest.mark.parametrize("name", sorted(collection().keys() - WRITES_NO_CALLS.keys()))
def test_fuzzed_template_of_the_collection_reads_its_calls(name: str, case: str) -> None:
    if (name, case) in MISREAD:
        pytest.skip(MISREAD[name, case])
    assert_round_trip(format_of(collection()[name]), ROUND_TRIPS[case])


@pytest.mark.fuzz
def test_collection_of_templates_is_fuzzed() -> None:
    templates = collection()
    assert len(templates) > 60, "the collection is not here: run `make peers`"
    silent = [name for name, source in templates.items() if not format_of(source).tool_format.writes_calls]
    assert silent == sorted(WRITES_NO_CALLS)
