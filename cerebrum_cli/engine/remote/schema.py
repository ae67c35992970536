"""Replies of servers against a JSON Schema: some servers ignore it, or apply a part."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from textwrap import shorten
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing.exceptions import Unresolvable

from cerebrum_cli.core.grammar import unusable

MAX_PROBLEM = 200  # characters


@lru_cache(64)
def schema_validator(schema: str) -> Validator:
    """What checks values against a schema. Raises GrammarError for one that is invalid."""
    value = json.loads(schema)
    kind = validator_for(value, default=Draft202012Validator)
    try:
        kind.check_schema(value, kind.FORMAT_CHECKER)
    except SchemaError as error:
        path = ".".join(map(str, error.path))
        reason = shorten(f"{path}: {error.message}", MAX_PROBLEM, placeholder=" ...")
        raise unusable(reason, "correct it there") from error
    return kind(value, format_checker=kind.FORMAT_CHECKER)


def schema_problem(schema: str, text: str) -> str | None:
    """Why a text does not match a schema; None if it does."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        error: Any = next(schema_validator(schema).iter_errors(value), None)
    except (ValueError, RecursionError, re.error, Unresolvable) as problem:
        error = problem
    if error is None:
        return None
    reason = str(getattr(error, "message", error))
    return shorten(reason, MAX_PROBLEM, placeholder=" ...")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
