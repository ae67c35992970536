"""Functions that a model may call: their schemas, their arguments and results, and the tool `python`."""

import asyncio
import functools
import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional

import numpy
import pydantic
import pytest
from typing_extensions import TypedDict
from waiting import NewChildren

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.text import cut_middle
from cerebrum_cli.core.tools import Tool, ToolSpec
from cerebrum_cli.programs.functions import tools_of


def tool_of(function: Callable[..., object] | str) -> Tool:
    [tool] = tools_of([function])
    return tool


def weather(city: str, days: int = 1, units: Literal["C", "F"] | None = None) -> str:
    """Forecast for a city,
    for some days.

    Args:
        city: The name of the city.
    """
    return f"{city} {days} {units}"


# What a function tells a model.


def test_function_gives_name_docstring_and_schema() -> None:
    def now():  # type: ignore[no-untyped-def]
        return "noon"

    tool, bare = tools_of([weather, now])
    units = {"type": "string", "enum": ["C", "F"]}
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}, "units": units}
    assert tool.spec == ToolSpec(
        "weather",
        "Forecast for a city,\nfor some days.\n\nArgs:\n    city: The name of the city.",
        {"type": "object", "properties": properties, "required": ["city"]},
    )
    assert not tool.asks
    assert bare.spec == ToolSpec("now", "", {"type": "object", "properties": {}, "required": []})
    assert bare.run({}) == "noon"


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
    via: list[Point]


class Tree(pydantic.BaseModel):
    name: str
    children: list["Tree"] = []


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TAGS = {"type": "array", "items": STRING, "uniqueItems": True}
PLACE = {"type": "object", "properties": {"name": STRING, "height": INTEGER, "tags": TAGS}, "required": ["name"]}
POINT = {"type": "array", "maxItems": 2, "minItems": 2, "prefixItems": [NUMBER, NUMBER]}
ROUTE = {"type": "object", "properties": {"via": {"type": "array", "items": POINT}}}
TREES = {"type": "array", "items": {"type": "object"}}
TREE = {"type": "object", "properties": {"name": STRING, "children": TREES}, "required": ["name"]}
COUNT = {"type": "integer", "description": "How many.", "minimum": 1}


def takes(annotation: Any, got: list[object] | None = None) -> Callable[..., object]:
    """A function with an argument, which it keeps."""

    def function(value: object) -> None:
        if got is not None:
            got.append(value)

    function.__annotations__["value"] = annotation
    return function


@pytest.mark.parametrize(
    ("annotation", "schema", "given", "value"),
    [
        (str, STRING, "Tromsø", "Tromsø"),
        (int, INTEGER, "7", 7),
        (float, NUMBER, "1e3", 1000.0),
        (bool, {"type": "boolean"}, "True", True),
        (Any, {}, [None], [None]),
        (dict, {"type": "object"}, {"a": 1}, {"a": 1}),
        (dict[str, int], {"type": "object"}, {"a": "1"}, {"a": 1}),
        ("list[int]", {"type": "array", "items": INTEGER}, ["1", 2], [1, 2]),
        (Optional[int], INTEGER, None, None),  # noqa: UP045
        (int | str, {"anyOf": [INTEGER, STRING]}, "5", "5"),
        (Literal["a", 1], {"enum": ["a", 1]}, 1, 1),
        (Color, {"type": "string", "description": "A color.", "enum": ["red", "blue"]}, "red", Color.RED),
        (date, {"type": "string", "format": "date"}, "2025-01-02", date(2025, 1, 2)),
        (Path, {"type": "string", "format": "path"}, "a/b", Path("a/b")),
        (Place, PLACE, {"name": "Oslo", "height": "7", "tags": ["a", "a"]}, Place("Oslo", 7, {"a"})),
        (list[Place], {"type": "array", "items": PLACE}, [{"name": "Oslo"}], [Place("Oslo")]),
        (Point, POINT, [1, "2"], Point(1.0, 2.0)),
        (Route, ROUTE, {"via": [[1, 2]]}, {"via": [Point(1.0, 2.0)]}),
        (Tree, TREE, {"name": "a", "children": [{"name": "b"}]}, Tree(name="a", children=[Tree(name="b")])),
        (Annotated[int, pydantic.Field(description="How many.", ge=1)], COUNT, "3", 3),
    ],
)
def test_annotations_become_schemas_and_arguments_are_converted(
    annotation: Any, schema: object, given: Any, value: object
) -> None:
    got: list[object] = []
    tool = tool_of(takes(annotation, got))
    assert json.dumps(tool.spec.parameters["properties"]["value"]) == json.dumps(schema)  # the order is of the prompt
    assert tool.run({"value": given}) == "(no result)"
    assert got == [value] and type(got[0]) is type(value)


def variadic(*cities: str) -> None: ...


