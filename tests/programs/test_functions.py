"""Functions that a model may call: their schemas, calls of them, files of functions, and the tool `python`."""

import asyncio
import functools
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Required, TypedDict

import numpy
import pydantic
import pytest
from command_line import PYTHON
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import NewChildren

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.tools import Tool, ToolCall, ToolSpec
from cerebrum_cli.programs import functions
from cerebrum_cli.programs.bubblewrap import Bubblewrap
from cerebrum_cli.programs.call_filter import call_filter
from cerebrum_cli.programs.functions import cut, tools_of
from cerebrum_cli.programs.sandbox import Sandbox


def tool_of(function: Callable[..., object]) -> Tool:
    [tool] = tools_of([function])
    return tool


def run_tool(tool: Tool, arguments: JsonObject) -> str:
    return tool.run(arguments).result


def parameters_of(function: Callable[..., object]) -> Any:
    return tool_of(function).spec.parameters["properties"]


def weather(city: str, days: int = 1, units: Literal["C", "F"] | None = None) -> str:
    """Forecast for a city,
    for some days.

    Cached for an hour.

    Args:
        city: The name: of the city,
            in English.
        days (int, optional): How many.
        other: Not a parameter.

    Returns:
        text: The forecast.
    """
    return f"{city} {days} {units}"


# What a function tells a model.


def test_function_gives_name_docstring_and_schema() -> None:
    tool = tool_of(weather)
    assert tool.spec == ToolSpec(
        "weather",
        "Forecast for a city,\nfor some days.\n\nCached for an hour.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The name: of the city, in English."},
                "days": {"type": "integer", "description": "How many."},
                "units": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    )
    assert not tool.asks


def test_function_without_docstring_and_parameters_is_a_tool() -> None:
    def now():  # type: ignore[no-untyped-def]
        return "noon"

    tool = tool_of(now)
    assert tool.spec == ToolSpec("now", "", {"type": "object", "properties": {}, "required": []})
    assert run_tool(tool, {}) == "noon"


def takes(annotation: Any) -> Callable[..., object]:
    def function(value):  # type: ignore[no-untyped-def]
        return repr(value)

    function.__annotations__["value"] = annotation
    return function


STRING, INTEGER = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, STRING),
        (int, INTEGER),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        ("list[int]", {"type": "array", "items": INTEGER}),
        (list, {"type": "array"}),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object"}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (Optional[int], INTEGER),  # noqa: UP045
        (list[str] | None, {"type": "array", "items": STRING}),
        (Any, {}),
    ],
)
def test_annotations_become_json_schema(annotation: Any, schema: object) -> None:
    assert json.dumps(parameters_of(takes(annotation))) == json.dumps({"value": schema})  # the order is of the prompt


class Color(Enum):
    """A color."""

    RED = "red"
    BLUE = "blue"


@dataclass
class Place:
    name: str
    height: int | None = None
    tags: set[str] = field(default_factory=set)


class Point(NamedTuple):
    x: float
    y: float


class Route(TypedDict, total=False):
    start: Required[Place]
    via: list[Point]


class Tree(pydantic.BaseModel):
    name: str
    children: list["Tree"] = []


OSLO = {"name": "Oslo"}
PLACE = {
    "type": "object",
    "properties": {
        "name": STRING,
        "height": INTEGER,
        "tags": {"type": "array", "items": STRING, "uniqueItems": True},
    },
    "required": ["name"],
}
NUMBER = {"type": "number"}
POINT = {"type": "array", "maxItems": 2, "minItems": 2, "prefixItems": [NUMBER, NUMBER]}


