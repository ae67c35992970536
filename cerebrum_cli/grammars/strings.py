"""How llguidance writes JSON, and which strings match a pattern or a format there."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLTokenizer

if TYPE_CHECKING:
    from llguidance import JsonCompileOptions

# JSON on one line; the space after a comma or colon is optional. Models write both, and white space cannot continue
# forever.
STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": r"nrtbf\"",  # not \u, which could hide a name
    "lenient": False,
}
BYTES = LLTokenizer("byte")  # whose tokens are single bytes


def is_match(keyword: str, value: str, text: str) -> bool:
    """Whether a string matches a `pattern` or a `format`, in linear time. Raises ValueError for an unknown one."""
    matcher = _matcher(keyword, value).deep_copy()
    data = json.dumps(text, ensure_ascii=False).encode()
    return bool(matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting())


@lru_cache(256)
def _matcher(keyword: str, value: str) -> LLMatcher:
    grammar = LLMatcher.grammar_from_json_schema({"type": "string", keyword: value}, overrides=STYLE)
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().split()))
    return matcher
