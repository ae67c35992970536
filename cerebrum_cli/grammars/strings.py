"""How llguidance writes JSON, and which strings match a pattern or a format there."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLTokenizer

from cerebrum_cli.grammars.ecmascript import UnmatchableError, to_rust

if TYPE_CHECKING:
    from llguidance import JsonCompileOptions

# JSON on one line; the space after a comma or colon is optional. Models write both, and white space cannot continue
# forever.
STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # Not \u, which llguidance has only for control characters: a model that began \u00e9 would have to write one.
    "json_allowed_escapes": r"nrtbf\"",
    "lenient": False,
}
BYTES = LLTokenizer("byte")  # whose tokens are single bytes
# A whole answer may have any control character.
CHECKED: JsonCompileOptions = {**STYLE, "json_allowed_escapes": STYLE["json_allowed_escapes"] + "u"}
# Characters that STYLE cannot write.
UNWRITABLE = r"\x{0}-\x{7}\x{b}\x{e}-\x{1f}\x{7f}"


def is_match(keyword: str, value: str, text: str) -> bool:
    """Whether a string matches a `pattern` or a `format`, in linear time. Raises ValueError for an unknown one."""
    matcher = _matcher(keyword, value).deep_copy()
    data = json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f").encode()
    return bool(matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting())


@lru_cache(256)
def _matcher(keyword: str, value: str) -> LLMatcher:
    grammar = LLMatcher.grammar_from_json_schema({"type": "string", keyword: value}, overrides=CHECKED)
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().split()))
    return matcher


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        return not LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(to_rust(text)))
    except UnmatchableError:
        return True
    except ValueError:
        return False


@lru_cache(256)
def needs_control_character(pattern: str) -> bool:
    """Whether no text matches a pattern, in Rust's syntax, without a control character that STYLE cannot write."""
    both = [{"pattern": pattern}, {"pattern": f"^[^{UNWRITABLE}]*$"}]
    grammar = LLMatcher.grammar_from_json_schema({"type": "string", "allOf": both}, overrides=CHECKED)
    return "Regex is empty" in LLMatcher.validate_grammar(grammar)