@pytest.mark.parametrize(
    ("annotation", "schema", "given", "value"),
    [
        (Color, {"type": "string", "description": "A color.", "enum": ["red", "blue"]}, "red", Color.RED),
        (int | str, {"anyOf": [INTEGER, STRING]}, "5", "5"),
        (Literal["a", 1], {"enum": ["a", 1]}, "1", 1),
        (Path, {"type": "string", "format": "path"}, "a/b", Path("a/b")),
        (date, {"type": "string", "format": "date"}, "2025-01-02", date(2025, 1, 2)),
        (datetime, {"type": "string", "format": "date-time"}, "2025-01-02T03:04:05", datetime(2025, 1, 2, 3, 4, 5)),
        (Place, PLACE, {"name": "Oslo", "height": "7", "tags": ["a", "a"]}, Place("Oslo", 7, {"a"})),
        (Place, PLACE, '{"name": "Oslo"}', Place("Oslo")),
        (list[Place], {"type": "array", "items": PLACE}, [OSLO], [Place("Oslo")]),
        (dict[str, Place], {"type": "object", "additionalProperties": PLACE}, {"a": OSLO}, {"a": Place("Oslo")}),
        (Point, POINT, [1, "2"], Point(1.0, 2.0)),
        (tuple[float, float], POINT, [1, 2], (1.0, 2.0)),
        (set[int], {"type": "array", "items": INTEGER, "uniqueItems": True}, [1, 1], {1}),
        (
            Route,
            {
                "type": "object",
                "properties": {"start": PLACE, "via": {"type": "array", "items": POINT}},
                "required": ["start"],
            },
            {"start": OSLO, "via": [[1, 2]]},
            {"start": Place("Oslo"), "via": [Point(1.0, 2.0)]},
        ),
        (
            Tree,
            {
                "type": "object",
                "properties": {"name": STRING, "children": {"type": "array", "items": {"type": "object"}}},
                "required": ["name"],
            },
            {"name": "a", "children": [{"name": "b"}]},
            Tree(name="a", children=[Tree(name="b")]),
        ),
        (
            Annotated[int, pydantic.Field(description="How many.", ge=1)],
            {"type": "integer", "description": "How many.", "minimum": 1},
            "3",
            3,
        ),
        (Annotated[int, "How many."], {"type": "integer", "description": "How many."}, 3, 3),
        (bool, {"type": "boolean"}, "True", True),
        (bytes, {"type": "string", "format": "binary"}, "æ", "æ".encode()),
        (float, NUMBER, "1e3", 1000.0),
    ],
)
def test_arguments_are_converted_to_their_types(annotation: Any, schema: object, given: Any, value: object) -> None:
    got: list[object] = []

    def function(value: object) -> None:
        got.append(value)

    function.__annotations__["value"] = annotation
    tool = tool_of(function)
    assert json.dumps(tool.spec.parameters["properties"]["value"]) == json.dumps(schema)
    called = tool.run({"value": given})
    assert (called.result, got) == ("(no result)", [value])
    assert type(got[0]) is type(value)
    assert json.loads(json.dumps(called.arguments)) == called.arguments
    assert tool.run(called.arguments).arguments == called.arguments


def test_decimal_is_exact() -> None:
    assert run_tool(tool_of(takes(Decimal)), {"value": 0.1}) == "Decimal('0.1')"


def test_parameter_that_takes_none_is_optional() -> None:
    def function(value: int | None, other: Optional[str]) -> str:  # noqa: UP045
        return f"{value} {other}"

    tool = tool_of(function)
    assert tool.spec.parameters["required"] == []
    called = tool.run({"value": "5"})
    assert (called.arguments, called.result) == ({"value": 5, "other": None}, "5 None")


def test_defaults_may_be_any_values() -> None:
    def function(value: int = 1, other: object = object(), json: Any = print, model_copy: str = "a") -> str:
        return f"{value} {model_copy}"

    tool = tool_of(function)
    assert "default" not in json.dumps(tool.spec.parameters)
    assert tool.run({"value": "2", "model_copy": "b"}) == ToolCall("function", {"value": 2, "model_copy": "b"}, "2 b")


