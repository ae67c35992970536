"""Grammars: JSON Schema to GBNF by llama-cpp-python's own converter, and GBNF to what llama.cpp samples by."""

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

# What the converter reads, and what only tells of the value; any other keyword binds nothing.
KNOWN_KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems"),
    *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "oneOf", "anyOf", "allOf"),
    *("$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default", "examples"),
}


def ignored_keywords(schema: Any) -> tuple[str, ...]:
    """Return the keywords of a JSON schema that its grammar will not hold, in order of their names."""
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


def schema_to_grammar(schema: str) -> tuple[str, tuple[str, ...]]:
    """Return the GBNF grammar of a JSON schema, and the keywords in it that no grammar holds.

    Raises GrammarError if it is no JSON object, or uses what GBNF cannot say.
    """
    converter = _patched_converter()
    try:
        value = json.loads(schema)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return str(converter.json_schema_to_gbnf(schema)), ignored_keywords(value)
    except Exception as error:  # whatever its parts raise: ValueError, KeyError, AssertionError ...
        reason = shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
        raise GrammarError(f"the JSON schema cannot be used: {reason}", "it must be one JSON Schema object") from error


def _patched_converter() -> Any:
    """Import the converter, and teach its tables two things llama.cpp's own knows by now.

    Control characters cannot stand in a JSON string as they are; and a constant's backslashes must be escaped.
    """
    converter = import_bindings("llama_grammar")
    converter.PRIMITIVE_RULES["char"].content = r"""[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})"""
    converter.GRAMMAR_LITERAL_ESCAPE_RE = re.compile(r'[\r\n"\\]')
    converter.GRAMMAR_LITERAL_ESCAPES["\\"] = r"\\"
    return converter


def parse_grammar(vocab: Any, grammar: str) -> Any:
    """Return llama.cpp's sampler for a GBNF grammar, or raise GrammarError with its complaint."""
    if not grammar.strip():  # to llama.cpp this means: anything goes
        raise GrammarError("the grammar is empty", "it must be GBNF with a rule named root")
    log.problems.clear()
    sampler, printed = _capture_stderr(lambda: llama.llama_sampler_init_grammar(vocab, grammar.encode(), b"root"))
    if not sampler:
        reason = parse_error(grammar, printed.decode("utf-8", "replace"), log.problems)
        raise GrammarError(f"the grammar cannot be read: {reason}", "it must be GBNF with a rule named root")
    return sampler


def parse_error(grammar: str, printed: str, logged: Iterable[str]) -> str:
    """Return in one line what is wrong with a grammar: what the parser said, or else the first line logged."""
    _, parsed, reason = printed.partition("error parsing grammar: ")
    if not parsed:
        return next((line.strip() for line in logged if line.strip()), "llama.cpp does not say why")
    what, _, rest = reason.removesuffix(f"\n\n{grammar}\n").partition(" at ")
    if not rest or not grammar.endswith(rest):
        return what.split("\n", 1)[0]
    line = 1 + grammar.count("\n", 0, len(grammar) - len(rest))
    return f"line {line}: {what} at {rest.splitlines()[0][:40]}"


def _capture_stderr(call: Any) -> tuple[Any, bytes]:
    """Return what a native call returns, and what it wrote on descriptor 2: the parser prints there, the user reads."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed, so nobody reads it
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
    if result and printed:  # what other threads wrote meanwhile
        with suppress(OSError):
            os.write(2, printed)
    return result, printed
