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
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.grammar import Grammar, unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.grammars.gbnf import gbnf_to_lark
from cerebrum_cli.grammars.schemas import BY_NAME, HINT, parts_of, with_known_keywords
from cerebrum_cli.grammars.strings import BYTES, STYLE

if TYPE_CHECKING:
    from llguidance import JsonCompileOptions

ANY_OF_STYLE: JsonCompileOptions = {**STYLE, "coerce_one_of": True}
MAX_PROBLEM = 200  # characters
MAX_EXACT = 2**53  # of the integers that floating-point numbers have
MAX_LOCATABLE = 50_000  # characters of a schema, whose parts are compiled one by one to find the faulty one
ONE_OF_NOTICE = NoticeEvent(
    "oneOf is enforced like anyOf; an answer that matches several of its schemas is an error",
    "make its schemas mutually exclusive",
)


@lru_cache(64)
def translate(grammar: Grammar) -> tuple[str, NoticeEvent | None]:
    """A grammar in llguidance's own form, and a notice of what is not taken literally. Raises GrammarError."""
    if grammar.is_schema:
        return _translate_schema(grammar.text)
    if grammar.kind == "regex":
        translated = LLMatcher.grammar_from_regex(grammar.text.strip("\r\n"))
    elif grammar.kind == "gbnf":
        translated = LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
    else:
        translated = LLMatcher.grammar_from_lark(grammar.text)
    if problem := LLMatcher.validate_grammar(translated):
        problem = re.sub(r"^(?:at )?(\d+)\(\d+\)", r"line \1", problem)
        problem = shorten(problem.partition("\n   1 |")[0], MAX_PROBLEM, placeholder=" ...")
        raise GrammarError(f"cannot parse the grammar: {problem}", "fix the grammar")
    return translated, None


def compile_grammar(grammar: Grammar, tokenizer: LLTokenizer | None = None) -> LLMatcher:
    """A matcher of a grammar for a tokenizer; without one, of single bytes. Raises GrammarError."""
    return byte_matcher(grammar).deep_copy() if tokenizer is None else _matcher(grammar, tokenizer)


@lru_cache(64)
def byte_matcher(grammar: Grammar) -> LLMatcher:
    return _matcher(grammar, BYTES)


def _matcher(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    text, _ = translate(grammar)
    matcher = LLMatcher(tokenizer, text, log_level=0)
    if matcher.is_error():
        reason = matcher.get_error().partition("\n")[0].removeprefix("panic: assertion failed: ")
        raise GrammarError(f"the schema or grammar is too large: {reason}", "simplify it")
    return matcher


def check_grammar(grammar: Grammar, is_local: bool = True) -> NoticeEvent | None:
    """A notice of what an answer will not follow literally.

    Raises GrammarError for an invalid schema and, unless servers apply the grammar, for what cannot be enforced.
    """
    if grammar.is_schema:
        from cerebrum_cli.grammars.validation import schema_validator

        schema_validator(grammar.text)
    if not is_local:
        return None
    byte_matcher(grammar)
    return translate(grammar)[1]


def schema_problem(schema: Grammar, answer: str) -> str | None:
    """Why a whole answer does not match a JSON Schema; None if it does."""
    from cerebrum_cli.grammars.validation import problem_of

    return problem_of(schema.text, answer)


def is_allowed(grammar: Grammar, text: bytes, is_whole: bool) -> bool:
    """Whether a text matches a grammar or, unless `is_whole`, can be continued to match. Raises GrammarError."""
    matcher = compile_grammar(grammar)
    count = matcher.try_consume_tokens(list(text))
    return count == len(text) and (matcher.is_accepting() or not is_whole)


def _translate_schema(text: str) -> tuple[str, NoticeEvent | None]:
    try:
        schema = with_known_keywords(json.loads(text))
    except RecursionError as error:
        raise unusable("it is nested too deeply", "flatten it") from error
    _require_exact_numbers(schema)
    problem = ""
    for options, notice in ((STYLE, None), (ANY_OF_STYLE, ONE_OF_NOTICE)):
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
        problem = _problem_of(grammar)
        if not problem:
            return grammar, notice
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    names = ""
    if len(text) < MAX_LOCATABLE:
        names = ".".join(_names_of_faulty_part(schema, problem, definitions))
    raise unusable(f"{names}: {problem}" if names else problem, HINT)


def _require_exact_numbers(schema: Any) -> None:
    """Raise GrammarError for a number of `const` or `enum` that llguidance, which rounds, would write differently."""
    for part in parts_of(schema):
        for keyword in ("const", "enum"):
            for number in _numbers(part.get(keyword)):
                grammar = LLMatcher.grammar_from_json_schema(json.dumps({"const": number}), overrides=STYLE)
                written = LLMatcher(BYTES, grammar, log_level=0).compute_ff_bytes().decode()
                if not written or Decimal(written) != Decimal(str(number)):
                    raise unusable(f"{keyword}: the number {number} has too many digits", HINT)


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a JSON value that are long enough to be rounded."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) > MAX_EXACT):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def _problem_of(grammar: str) -> str:
    return " ".join(LLMatcher.validate_grammar(grammar).split())


def _names_of_faulty_part(schema: JsonDict, problem: str, definitions: JsonDict) -> list[str]:
    """The names of nested properties, of which the last has the problem."""
    for name, part in _parts(schema):
        grammar = LLMatcher.grammar_from_json_schema(json.dumps({**part, **definitions}), overrides=ANY_OF_STYLE)
        if _problem_of(grammar) == problem:
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