LEAVES = [
    (str, st.text()),
    (int, st.integers()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (Color, st.sampled_from(Color)),
    (date, st.dates()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (Path, st.sampled_from([Path("a"), Path("/b/c.txt")])),
]
Typed = tuple[Any, st.SearchStrategy[Any]]


def containers(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def around(typed: Typed) -> st.SearchStrategy[Typed]:
        kind, values = typed
        several = st.lists(values, max_size=3)
        return st.sampled_from(
            [
                (list[kind], several),  # type: ignore[valid-type]
                (tuple[kind, ...], several.map(tuple)),  # type: ignore[valid-type]
                (dict[str, kind], st.dictionaries(st.text(), values, max_size=3)),  # type: ignore[valid-type]
                (kind | None, st.none() | values),
            ]
        )

    return inner.flatmap(around)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.recursive(st.sampled_from(LEAVES), containers, max_leaves=3), st.data())
def test_arguments_and_results_survive_json(typed: Typed, data: st.DataObject) -> None:
    annotation, values = typed
    value = data.draw(values)
    got: list[object] = []

    def function(value: object) -> object:
        got.append(value)
        return [value]

    written = json.loads(run_tool(tool_of(lambda_named(lambda: [value])), {}))
    function.__annotations__["value"] = annotation
    called = tool_of(function).run({"value": written[0]})
    assert (got, json.loads(called.result)) == ([value], written)


def lambda_named(function: Callable[[], object]) -> Callable[[], object]:
    function.__name__ = "function"
    return function


@pytest.mark.parametrize("annotation", [Callable, threading.Thread, list[threading.Thread]])
def test_unsupported_annotation_is_an_error_with_those_that_are_supported(annotation: Any) -> None:
    with pytest.raises(UsageError, match=r"function cannot be a tool: ") as raised:
        tool_of(takes(annotation))
    assert "an Enum or a dataclass" in raised.value.hint and "\n" not in raised.value.message


def variadic(*cities: str) -> None: ...


def keywords(**options: str) -> None: ...


def positional(city: str, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (variadic, r"variadic cannot be a tool: \*cities: str has no name"),
        (keywords, r"keywords cannot be a tool: \*\*options: str has no name"),
        (positional, "positional cannot be a tool: city: str has no name"),
        (lambda: 1, "<lambda> cannot be a tool"),
        (functools.partial(weather, days=2), "cannot be a tool"),
        (max, "cannot be a tool"),
        (takes("Missing"), "name 'Missing' is not defined"),
        (7, "invalid tool: 7"),
        ("perl", "invalid tool: 'perl'"),
    ],
)
def test_other_functions_and_values_are_rejected(function: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as raised:
        tools_of([function])
    assert raised.value.hint and "\n" not in raised.value.message


def test_tools_pass_and_two_of_one_name_are_rejected() -> None:
    tool = tool_of(weather)
    first, second = tools_of([tool, successor])
    assert (first, second.spec) == (tool, tool_of(successor).spec)
    with pytest.raises(UsageError, match="two tools are named weather"):
        tools_of([tool, weather])


@functools.cache
def successor(number: int) -> int:
    return number + 1


class Station:
    def temperature(self, city: str) -> float:
        return 2.5


def test_methods_and_cached_functions_are_tools() -> None:
    assert run_tool(tool_of(Station().temperature), {"city": "Oslo"}) == "2.5"
    assert run_tool(tool_of(successor), {"number": 1}) == "2"


# Calls.


def test_wrong_arguments_are_one_line_for_the_model() -> None:
    run = partial(run_tool, tool_of(weather))
    assert run({}) == "invalid arguments: city: Field required"
    assert run({"city": 5}) == "invalid arguments: city: Input should be a valid string (got 5)"
    assert run({"city": "Oslo", "units": "K"}) == "invalid arguments: units: Input should be 'C' or 'F' (got 'K')"
    assert run({"town": "Oslo"}) == ("invalid arguments: city: Field required; town: Extra inputs are not permitted")
    assert "\n" not in run({"city": ["Oslo\n" * 1000]})


def test_null_omits_an_argument() -> None:
    assert run_tool(tool_of(weather), {"city": "Oslo", "days": None, "units": None}) == "Oslo 1 None"
    assert run_tool(tool_of(weather), {"city": None}).startswith("invalid arguments: city: ")
    assert run_tool(tool_of(takes(Any)), {"value": None}) == "None"


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "7", 7),
        (float, "0.5", 0.5),
        (bool, "True", True),
        (bool, "false", False),
        (list[int], "[1, 2]", [1, 2]),
        (dict, '{"a": "b"}', {"a": "b"}),
        (int | None, "7", 7),
        (str, "7", "7"),
        (str, "null", "null"),
        (Any, "7", "7"),
        (Literal[1, 2], "2", 2),
    ],
)
def test_text_is_parsed_where_another_type_is_wanted(annotation: Any, text: str, value: object) -> None:
    arguments = {"value": text}
    assert run_tool(tool_of(takes(annotation)), arguments) == repr(value)
    assert arguments == {"value": text}


