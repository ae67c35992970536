"""Grammars: convert JSON Schema to GBNF with llama-cpp-python's converter, and GBNF to a llama.cpp sampler."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from tempfile import TemporaryFile
from textwrap import shorten
from typing import Any

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.engine.llama.library import import_bindings, llama, log

# Keywords that the converter supports, and annotations; all others are ignored.
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
KNOWN_KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems"),
    *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "oneOf", "anyOf", "allOf"),
    *("$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default", "examples"),
}


def ignored_keywords(schema: Any) -> tuple[str, ...]:
    """Keywords of a JSON schema that its grammar does not enforce, sorted."""
    found: set[str] = set()
    todo = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            found |= value.keys() - KNOWN_KEYWORDS
            for key, inner in value.items():
                named = key in ("properties", "$defs", "definitions") and isinstance(inner, dict)
                if key not in ("enum", "const", "default", "examples"):
                    todo += inner.values() if named else [inner]
    return tuple(sorted(found))


def require_known_types(schema: Any, place: str) -> None:
    """Raise ValueError for a type that JSON Schema does not have, with its place, like `properties.name.type`."""
    items = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in items:
        inner = f"{place}.{key}".lstrip(".")
        types = value if isinstance(value, list) else [value]
        if key == "type" and all(isinstance(each, str) for each in types) and not place.endswith("properties"):
            if unknown := next((each for each in types if each not in TYPES), None):
                raise ValueError(f"unknown type {unknown!r} at {inner}; types are {', '.join(TYPES)}")
        elif key not in ("enum", "const", "default", "examples"):
            require_known_types(value, inner)


def schema_to_grammar(schema: str) -> tuple[str, tuple[str, ...]]:
    """Convert a JSON schema to a GBNF grammar; also return the keywords that the grammar does not enforce.

    Raises GrammarError if it is not a JSON object, or cannot be expressed in GBNF.
    """
    converter = _patched_converter()
    try:
        value = json.loads(schema)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        require_known_types(value, "")
        return str(converter.json_schema_to_gbnf(schema)), ignored_keywords(value)
    except Exception as error:  # the converter raises ValueError, KeyError, AssertionError ...
        reason = shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
        raise GrammarError(f"cannot use the JSON schema: {reason}", "it must be a JSON Schema object") from error


def _patched_converter() -> Any:
    """Import the converter, with two fixes from llama.cpp's own.

    JSON strings must not contain raw control characters, and backslashes in constants must be escaped.
    """
    converter = import_bindings("llama_grammar")
    converter.PRIMITIVE_RULES["char"].content = r"""[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})"""
    converter.GRAMMAR_LITERAL_ESCAPE_RE = re.compile(r'[\r\n"\\]')
    converter.GRAMMAR_LITERAL_ESCAPES["\\"] = r"\\"
    return converter


def parse_grammar(vocab: Any, grammar: str) -> Any:
    """Create llama.cpp's sampler for a GBNF grammar; GrammarError if it is invalid."""
    if not grammar.strip():  # to llama.cpp this means no constraint
        raise GrammarError("the grammar is empty", "it must be GBNF with a rule named root")
    log.problems.clear()
    sampler, printed = _capture_stderr(lambda: llama.llama_sampler_init_grammar(vocab, grammar.encode(), b"root"))
    if not sampler:
        reason = parse_error(grammar, printed.decode("utf-8", "replace"), log.problems)
        raise GrammarError(f"cannot parse the grammar: {reason}", "it must be GBNF with a rule named root")
    return sampler


def parse_error(grammar: str, printed: str, logged: Iterable[str]) -> str:
    """Extract a one-line reason from what the parser printed, or else the first logged line."""
    _, parsed, reason = printed.partition("error parsing grammar: ")
    if not parsed:
        return next((line.strip() for line in logged if line.strip()), "llama.cpp gives no reason")
    what, at, rest = reason.removesuffix(f"\n\n{grammar}\n").partition(" at ")
    if not at or not grammar.endswith(rest):
        return what.split("\n", 1)[0]
    line = 1 + grammar.rstrip("\n").count("\n", 0, len(grammar) - len(rest))
    return f"line {line}: {what} at {rest.strip().splitlines()[0][:40] if rest.strip() else 'the end'}"


def _capture_stderr(call: Any) -> tuple[Any, bytes]:
    """Call a native function; return its result, and what it wrote to stderr, where the user would see it."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        return call(), b""
    with TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        captured.seek(0)
        printed = captured.read()
    if result and printed:  # by other threads
        with suppress(OSError):
            os.write(2, printed)
    return result, printed
