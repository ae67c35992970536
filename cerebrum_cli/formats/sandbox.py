"""Where a model's own template runs: Jinja's sandbox, with what `transformers` offers templates and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cerebrum_cli.core.errors import FormatError, Interrupted


class GenerationBlock(Extension):
    """`{% generation %}`, which marks what training learns from; a prompt is the same with and without it."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what stands in the block, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def run_template(source: str, values: Mapping[str, Any]) -> str:
    """Return what a template writes; FormatError if it cannot be read, refuses the values or fails on them."""
    template = _compile(source)
    try:
        return template.render(values)
    except Interrupted:
        raise
    except jinja2.TemplateError as error:
        raise FormatError(
            f"the model's template refuses this conversation: {_line(error)}",
            "change what it names, or choose another --format",
        ) from error
    except Exception as error:  # a template is code: it can fail in any way code can
        raise FormatError(
            f"the model's template fails: {type(error).__name__}: {_line(error)}", "choose another with --format"
        ) from error


@cache
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(source)
    except Exception as error:  # nested too deep, a number too long: not all that can be wrong is a TemplateError
        raise FormatError(
            f"the model's template cannot be read: {_line(error)}", "choose a format with --format, or use --raw"
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
    """Write JSON as model templates expect it: characters as they are, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