def test_a_call_has_the_arguments_that_the_function_got() -> None:
    called = tool_of(weather).run({"city": "Oslo", "days": "2", "units": None})
    assert called == ToolCall("weather", {"city": "Oslo", "days": 2}, "Oslo 2 None")
    assert tool_of(weather).run({"days": "2"}).arguments == {"days": "2"}


@pytest.mark.parametrize(("annotation", "text"), [(int, "seven"), (list, "[" * 100_000)])
def test_text_of_another_type_is_a_wrong_argument(annotation: Any, text: str) -> None:
    assert run_tool(tool_of(takes(annotation)), {"value": text}).startswith("invalid arguments: value: ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("æ\n", "æ\n"),
        ("", "(no result)"),
        (None, "(no result)"),
        ({"city": "Tromsø", "on": datetime(2025, 1, 2)}, '{"city": "Tromsø", "on": "2025-01-02T00:00:00"}'),
        ((1, 2.5, True), "[1, 2.5, true]"),
        ("a\udcff", "a\ufffd"),
    ],
)
def test_results_are_text_or_json(value: object, text: str) -> None:
    def function() -> object:
        return value

    assert run_tool(tool_of(function), {}) == text


async def waited() -> list[int]:
    await asyncio.sleep(0)
    return [1]


async def counted() -> AsyncIterator[int]:
    for number in range(3):
        yield number


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (waited, "[1]"),
        (counted, "[0, 1, 2]"),
        (lambda: asyncio.sleep(0, "late"), "late"),
        (lambda: (number for number in range(3)), "[0, 1, 2]"),
        (lambda: {"squares": map(str, range(2))}, '{"squares": ["0", "1"]}'),
        (lambda: {10, 9, 1}, "[1, 9, 10]"),
        (lambda: {"a", 1}, '["a", 1]'),
        (lambda: Place("Oslo", 7), '{"name": "Oslo", "height": 7, "tags": []}'),
        (lambda: Tree(name="a"), '{"name": "a", "children": []}'),
        (lambda: [Color.RED, date(2025, 1, 2), Path("a"), Decimal("1.50")], '["red", "2025-01-02", "a", "1.50"]'),
        (lambda: Color.RED, "red"),
        (lambda: {Color.RED: b"\xc3\xa6", 1: None}, '{"red": "æ", "1": null}'),
        (lambda: [numpy.float32(0.5), numpy.arange(2)], "[0.5, [0, 1]]"),
        (lambda: {}.keys(), "[]"),
    ],
)
def test_results_of_many_types_are_json(function: Callable[[], object], text: str) -> None:
    assert run_tool(tool_of(lambda_named(function)), {}) == text


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (len, "a builtin_function_or_method"),
        (float("nan"), "nan"),
        ({"a": [float("-inf")]}, "-inf"),
        (b"\xff", "bytes that are not UTF-8"),
        ({(1, 2): 3}, "a mapping with a key of type tuple"),
        ([object()], "an object"),
        (StringIO("a\nb"), "an open file"),
        (int, "a type"),
    ],
)
def test_result_that_is_no_json_is_told(value: object, problem: str) -> None:
    def function() -> object:
        return value

    assert run_tool(tool_of(function), {}) == f"function returned {problem}, which JSON cannot represent"


@pytest.mark.parametrize("value", [itertools.count, lambda: {"numbers": itertools.count()}])
def test_endless_results_are_bounded(value: Callable[[], object]) -> None:
    def endless() -> object:
        return value()

    assert '9998, 9999, "[stopped after 10,000 items]"]' in run_tool(tool_of(endless), {})


def test_coroutine_is_awaited_where_a_loop_runs() -> None:
    async def main() -> str:
        return run_tool(tool_of(waited), {})

    assert asyncio.run(main()) == "[1]"


class Own(BaseException): ...


@pytest.mark.parametrize("error", [SystemExit(2), GeneratorExit(), Own("x"), asyncio.CancelledError()])
def test_function_of_this_process_may_raise_anything(error: BaseException) -> None:
    name = type(error).__name__
    assert run_tool(tool_of(raising(error)), {}).startswith(name)


def test_streams_and_directory_are_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> None:
        os.chdir("/")
        print("printed")  # noqa: T201
        sys.stdout.close()
        sys.stdout = sys.stderr = None

    monkeypatch.chdir(tmp_path)
    before = sys.stdout, sys.stderr
    assert run_tool(tool_of(function), {}) == "printed\n"
    assert (sys.stdout, sys.stderr, Path.cwd()) == (*before, tmp_path)


