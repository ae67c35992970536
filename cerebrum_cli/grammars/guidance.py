"""JSON Schemas, grammars and regular expressions as llguidance takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLTokenizer

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar, unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.grammars.gbnf import gbnf_to_lark
from cerebrum_cli.grammars.schemas import BY_NAME, HINT, parts_of, with_any_of, with_known_keywords
from cerebrum_cli.grammars.strings import BYTES, STYLE

if TYPE_CHECKING:
    from llguidance import JsonCompileOptions

MAX_PROBLEM = 200  # characters
MAX_EXACT = 2**53  # of the integers that floating-point numbers have
MAX_LOCATABLE = 50_000  # characters of a schema, whose parts are compiled one by one to find the faulty one
ONE_OF = "several schemas of a oneOf may match"
ONE_OF_HINT = 'use anyOf, or give each of them "type": "object" and a required property with a const of its own'


@lru_cache(64)
def translate(grammar: Grammar) -> str:
    """A grammar in llguidance's own form. Raises GrammarError."""
    if grammar.is_schema:
        return _translate_schema(grammar.text)
    if grammar.kind == "regex":
        translated: str = LLMatcher.grammar_from_regex(grammar.text.strip("\r\n"))
    elif grammar.kind == "gbnf":
        translated = LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
    else:
        translated = LLMatcher.grammar_from_lark(grammar.text)
    if problem := LLMatcher.validate_grammar(translated):
        problem = re.sub(r"^(?:at )?(\d+)\(\d+\)", r"line \1", problem)
        problem = shorten(problem.partition("\n   1 |")[0], MAX_PROBLEM, placeholder=" ...")
        raise GrammarError(f"cannot parse the grammar: {problem}", "fix the grammar")
    return translated


def compile_grammar(grammar: Grammar, tokenizer: LLTokenizer | None = None) -> LLMatcher:
    """A matcher of a grammar for a tokenizer; without one, of single bytes. Raises GrammarError."""
    return byte_matcher(grammar).deep_copy() if tokenizer is None else _matcher(grammar, tokenizer)


@lru_cache(64)
def byte_matcher(grammar: Grammar) -> LLMatcher:
    return _matcher(grammar, BYTES)


def _matcher(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    matcher = LLMatcher(tokenizer, translate(grammar), log_level=0)
    if matcher.is_error():
        reason = matcher.get_error().partition("\n")[0].removeprefix("panic: assertion failed: ")
        raise GrammarError(f"the schema or grammar is too large: {reason}", "simplify it")
    return matcher


def check_grammar(grammar: Grammar, is_local: bool = True) -> None:
    """Raise GrammarError for an invalid schema and, unless servers apply the grammar, for what cannot be enforced."""
    if grammar.is_schema:
        from cerebrum_cli.grammars.validation import schema_validator

        schema_validator(grammar.text)
    if is_local:
        byte_matcher(grammar)


def schema_problem(schema: Grammar, answer: str) -> str | None:
    """Why a whole answer does not match a JSON Schema; None if it does."""
    from cerebrum_cli.grammars.validation import problem_of

    return problem_of(schema.text, answer)


def is_allowed(grammar: Grammar, text: bytes, is_whole: bool) -> bool:
    """Whether a text matches a grammar or, unless `is_whole`, can be continued to match. Raises GrammarError."""
    matcher = compile_grammar(grammar)
    count = matcher.try_consume_tokens(list(text))
    return count == len(text) and (matcher.is_accepting() or not is_whole)


def _translate_schema(text: str) -> str:
    try:
        schema = with_known_keywords(json.loads(text))
    except RecursionError as error:
        raise unusable("it is nested too deeply", "flatten it") from error
    _require_exact_numbers(schema)
    grammar = _grammar_of_schema(schema)
    problem = _problem_of(grammar)
    if problem.startswith("oneOf"):
        schema = with_any_of(schema)
        grammar = _grammar_of_schema(schema)
        problem = _problem_of(grammar)
    if not problem:
        return grammar
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    names = ""
    if len(text) < MAX_LOCATABLE:
        names = ".".join(_names_of_faulty_part(schema, problem, definitions))
    hint = HINT
    if problem.startswith("oneOf"):
        problem, hint = ONE_OF, ONE_OF_HINT
    raise unusable(f"{names}: {problem}" if names else problem, hint)


def _require_exact_numbers(schema: Any) -> None:
    """Raise GrammarError for a number of `const` or `enum` that llguidance, which rounds, would write differently."""
    numbers = [
        (keyword, number)
        for part in parts_of(schema)
        for keyword in ("const", "enum")
        for number in _numbers(part.get(keyword))
    ]
    if not numbers:
        return
    constant = {"const": [number for _, number in numbers]}
    grammar = _grammar_of_schema(constant, {**STYLE, "item_separator": ","})
    written = LLMatcher(BYTES, grammar, log_level=0).compute_ff_bytes().decode()
    exact = json.loads(written, parse_float=Decimal, parse_int=Decimal)
    for (keyword, number), written_number in zip(numbers, exact, strict=True):
        if written_number != Decimal(str(number)):
            raise unusable(f"{keyword}: the number {number} has too many digits", HINT)


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a JSON value that are long enough to be rounded."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) > MAX_EXACT):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def _grammar_of_schema(schema: JsonDict, style: JsonCompileOptions = STYLE) -> str:
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=style)
    except ValueError as error:
        raise unusable(str(error), "use smaller numbers") from error
    return grammar


def _problem_of(grammar: str) -> str:
    return " ".join(LLMatcher.validate_grammar(grammar).split())


def _names_of_faulty_part(schema: JsonDict, problem: str, definitions: JsonDict) -> list[str]:
    """The names of nested properties, of which the last has the problem."""
    for name, part in _parts(schema):
        if _problem_of(_grammar_of_schema({**part, **definitions})) == problem:
            names = _names_of_faulty_part(part, problem, definitions)
            return [name, *names] if name else names
    return []


def _parts(schema: JsonDict) -> Iterator[tuple[str, JsonDict]]:
    """The schemas in a schema, with the name of each that has one."""
    for key, value in schema.items():
        if key in BY_NAME and isinstance(value, dict):
            named: Iterator[tuple[str, Any]] = iter(value.items())
        elif isinstance(value, list):
            named = (("", part) for part in value)
        else:
            named = iter([("", value)])
        yield from ((name, part) for name, part in named if isinstance(part, dict))
