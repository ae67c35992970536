"""What a model sees of a Python function, as a ToolSpec, and the arguments that the function's annotations ask for.

pydantic reads annotations and converts arguments. Its JSON Schema is shortened, since it is a part of each prompt.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import one_line, truncate
from cerebrum_cli.core.tool_schema import shortened
from cerebrum_cli.core.tools import ToolSpec
from cerebrum_cli.programs.function_results import require_json

SUPPORTED = "use named parameters, and types that JSON can represent, such as str, list[int], an Enum or a dataclass"
# A parameter in a docstring's section "Args:": its name, a type in parentheses, and text with the lines below it.
ARGUMENT = re.compile(r"(?m)^    (\w+)(?: *\(.*?\))?:(.*(?:\n {5,}.*)*)")
WORDS = {"True": "true", "False": "false"}  # what booleans become in some templates
MAX_PROBLEMS = 4  # of arguments that are named
MAX_SHOWN = 60  # characters of an invalid value
FORBID_OTHERS = {"extra": "forbid", "allow_inf_nan": False}
typed_dict: Any = TypedDict  # of fields that are known when it is called


class Signature:
    """A function as a model sees it, its `spec`, and the reader of its arguments.

    Raises UsageError if its arguments cannot be passed by name, as JSON.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        name = getattr(function, "__name__", str(function))
        if not name.isidentifier():
            raise UsageError(f"{name} cannot be a tool", "use a function that has a name")
        description, _, section = (inspect.getdoc(function) or "").partition("\nArgs:\n")
        try:
            types = get_type_hints(function, include_extras=True)
            self._parameters = _parameters(function)
            require_json(types.get("return", Any))
            self._types = {name: _readable(types.get(name, Any)) for name in self._parameters}
            self._adapter = self._create_adapter()
            schema = self._adapter.json_schema(schema_generator=SilentSchema)
            properties = shortened(schema).get("properties", {})
        except Exception as error:  # annotations are expressions
            problem = one_line(str(error).partition(". Set `arbitrary_types_allowed")[0].partition("\n")[0])
            raise UsageError(f"{name} cannot be a tool: {problem}", SUPPORTED) from error
        self._describe(properties, dict(ARGUMENT.findall(section)))
        required = [name for name in self._parameters if self._is_required(name)]
        parameters = {"type": "object", "properties": properties, "required": required}
        self.spec = ToolSpec(name, description.strip(), parameters)

    def read(self, arguments: JsonObject) -> dict[str, Any]:
        """Arguments converted to the declared types. Raises ValueError with a line about those that are wrong.

        Some formats write all values as text, and some models null to omit one.
        """
        given = {}
        for name, value in deepcopy(arguments).items():
            if value is not None or not self._is_omitted_by_null(name):
                given[name] = value
        try:
            values = self._adapter.validate_python(given)
        except ValidationError as error:
            values = self._validate(_with_parsed_texts(given, error))
        for name in self._parameters:
            if self._is_none_by_default(name):
                values.setdefault(name, None)
        return values

    def as_json(self, values: dict[str, Any]) -> JsonDict:
        """Converted arguments as JSON; what it cannot represent, such as an object's default, as its text."""
        written: JsonDict = to_jsonable_python(values, fallback=str)
        return written

    def _validate(self, given: JsonDict) -> dict[str, Any]:
        try:
            return self._adapter.validate_python(given)
        except ValidationError as error:
            raise ValueError(_problems(error)) from error

    def _create_adapter(self) -> TypeAdapter[dict[str, Any]]:
        fields: dict[str, Any] = {}
        for name, kind in self._types.items():
            fields[name] = Required[kind] if self._is_required(name) else NotRequired[kind]
        arguments: Any = typed_dict("arguments", fields)  # not a model, whose fields cannot have any name
        arguments.__pydantic_config__ = FORBID_OTHERS
        return TypeAdapter(arguments)

    def _is_required(self, name: str) -> bool:
        return not self._has_default(name) and not _takes_none(self._types[name])

    def _is_none_by_default(self, name: str) -> bool:
        return not self._has_default(name) and _takes_none(self._types[name])

    def _is_omitted_by_null(self, name: str) -> bool:
        return name in self._parameters and self._has_default(name) and self._types[name] is not Any

    def _has_default(self, name: str) -> bool:
        parameter = self._parameters[name]
        return parameter.default is not parameter.empty

    def _describe(self, properties: JsonDict, descriptions: dict[str, str]) -> None:
        """Add descriptions of parameters: of the docstring, or of an annotation's `Annotated[int, "text"]`."""
        for name, schema in properties.items():
            texts = [text for text in get_args(self._types[name])[1:] if isinstance(text, str)]
            if name in descriptions:
                texts.append(descriptions[name])
            if texts and (name in descriptions or get_origin(self._types[name]) is Annotated):
                schema.pop("description", None)
                schema["description"] = one_line(texts[-1])


class SilentSchema(GenerateJsonSchema):
    """The JSON Schema of types, without warnings about defaults that JSON cannot represent: none is shown."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012


def _parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(function).parameters)
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{parameter} has no name")
    return parameters


def _takes_none(annotation: Any) -> bool:
    """Whether an annotation is a union with None."""
    if get_origin(annotation) is Annotated:
        return _takes_none(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def _readable(annotation: Any) -> Any:
    """An annotation that pydantic reads: before Python 3.12, it does not read TypedDict of `typing`."""
    arguments, origin = get_args(annotation), get_origin(annotation)
    if sys.version_info >= (3, 12) or origin is Literal:
        return annotation
    if is_typeddict(annotation):
        fields = {}
        for name, kind in get_type_hints(annotation, include_extras=True).items():
            need = Required if name in annotation.__required_keys__ else NotRequired
            if get_origin(kind) in (Required, NotRequired):
                need, (kind,) = get_origin(kind), get_args(kind)
            fields[name] = need[_readable(kind)]
        return typed_dict(annotation.__name__, fields)
    if not any(map(_has_typed_dict, arguments)):
        return annotation
    readable = tuple(map(_readable, arguments))
    if origin is UnionType:
        return Union[readable]  # noqa: UP007
    if origin is Annotated:
        return Annotated[(readable[0], *annotation.__metadata__)]
    return annotation.copy_with(readable) if hasattr(annotation, "copy_with") else origin[readable]


def _has_typed_dict(annotation: Any) -> bool:
    return is_typeddict(annotation) or any(map(_has_typed_dict, get_args(annotation)))


def _with_parsed_texts(given: JsonDict, error: ValidationError) -> JsonDict:
    """Arguments in which those texts are parsed that are not of the declared type."""
    wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    parsed = {}
    for name, value in given.items():
        parsed[name] = _parsed(value) if name in wrong and isinstance(value, str) else value
    return parsed


def _parsed(text: str) -> Any:
    try:
        return json.loads(WORDS.get(text, text), parse_constant=lambda _: text)  # NaN is no JSON
    except (ValueError, RecursionError):
        return text


def _problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    lines = [_problem(problem["loc"], problem["type"], problem["msg"], problem["input"]) for problem in problems]
    return one_line("; ".join(lines[:MAX_PROBLEMS]))


def _problem(location: Iterable[int | str], kind: str, message: str, value: Any) -> str:
    place = ".".join(map(str, location))
    if kind in ("missing", "extra_forbidden"):
        return f"{place}: {message}"
    return f"{place}: {message} (got {truncate(repr(value), MAX_SHOWN)})"