def test_threads_of_the_caller_print_where_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    begun, done = threading.Event(), threading.Event()

    def other() -> None:
        begun.wait()
        print("caller")  # noqa: T201
        done.set()

    def function() -> None:
        print("function")  # noqa: T201
        begun.set()
        done.wait()

    threading.Thread(target=other).start()
    assert run_tool(tool_of(function), {}) == "function\n"
    assert capsys.readouterr().out == "caller\n"


def test_programs_of_a_function_do_not_write_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    def function() -> None:
        subprocess.run(["echo", "from a program"], check=True)

    print("before")  # noqa: T201
    assert run_tool(tool_of(function), {}) == "(no result)"
    print("after")  # noqa: T201
    assert capfd.readouterr() == ("before\nafter\n", "from a program\n")


def test_prints_are_part_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    def function() -> int:
        print("printed")  # noqa: T201
        return 3

    assert run_tool(tool_of(function), {}) == "printed\n3"
    assert capsys.readouterr() == ("", "")


def raising(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


def test_an_exception_is_the_result() -> None:
    def ratio(a: int, b: int) -> float:
        return a / b

    assert run_tool(tool_of(ratio), {"a": 1, "b": 0}) == "ZeroDivisionError: division by zero"
    assert run_tool(tool_of(raising(ValueError("a\nb"))), {}) == "ValueError: a b"
    assert run_tool(tool_of(raising(SystemExit(2))), {}) == "SystemExit: 2"

    def circular() -> object:
        values: list[object] = []
        values.append(values)
        return values

    assert run_tool(tool_of(circular), {}) == (
        "circular returned a value within itself, or nested too deep, which JSON cannot represent"
    )


def test_an_exception_without_text_is_the_result() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert run_tool(tool_of(raising(Silent())), {}) == "Silent: <exception str() failed>"


def test_a_function_does_not_change_the_arguments_of_its_call() -> None:
    def clear(items: list[str]) -> None:
        items.clear()

    arguments = {"items": ["a"]}
    assert run_tool(tool_of(clear), arguments) == "(no result)"
    assert arguments == {"items": ["a"]}


def test_arguments_may_be_nested_too_deep() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert run_tool(tool_of(weather), {"city": deep}).startswith("RecursionError: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(signal.SIGTERM)])
def test_interruptions_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_tool(tool_of(raising(error)), {})


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Interrupt this process after so many seconds."""
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


def test_ctrl_c_ends_a_function_that_sleeps(ctrl_c: Callable[[float], None]) -> None:
    def function() -> None:
        time.sleep(60)

    tool, stdout = tool_of(function), sys.stdout
    assert run_tool(tool, {"wrong": 1}).startswith("invalid arguments")  # imports what it needs
    ctrl_c(0.05)
    with pytest.raises(KeyboardInterrupt):
        run_tool(tool, {})
    assert sys.stdout is stdout


def test_cut_keeps_both_ends() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("a" * 3000 + "b" * 20_000 + "c" * 2001, 4001) == (
        f"{'a' * 2000}\n[... 21,000 characters omitted ...]\n{'c' * 2001}"
    )
    assert cut("abc", 1) == "\n[... 2 characters omitted ...]\nc"


# Files of functions.

FILE = """
from __future__ import annotations
import math
from dataclasses import dataclass
from sibling import shout
from typing import Optional

print("loading")

@dataclass
class Place:
    name: str

def greet(name: Optional[str] = None) -> str:
    return shout(f"hello {name}") + __name__

def fail(code: int):
    return math.sqrt(code)

def _private(): ...
"""


def test_functions_of_a_file_are_tools_that_ask(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sibling.py").write_text("def shout(text): return text.upper() + '!'\n")
    (tmp_path / "mytools.py").write_text(FILE)
    greet, fail = tools_of([str(tmp_path / "mytools.py")])
    assert [tool.spec.name for tool in (greet, fail)] == ["greet", "fail"] and greet.asks and fail.asks
    assert run_tool(greet, {"name": "you"}) == "HELLO YOU!cerebrum_tools_mytools"
    assert run_tool(fail, {"code": -1}) == "ValueError: math domain error"
    assert capfd.readouterr() == ("", "loading\n")


def test_decorated_functions_of_a_file_are_tools(tmp_path: Path) -> None:
    source = "from functools import cache, reduce\n@cache\ndef double(x: int): return 2 * x\nclass A: pass\na = A()\n"
    (tmp_path / "mytools.py").write_text(source)
    [double] = tools_of([str(tmp_path / "mytools.py")])
    assert (double.spec.name, run_tool(double, {"x": 2})) == ("double", "4")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def f(:\n", "cannot import .*SyntaxError: .*, line 1"),
        ("\nimport missing_module\n", "cannot import .*ModuleNotFoundError: No module named 'missing_module'"),
        ("raise SystemExit(3)", "cannot import .*SystemExit: 3"),
        ("\0", "cannot import .*null bytes"),
        ("from math import sqrt\ndef _f(): ...", "defines no public functions"),
        (None, "cannot import .*FileNotFoundError"),
    ],
)
def test_files_that_give_no_tools_are_rejected(tmp_path: Path, source: str | None, problem: str) -> None:
    path = tmp_path / "broken.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(UsageError, match=f"(?s){problem}") as raised:
        tools_of([str(path)])
    assert str(path) in raised.value.message and "\n" not in raised.value.message and raised.value.hint


# Programs. They are the tests' own, so they run without isolation here; tests of the sandbox are in test_eval_code.py.


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f'#!/bin/sh\nwhile [ "$1" != -P ]; do shift; done\nexec {PYTHON} "$@"\n')
    bwrap.chmod(0o755)
    monkeypatch.setattr(functions, "require_sandbox", lambda _: Sandbox(Bubblewrap(str(bwrap), call_filter("x86_64"))))
    [tool] = tools_of(["python"])
    return tool


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print(6 * 7)", "42\n"),
        ("```python\nprint(6 * 7)\n```", "42\n"),
        ("    x = 6\n    x * 7", "42\n"),
        ("x = 'æ'; x  # ``` \n", "'æ'\n"),
        ("x = 6\n(x,\n 7)\n", "(6, 7)\n"),
        ("1, *[2]", "(1, 2)\n"),
        ("print('a')\n[].append(1)", "a\n"),
        ("x = '''\n```\nprint(1)\n```\n'''\nprint(len(x))", "18\n"),
        ("x = 1", "(no result)"),
        ("exit()", "(no result)"),
        ("print('x' * 9000 + 'y' * 20)", f"{'x' * 4000}\n[... 1,021 characters omitted ...]\n{'x' * 3979}{'y' * 20}\n"),
        (
            "while True print(1)",
            'Traceback (most recent call last):\n  File "program.py", line 2, in <module>\n  File "python", line 1\n',
        ),
        (
            "print('so far')\nx = 0\n1 / x",
            'so far\nTraceback (most recent call last):\n  File "program.py", line 2, in <module>\n  File "python"',
        ),
        ("import os\nos._exit(0)", "the program was ended: crashed it ended the process"),
    ],
)
def test_python_gives_what_a_program_prints(python: Tool, code: str, result: str) -> None:
    printed = run_tool(python, {"code": code})
    assert printed == result or (len(result) > 20 and printed.startswith(result)), printed


def test_python_describes_its_parameter(python: Tool) -> None:
    assert not python.asks
    assert python.spec.name == "python" and python.spec.description.startswith("Run a Python program")
    assert json.dumps(python.spec.parameters).count("description") == 1
    assert run_tool(python, {}) == "invalid arguments: code: Field required"


def test_python_needs_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UsageError, match="bubblewrap runs only on Linux"):
        tools_of(["python"], sandbox="bwrap")


@needs_linux
@pytest.mark.slow
def test_ctrl_c_ends_a_program(new_children: NewChildren, python: Tool, ctrl_c: Callable[[float], None]) -> None:
    run_tool(python, {})
    ctrl_c(0.5)
    with pytest.raises(KeyboardInterrupt):
        run_tool(python, {"code": "import time\ntime.sleep(60)"})
    assert new_children() == []


@pytest.mark.slow
def test_python_runs_isolated(sandbox: Sandbox) -> None:
    [python] = tools_of(["python"], sandbox="bwrap")
    assert run_tool(python, {"code": "import numpy\nint(numpy.arange(5).sum())"}) == "10\n"
    assert "PermissionError" in run_tool(python, {"code": "import socket\nsocket.socket()"})
