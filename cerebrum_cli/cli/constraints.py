"""The grammar of answers, from `--schema` or `--grammar`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.files import exists, read_text
from cerebrum_cli.core.grammar import Grammar, GrammarKind, is_json_schema, schema_file, schema_grammar, unusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cerebrum_cli.replies.source import ModelSource

GRAMMAR_KINDS: dict[str, GrammarKind] = {".lark": "lark", ".regex": "regex"}  # of files, by suffix
MAX_GRAMMAR_BYTES = 4_000_000  # of a file with a schema or a grammar


def read_grammar(schema: str | None, path: Path | None, source: ModelSource) -> Grammar | None:
    """What `--schema` or `--grammar` gives; None without either. Raises UsageError, GrammarError."""
    if schema is not None and path:
        raise UsageError.conflict("--schema", "--grammar")
    with name_grammar_in_errors(schema, path):
        if schema is not None:
            grammar = schema_grammar(schema_text(schema))
        elif path:
            kind = GRAMMAR_KINDS.get(path.suffix.lower(), "gbnf")
            grammar = Grammar(kind, read_text(path, MAX_GRAMMAR_BYTES))
        else:
            return None
        source.check(grammar)
        return grammar


def schema_text(schema: str) -> str:
    """The value of `--schema` itself, or the text of its file. Raises UsageError, GrammarError."""
    if not schema.strip():
        raise UsageError.invalid("--schema", schema, "a JSON Schema, its path, or fields")
    path = schema_file(schema)
    if path is None:
        return schema
    if not exists(path) and schema.isidentifier():
        raise UsageError(f"there is no schema file {schema}", f"check the path; a field needs its type: '{schema} str'")
    text = read_text(path, MAX_GRAMMAR_BYTES)
    if not is_json_schema(text):
        raise unusable("it is not a JSON object", "it must be a JSON Schema object")
    return text


@contextmanager
def name_grammar_in_errors(schema: str | None, path: Path | None) -> Iterator[None]:
    """Name the file in errors, or the option."""
    try:
        yield
    except GrammarError as error:
        if schema:
            path = schema_file(schema)
        error.message = f"{path or '--schema'}: {error.message}"
        raise
