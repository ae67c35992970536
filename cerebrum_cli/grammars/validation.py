"""Check whole answers against their JSON Schema: servers and llguidance may apply only a part of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from textwrap import shorten
from typing import Any
from warnings import catch_warnings

from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import Draft202012Validator, extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from cerebrum_cli.core.grammar import unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.grammars.ecmascript import to_rust
from cerebrum_cli.grammars.schemas import FORMATS, require_usable
from cerebrum_cli.grammars.strings import is_match

MAX_PROBLEM = 200  # characters
MAX_DIGITS = 400  # of an integer that is written with a point or an exponent


def check_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ARG001
    if isinstance(instance, str) and not has_pattern(instance, pattern):
        yield ValidationError(f"{instance!r} does not match the pattern {pattern!r}")


def has_pattern(text: str, pattern: str) -> bool:
    """Whether a text has a match of a pattern, in linear time."""
    return is_match("pattern", to_rust(pattern), text)


def check_format(validator: Any, name: str, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ARG001
    """Check a format as for models on this machine, and as jsonschema does; others only annotate."""
    if not isinstance(instance, str):
        return
    conforms = Draft202012Validator.FORMAT_CHECKER.conforms
    matches = name not in FORMATS or is_match("format", name, instance)
    if name == "date-time":
        matches = matches and conforms(instance[:10], "date")
    with catch_warnings(action="ignore"):  # of a regular expression
        matches = matches and conforms(instance, name)
    if not matches:
        yield ValidationError(f"{instance!r} does not match the format {name!r}")


def check_pattern_properties(
    validator: Any,
    patterns: JsonDict,
    instance: Any,
    schema: Any,  # noqa: ARG001
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, inner in patterns.items():
        for name, value in instance.items():
            if has_pattern(name, pattern):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def check_additional(validator: Any, inner: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Check properties that are neither named nor match a pattern."""
    if not isinstance(instance, dict):
        return
    patterns = schema.get("patternProperties", {})
    for name in instance.keys() - schema.get("properties", {}).keys():
        if any(has_pattern(name, pattern) for pattern in patterns):
            continue
        if inner is False:
            yield ValidationError(f"Additional properties are not allowed ({name!r} was unexpected)")
        else:
            yield from validator.descend(instance[name], inner, path=name)


CHECKS = {
    "pattern": check_pattern,
    "format": check_format,
    "patternProperties": check_pattern_properties,
    "additionalProperties": check_additional,
}


@lru_cache(64)
def schema_validator(schema: str) -> Any:
    """The validator of a schema, which reads no other files. Raises GrammarError for an invalid schema."""
    value = json.loads(schema, parse_float=parse_number)
    kind = Draft202012Validator
    if isinstance(value.get("$schema"), str):
        kind = validator_for(value, default=kind)
    try:
        kind.check_schema(value, format_checker=None)
    except SchemaError as error:
        path = ".".join(map(str, error.absolute_path))
        message = error.context[0].message if error.context else error.message  # of the first of several alternatives
        raise unusable(shorten(f"{path}: {message}", MAX_PROBLEM, placeholder=" ..."), "correct it") from error
    except RecursionError as error:
        raise unusable("it is nested too deeply", "flatten it") from error
    require_usable(value)
    return extend(kind, CHECKS)(value, registry=Registry())


def problem_of(schema: str, text: str) -> str | None:
    """Why a text does not match a schema; None if it does."""
    try:
        value = json.loads(text, parse_float=parse_number, parse_constant=refuse_constant)
        error = next(schema_validator(schema).iter_errors(value), None)
    except (ValueError, ArithmeticError, RecursionError, Unresolvable) as problem:
        error = problem
    if error is None:
        return None
    return shorten(str(getattr(error, "message", error)), MAX_PROBLEM, placeholder=" ...")


def parse_number(text: str) -> int | Decimal:
    """An exact number: 19.99 is a multiple of 0.01, and 5.0 an integer."""
    number = Decimal(text)
    if number == number.to_integral_value() and number.adjusted() < MAX_DIGITS:
        return int(number)
    return number


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
