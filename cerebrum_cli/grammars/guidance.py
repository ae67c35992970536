"""JSON Schemas, grammars and regular expressions as llguidance takes them."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from textwrap import shorten
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLTokenizer

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar, unusable
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.grammars.gbnf import gbnf_to_lark

if TYPE_CHECKING:
    from llguidance import JsonCompileOptions

MAX_PROBLEM = 200  # characters
BYTES = LLTokenizer("byte")  # whose tokens are single bytes
# JSON on one line; the space after a comma or colon is optional. Models write both, and white space cannot continue
# forever.
STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # Not \u, which llguidance has only for control characters: a model that began \u00e9 would have to write one.
    "json_allowed_escapes": r"nrtbf\"",
    "coerce_one_of": True,  # an answer that matches two of its schemas fails when it is checked as a whole
    "lenient": True,  # what is ignored then comes as warnings
}
# Formats of JSON Schema that llguidance cannot enforce. Other unknown formats, such as "binary", only annotate.
UNENFORCED_FORMATS = {
    *("idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer"),
    *("uri-reference", "uri-template"),
}
TIMES = ("time", "date-time")
NANOSECONDS = r"^[^.]*(\.[0-9]{1,9}[^0-9].*)?$"  # small models write fractions of a second without end
HINT = "fix or remove it, and state the rule in the prompt"


def compile_grammar(grammar: Grammar, tokenizer: LLTokenizer | None = None) -> LLMatcher:
    """A matcher of a grammar for a tokenizer; without one, of single bytes. Raises GrammarError."""
    return byte_matcher(grammar).deep_copy() if tokenizer is None else _matcher(grammar, tokenizer)


@lru_cache(64)
def byte_matcher(grammar: Grammar) -> LLMatcher:
    return _matcher(grammar, BYTES)


def is_allowed(grammar: Grammar, text: bytes, is_whole: bool) -> bool:
    """Whether a text matches a grammar or, unless `is_whole`, can be continued to match. Raises GrammarError."""
    matcher = compile_grammar(grammar)
    count = matcher.try_consume_tokens(list(text))
    return count == len(text) and (matcher.is_accepting() or not is_whole)


def _matcher(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    matcher = LLMatcher(tokenizer, _translate(grammar), log_level=0)
    if matcher.is_error():
        reason = matcher.get_error().partition("\n")[0].removeprefix("panic: assertion failed: ")
        raise GrammarError(f"the schema or grammar is too large: {reason}", "simplify it")
    return matcher


@lru_cache(64)
def _translate(grammar: Grammar) -> str:
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
        problem = _one_line(problem.partition("\n   1 |")[0])
        raise GrammarError(f"cannot parse the grammar: {problem}", "fix the grammar")
    return translated


def _translate_schema(text: str) -> str:
    if any(f'"{name}"' in text for name in TIMES):
        text = json.dumps(json.loads(text, object_hook=_with_nanoseconds))
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(text, overrides=STYLE)
    except ValueError as error:
        raise unusable(str(error), "use smaller numbers, or flatten it") from error
    is_error, problems = LLMatcher.validate_grammar_with_warnings(grammar)
    if not is_error:
        problems = [warning for warning in problems if not _is_harmless(warning)]
    if problems:
        raise unusable(_one_line(problems[0]), HINT)
    return grammar


def _with_nanoseconds(schema: JsonDict) -> JsonDict:
    """A schema of a time, with at most nine digits of a fraction of a second."""
    if schema.get("format") in TIMES:
        schema["allOf"] = [*schema.get("allOf", ()), {"pattern": NANOSECONDS}]
    return schema


def _is_harmless(warning: str) -> bool:
    """Whether a keyword that llguidance ignores is one that only annotates, or that is checked in the whole answer."""
    subject, _, name = warning.partition(": ")
    return subject.startswith("oneOf ") or (subject == "Unknown format" and name not in UNENFORCED_FORMATS)


def _one_line(problem: str) -> str:
    return shorten(problem, MAX_PROBLEM, placeholder=" ...")
