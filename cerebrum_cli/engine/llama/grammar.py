"""JSON Schema to GBNF, by llama-cpp-python's own converter."""

from __future__ import annotations

from cerebrum_cli.engine.llama.library import import_bindings
from cerebrum_cli.ground.errors import GrammarError


def schema_to_grammar(schema: str) -> str:
    """Return the GBNF grammar of a JSON schema; GrammarError if it is no JSON or uses what GBNF cannot say."""
    converter = import_bindings("llama_grammar")
    try:
        return str(converter.json_schema_to_gbnf(schema))
    except (
        Exception
    ) as error:  # the converter raises whatever its parts raise: ValueError, KeyError, AssertionError ...
        raise GrammarError(f"the JSON schema cannot be used: {error}", "it must be one JSON Schema object") from error
