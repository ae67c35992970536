"""Check schemas, and whole answers against them: llguidance and servers may apply only a part of a schema."""

from __future__ import annotations

import json
import re
import warnings
from datetime import date
from decimal import Decimal
from functools import lru_cache, partial
from textwrap import shorten
from typing import Any

from jsonschema import FormatChecker
from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from cerebrum_cli.core.grammar import Grammar, schema_grammar, unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import Match
from cerebrum_cli.grammars.guidance import byte_matcher, is_allowed

MAX_PROBLEM = 200  # characters
MAX_DIGITS = 400  # of an integer that is written with a point or an exponent
ENFORCED_FORMATS = ("date-time", "duration", "hostname", "time", "uri")  # jsonschema needs more packages to check these
DATA = {"const", "enum", "default", "examples"}  # whose values are no schemas
SCHEMAS_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
# Where Python's regular expressions differ from those of JSON Schema, which are ECMAScript's.
SPACES = r"\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
PYTHON = {
    "$": r"\Z",
    ".": r"[^\n\r\u2028\u2029]",
    r"\s": f"[{SPACES}]",
    r"\S": f"[^{SPACES}]",
    "[]": "(?!)",
    "[^]": r"[\s\S]",
}
PART = re.compile(r"(?s)\[\^?(?:[^\]\\]|\\.)*\]?|\\.|[$.]")  # a class, an escape, or one of two marks


def check_grammar(grammar: Grammar, is_local: bool = True) -> None:
    """Raise GrammarError for an invalid schema and, unless servers apply the grammar, for what cannot be enforced."""
    if grammar.is_schema:
        _validator(grammar.text)
    if is_local:
        byte_matcher(grammar)


def schema_problem(schema: Grammar, answer: str) -> str | None:
    """Why a whole answer does not match a JSON Schema; None if it does."""
    try:
        value = json.loads(answer, parse_float=_exact_number, parse_constant=_refuse_constant)
        error = next(_validator(schema.text).iter_errors(value), None)
    except (ValueError, ArithmeticError, RecursionError, Unresolvable) as problem:
        error = problem
    if error is None:
        return None
    return shorten(str(getattr(error, "message", error)), MAX_PROBLEM, placeholder=" ...")


@lru_cache(64)
def _validator(schema: str) -> Any:
    """The validator of a schema, which reads no other files. Raises GrammarError for an invalid schema."""
    value = json.loads(schema, parse_float=_exact_number)
    kind = Draft202012Validator
    if isinstance(value.get("$schema"), str):
        kind = validator_for(value, default=kind)
    try:
        kind.check_schema(value, format_checker=None)
        return kind(_with_python_patterns(value), registry=Registry(), format_checker=_format_checker())
    except SchemaError as error:
        path = ".".join(map(str, error.absolute_path))
        message = error.context[0].message if error.context else error.message  # of the first of several alternatives
        raise unusable(shorten(f"{path}: {message}", MAX_PROBLEM, placeholder=" ..."), "correct it") from error
    except RecursionError as error:
        raise unusable("it is nested too deeply", "flatten it") from error


def _with_python_patterns(part: Any) -> Any:
    """A schema with its patterns as Python takes them. Raises GrammarError."""
    if isinstance(part, list):
        return [_with_python_patterns(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    changed: JsonDict = {}
    for key, value in part.items():
        if key == "pattern" and isinstance(value, str):
            changed[key] = _python_pattern(value)
        elif key in SCHEMAS_BY_NAME and isinstance(value, dict):
            named = {name: _with_python_patterns(inner) for name, inner in value.items()}
            if key == "patternProperties":
                named = {_python_pattern(pattern): inner for pattern, inner in named.items()}
            changed[key] = named
        elif key in DATA:
            changed[key] = value
        else:
            changed[key] = _with_python_patterns(value)
    return changed


class _PythonPattern(str):
    """A regular expression in Python's syntax, which messages show as its author wrote it."""

    original: str

    def __repr__(self) -> str:
        return repr(self.original)


def _python_pattern(pattern: str) -> _PythonPattern:
    translated = _PythonPattern(f"(?a:{PART.sub(_python_part, pattern)})")
    translated.original = pattern
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about marks in a class that may mean more some day
            re.compile(translated)
    except (re.error, RecursionError, OverflowError) as error:
        problem = re.sub(r" at position \d+$", "", str(error))
        raise unusable(f"pattern {pattern!r}: {problem}", "rewrite the pattern") from error
    return translated


def _python_part(part: Match) -> str:
    if part[0] in PYTHON or part[0][0] != "[":
        return PYTHON.get(part[0], part[0])
    return re.sub(r"(?s)\\.", lambda escape: SPACES if escape[0] == r"\s" else escape[0], part[0])


def _format_checker() -> FormatChecker:
    checker = FormatChecker(())
    checker.checkers = dict(Draft202012Validator.FORMAT_CHECKER.checkers)
    for name in ENFORCED_FORMATS:
        checker.checks(name, raises=ValueError)(partial(_has_format, name))
    return checker


def _has_format(name: str, value: Any) -> bool:
    """Whether llguidance could write a string in a format. Raises ValueError for a day that does not exist."""
    if not isinstance(value, str):
        return True
    if name == "date-time":
        date.fromisoformat(value[:10])
    value = re.sub(r"(\.\d{9})\d+", r"\1", value)  # what a server wrote
    return is_allowed(schema_grammar({"type": "string", "format": name}), json.dumps(value).encode(), is_whole=True)


def _exact_number(text: str) -> int | Decimal:
    """An exact number: 19.99 is a multiple of 0.01, and 5.0 an integer."""
    number = Decimal(text)
    if number == number.to_integral_value() and number.adjusted() < MAX_DIGITS:
        return int(number)
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
