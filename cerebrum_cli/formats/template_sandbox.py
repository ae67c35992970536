"""The sandbox in which chat templates run: Jinja, with the functions that `transformers` gives templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn
from warnings import catch_warnings, simplefilter

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cerebrum_cli.core.errors import FormatError, Interrupted


class GenerationBlock(Extension):
    """The `{% generation %}` block, which marks text for training and does not change a prompt."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def run_template(source: str, values: Mapping[str, Any]) -> str:
    """Render a template, in any time and memory it takes: `try_template` bounds both for unknown files.

    Raises FormatError if the template is invalid, rejects the values, or fails.
    """
    try:
        return compile_template(source).render(values)
    except (FormatError, Interrupted):
        raise
    except jinja2.TemplateError as error:
        raise FormatError(
            f"the chat template rejects this conversation: {_line(error)}",
            "change the conversation, or choose another --format",
        ) from error
    except Exception as error:  # a template is code: it can fail in any way code can
        raise FormatError(
            f"the chat template fails: {type(error).__name__}: {_line(error)}", "choose another --format"
        ) from error


@cache
def compile_template(source: str) -> jinja2.Template:
    """Compile a template. Raises FormatError if it is invalid."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        with catch_warnings():
            simplefilter("ignore", SyntaxWarning)  # Python's, of the code that Jinja makes
            return environment.from_string(source)
    except Exception as error:  # not only TemplateError: deep nesting and long numbers raise others
        raise FormatError(
            f"the chat template cannot be parsed: {_line(error)}", "choose a --format, or run cerebrum ask --raw"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode JSON as chat templates expect it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
