"""Grammars: convert JSON Schema to GBNF with llama-cpp-python's converter, and GBNF to a llama.cpp sampler."""

from __future__ import annotations

import ctypes
import json
import os
import re
from contextlib import suppress
from tempfile import TemporaryFile
from textwrap import shorten
from typing import Any

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.engine.llama.bindings import import_bindings, llama, log

# Keywords that the converter supports, and annotations; all others are ignored.
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
KNOWN_KEYWORDS = {
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems"),
    *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "oneOf", "anyOf", "allOf"),
    *("$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default", "examples"),
}

# llama.cpp parses groups recursively, and needs a stack of 500 bytes for each; it rejects 1,500 nested `?` itself.
MAX_DEPTH = 2000
MAX_RULES = 10_000  # the memory for the first token may grow with the square of their number
MAX_BYTES = 4_000_000
_SYNTAX = re.compile(
    r'"(?:[^"\\\0]|\\[^\0])*"?|\[(?:[^\]\\\0]|\\[^\0])*\]?|#[^\n\0]*'  # what may contain the marks as text
    r"|(?P<mark>[()\0]|::=|\{\s*(?P<least>\d*)\s*(?:,\s*(?P<most>\d*)\s*)?\})"
)
LIMITS = ("minItems", "maxItems", "minLength", "maxLength")
MAX_REPETITIONS = 99_999  # of one keyword or quantifier, each of which the converter writes out
_MANY = re.compile(r"\{[^}]*\d{6}")  # a quantifier


def check_schema(schema: Any) -> tuple[str, ...]:
    """Keywords of a schema that its grammar does not enforce, sorted.

    Raises ValueError for an unknown type, or for so many repetitions that the converter, which spells them out, would
    exhaust memory.
    """
    ignored: set[str] = set()
    todo = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            ignored |= value.keys() - KNOWN_KEYWORDS
            for key, inner in value.items():
                types = inner if isinstance(inner, list) else [inner]
                if key == "type" and (unknown := [name for name in types if name not in TYPES]):
                    raise ValueError(f"unknown type {unknown[0]!r}; types are {', '.join(TYPES)}")
                if (key in LIMITS and isinstance(inner, int) and inner > MAX_REPETITIONS) or (
                    key == "pattern" and _MANY.search(str(inner))
                ):
                    raise ValueError(f"more than {MAX_REPETITIONS:,} repetitions: {key} {shorten(str(inner), 60)}")
                if key in KNOWN_KEYWORDS and key not in ("enum", "const", "default", "examples"):
                    has_names = key in ("properties", "$defs", "definitions") and isinstance(inner, dict)
                    todo += inner.values() if has_names else [inner]
    return tuple(sorted(ignored))


def schema_to_grammar(schema: str) -> tuple[str, tuple[str, ...]]:
    """Convert a JSON schema to a GBNF grammar; also return the keywords that the grammar does not enforce.

    Raises GrammarError if it is not a JSON object, or cannot be expressed in GBNF.
    """
    converter = import_bindings("llama_grammar")
    # Two fixes of llama.cpp's own: strings must not contain raw control characters, and backslashes are escaped.
    converter.PRIMITIVE_RULES["char"].content = r"""[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})"""
    converter.GRAMMAR_LITERAL_ESCAPE_RE = re.compile(r'[\r\n"\\]')
    converter.GRAMMAR_LITERAL_ESCAPES["\\"] = r"\\"
    try:
        value = json.loads(schema)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        ignored = check_schema(value)
        grammar = str(converter.json_schema_to_gbnf(schema))
        check_grammar(grammar)
        return grammar, ignored
    except RecursionError as error:
        raise GrammarError(
            "cannot use the JSON schema: it nests too deeply, or has too many optional properties",
            "split it, or require more properties",
        ) from error
    except Exception as error:  # the converter raises ValueError, KeyError, AssertionError ...
        reason = shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
        raise GrammarError(f"cannot use the JSON schema: {reason}", "it must be a JSON Schema object") from error


def check_grammar(grammar: str) -> None:
    """Raise GrammarError for a grammar that may overflow the stack of llama.cpp's parser, or exhaust memory."""
    if len(grammar) > MAX_BYTES:
        raise GrammarError(f"the grammar is larger than {MAX_BYTES // 1_000_000} MB", "use a smaller one")
    depth = rules = 0
    for match in _SYNTAX.finditer(grammar):
        mark, least, most = match.group("mark", "least", "most")
        if mark is None:
            continue
        if mark == "(":
            depth += 1
        elif mark == ")":
            depth -= 1
        elif mark == "::=":
            rules += 1
        if depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} nested groups"
        elif rules > MAX_RULES:
            problem = f"more than {MAX_RULES} rules"
        elif max(len(least or ""), len(most or "")) > 9 or (least and most and int(least) > int(most)):
            problem = f"invalid repetition {mark[:40]}"
        elif mark == "\0":
            problem = "NUL character"
        else:
            continue
        line = 1 + grammar.count("\n", 0, match.start())
        start = grammar.rfind("\n", 0, match.start())
        problem = f"cannot parse the grammar: line {line}, column {match.start() - start}: {problem}"
        raise GrammarError(problem, "simplify the grammar there")


def parse_grammar(vocab: Any, grammar: str) -> Any:
    """Create llama.cpp's sampler for a GBNF grammar; GrammarError if it is invalid."""
    if not grammar.strip():  # to llama.cpp this means no constraint
        raise GrammarError("the grammar is empty", "it must be GBNF with a rule named root")
    check_grammar(grammar)
    log.problems.clear()
    sampler, printed = _capture_stderr(lambda: llama.llama_sampler_init_grammar(vocab, grammar.encode(), b"root"))
    if not sampler:
        _, _, error = printed.decode("utf-8", "replace").partition("error parsing grammar: ")
        problem, at, rest = error.removesuffix(f"\n\n{grammar}\n").partition(" at ")
        if at:
            line = 1 + grammar.removesuffix(rest).rstrip("\n").count("\n")
            place = rest.strip().partition("\n")[0][:40] or "the end"
            problem = f"line {line}: {problem} at {place}"
        reason = problem or next(iter(log.problems), "llama.cpp gives no reason")
        raise GrammarError(f"cannot parse the grammar: {reason}", "it must be GBNF with a rule named root")
    return sampler


def is_allowed(sampler: Any, token: int) -> bool:
    single = llama.llama_token_data(id=token, logit=0.0, p=0.0)
    candidates = llama.llama_token_data_array(data=ctypes.pointer(single), size=1, selected=-1, sorted=False)
    llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return bool(single.logit != float("-inf"))


def accept_token(sampler: Any, token: int) -> bool:
    """Continue with a token if the grammar allows it; return whether it does. Others would abort the process."""
    if not is_allowed(sampler, token):
        return False
    llama.llama_sampler_accept(sampler, token)
    return True


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
