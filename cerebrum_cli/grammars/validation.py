"""Check whole answers against their JSON Schema: servers and llguidance may apply only a part of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from decimal import Decimal
from functools import lru_cache
from textwrap import shorten
from typing import Any

from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import Draft202012Validator, extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from cerebrum_cli.core.grammar import unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.grammars.ecmascript import to_rust
from cerebrum_cli.grammars.schemas import FORMATS, IN_PLACE, require_usable, without_dialects
from cerebrum_cli.grammars.strings import is_match, is_pattern

MAX_PROBLEM = 200  # characters
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
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
    if name == "regex":
        matches = is_pattern(instance)
    else:
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
    if isinstance(instance, dict):
        yield from _check_others("Additional", validator, inner, instance, _names_in(schema, instance))


def check_unevaluated(validator: Any, inner: Any, instance: Any, schema: JsonDict) -> Iterator[ValidationError]:
    """Check properties that no other keyword has checked, nor a schema that is applied to the same value."""
    if not isinstance(instance, dict):
        return
    others = {key: value for key, value in schema.items() if key != "unevaluatedProperties"}
    evaluated = _evaluated_names(validator.evolve(schema=others), instance)
    yield from _check_others("Unevaluated", validator, inner, instance, evaluated)


def _check_others(
    kind: str, validator: Any, inner: Any, instance: JsonDict, checked: Set[str]
) -> Iterator[ValidationError]:
    for name, value in instance.items():
        if name in checked:
            continue
        if inner is False:
            yield ValidationError(f"{kind} properties are not allowed ({name!r} was unexpected)")
        else:
            yield from validator.descend(value, inner, path=name)


def _names_in(schema: JsonDict, instance: JsonDict) -> set[str]:
    """The properties of an instance that a schema names, or has a pattern for."""
    patterns = schema.get("patternProperties", {})
    named = {name for name in instance if any(has_pattern(name, pattern) for pattern in patterns)}
    return named.union(instance.keys() & schema.get("properties", {}).keys())


def _evaluated_names(validator: Any, instance: JsonDict) -> set[str]:
    """The properties that a schema checks, which the instance matches."""
    schema = validator.schema
    if not isinstance(schema, dict):
        return set()
    if schema.keys() & {"additionalProperties", "unevaluatedProperties"}:
        return set(instance)
    inner = [_evaluated_names(applied, instance) for applied in _applied(validator, instance)]
    return _names_in(schema, instance).union(*inner)


def _applied(validator: Any, instance: JsonDict) -> Iterator[Any]:
    """The validators of the schemas that a schema applies to the same value, and which it matches."""
    schema = validator.schema
    for reference in [schema[keyword] for keyword in REFERENCES if keyword in schema]:
        resolved = validator._resolver.lookup(reference)
        yield validator.evolve(schema=resolved.contents, _resolver=resolved.resolver)
    applied = [inner for keyword in IN_PLACE for inner in schema.get(keyword, ())]
    applied += [inner for name, inner in schema.get("dependentSchemas", {}).items() if name in instance]
    if "if" in schema:
        holds = validator.evolve(schema=schema["if"]).is_valid(instance)
        applied += [schema["if"], schema.get("then", True)] if holds else [schema.get("else", True)]
    for inner in applied:
        evolved = validator.evolve(schema=inner)
        if evolved.is_valid(instance):
            yield evolved


CHECKS = {
    "pattern": check_pattern,
    "format": check_format,
    "patternProperties": check_pattern_properties,
    "additionalProperties": check_additional,
    "unevaluatedProperties": check_unevaluated,
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
    checks = {keyword: check for keyword, check in CHECKS.items() if keyword in kind.VALIDATORS}
    return extend(kind, checks)(without_dialects(value), registry=Registry())


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
