"""Check whole answers against their JSON Schema: servers and llguidance may apply only a part of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache, partial
from textwrap import shorten
from typing import Any

from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import Draft202012Validator, extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from cerebrum_cli.core.grammar import unusable
from cerebrum_cli.grammars.strings import is_match

MAX_PROBLEM = 200  # characters
MAX_DIGITS = 400  # of an integer that is written with a point or an exponent


def check_text(keyword: str, validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ARG001
    """Check a pattern or a format as for models on this machine, in linear time; unknown formats are ignored."""
    if not isinstance(instance, str):
        return
    try:
        matches = is_match(keyword, value, instance)
    except ValueError:
        if keyword == "pattern":
            raise
        return
    if not matches:
        yield ValidationError(f"{instance!r} does not match the {keyword} {value!r}")


CHECKS = {name: partial(check_text, name) for name in ("pattern", "format")}


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
        path = ".".join(map(str, error.path))
        raise unusable(shorten(f"{path}: {error.message}", MAX_PROBLEM, placeholder=" ..."), "correct it") from error
    return extend(kind, CHECKS)(value, registry=Registry())


def schema_problem(schema: str, text: str) -> str | None:
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