def positional(city: str, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (variadic, "variadic cannot be a tool: it has parameters without a name"),
        (positional, "positional cannot be a tool: it has parameters without a name"),
        (lambda: 1, "<lambda> cannot be a tool: it has no name"),
        (functools.partial(weather, days=2), "cannot be a tool"),
        (max, "max cannot be a tool"),
        (takes("Missing"), "name 'Missing' is not defined"),
        (takes(Callable), "function cannot be a tool: Cannot generate a JsonSchema for"),
        (takes(list[threading.Thread]), "function cannot be a tool: Unable to generate pydantic-core schema for"),
        (7, "invalid tool: 7"),
        ("perl", "invalid tool: 'perl'"),
    ],
)
def test_other_functions_and_values_are_rejected(function: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as raised:
        tools_of([function])
    assert raised.value.hint and "\n" not in raised.value.message


@functools.cache
def successor(number: int) -> int:
    return number + 1


class Station:
    def temperature(self, city: str) -> float:
        return 2.5


def test_tools_methods_and_cached_functions_pass_and_two_of_one_name_are_rejected() -> None:
    tool = tool_of(weather)
    first, second, third = tools_of([tool, successor, Station().temperature])
    assert first == tool
    assert second.run({"number": 1}) == "2"
    assert third.run({"city": "Oslo"}) == "2.5"
    with pytest.raises(UsageError, match="two tools are named weather"):
        tools_of([tool, weather])


# Calls.


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "city: Missing required argument"),
        ({"city": 5}, "city: Input should be a valid string (got 5)"),
        ({"city": "Oslo", "units": "K"}, "units: Input should be 'C' or 'F' (got 'K')"),
        ({"town": "Oslo"}, "city: Missing required argument; town: Unexpected keyword argument"),
        ({"city": ["Oslo\n" * 1000]}, "city: Input should be a valid string (got ['" + r"Oslo\n" * 9 + "Osl…)"),
    ],
)
def test_wrong_arguments_are_one_line_for_the_model(arguments: Any, problem: str) -> None:
    assert tool_of(weather).run(arguments) == f"invalid arguments: {problem}"


async def waited() -> list[int]:
    await asyncio.sleep(0)
    return [1]


def circular() -> object:
    values: list[object] = []
    values.append(values)
    return values


def raising(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: "æ\n", "æ\n"),
        (lambda: "", "(no result)"),
        (lambda: None, "(no result)"),
        (lambda: "a\udcff", "a\ufffd"),
        (lambda: {"city": "Tromsø", 1: (2.5, True)}, '{"city": "Tromsø", "1": [2.5, true]}'),
        (waited, "[1]"),
        (lambda: (number for number in range(3)), "[0, 1, 2]"),
        (lambda: {"squares": map(str, range(2))}, '{"squares": ["0", "1"]}'),
        (lambda: Place("Oslo", 7), '{"name": "Oslo", "height": 7, "tags": []}'),
        (lambda: Tree(name="a"), '{"name": "a", "children": []}'),
        (lambda: [Color.RED, date(2025, 1, 2), Path("a"), Decimal("1.50")], '["red", "2025-01-02", "a", "1.50"]'),
        (lambda: Color.RED, "red"),
        (lambda: [numpy.int64(1), numpy.float32(0.5), numpy.arange(2)], "[1, 0.5, [0, 1]]"),
        (lambda: range(3), "range(0, 3)"),
        (lambda: StringIO("a\nb"), '["a\\n", "b"]'),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (raising(ValueError("a\nb")), "ValueError: a b"),
        (circular, "ValueError: Circular reference detected (id repeated)"),
        (lambda: b"\xff", "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid utf-8"),
    ],
)
def test_results_are_text_or_json_and_exceptions_are_results(function: Callable[[], object], text: str) -> None:
    function.__name__ = "function"
    assert tool_of(function).run({}) == text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(signal.SIGTERM), SystemExit(2)])
def test_interruptions_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        tool_of(raising(error)).run({})


def test_cut_keeps_both_ends() -> None:
    assert cut_middle("abcdef", 6) == "abcdef"
    assert cut_middle("a" * 3000 + "b" * 20_000 + "c" * 2001, 4001) == (
        f"{'a' * 2000}\n[... 21,000 characters omitted ...]\n{'c' * 2001}"
    )
    assert cut_middle("abc", 1) == "\n[... 2 characters omitted ...]\nc"


# `python`.


@pytest.fixture
def python() -> Tool:
    return tool_of("python")


CUT = f"{'x' * 4000}\n[... 1,021 characters omitted ...]\n{'x' * 3979}{'y' * 20}\n"


@pytest.mark.parametrize(
    ("code", "result"),
    [
        *(("print(6 * 7)", "42\n"), ("```python\nprint(6 * 7)\n```", "42\n"), ("x = 6\nx * 7", "42")),
        *(("print('a')\n[].append(1)", "a\n"), ("x = 1", "(no result)"), ("print('x' * 9000 + 'y' * 20)", CUT)),
        ("x = '''\n```\nprint(1)\n```\n'''\nprint(len(x))", "18\n"),
    ],
)
def test_python_gives_what_a_program_prints(python: Tool, code: str, result: str) -> None:
    assert python.run({"code": code}) == result


def test_python_does_not_ask_and_reports_errors_and_what_monty_lacks(python: Tool) -> None:
    assert not python.asks and "not fractions" in python.spec.description
    assert python.spec.parameters["required"] == ["code"]
    assert python.run({}) == "invalid arguments: code: Missing required argument"
    failed = python.run({"code": "print('so far')\nx = 0\n1 / x"})
    assert failed.startswith("so far\nTraceback") and failed.endswith("ZeroDivisionError: division by zero")
    assert python.run({"code": "import fractions"}).splitlines()[-2:] == [
        "ModuleNotFoundError: No module named 'fractions'",
        "This interpreter has only a part of Python: write the program without it.",
    ]


def sleep() -> None:
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("tool", [sleep, "python"])
def test_ctrl_c_ends_a_call(new_children: NewChildren, tool: Any) -> None:
    sleeping = tool_of(tool)
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            sleeping.run({"code": "import time\ntime.sleep(60)"} if tool == "python" else {})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert new_children() == []
