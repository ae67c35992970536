"""Run a model's chat template in Jinja's sandbox, with the functions `transformers` gives templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import cache, wraps
from types import BuiltinMethodType
from typing import Any, NoReturn
from warnings import catch_warnings, simplefilter

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.formats.bounds import (
    CHECKED,
    ITEM_BYTES,
    MAX_BYTES,
    METER,
    LimitError,
    Meter,
    check_call,
    check_format,
    check_operator,
    join,
)


class GenerationBlock(Extension):
    """The `{% generation %}` block, which marks text for training and does not change a prompt."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block into a scope with the same content."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


MAX_SOURCE = 250_000  # characters of a template; those of models have up to 50,000
WHOLE_TEXT_FILTERS = (
    "length",
    "count",
    "trim",
    "upper",
    "lower",
    "replace",
    "string",
    "safe",
    "default",
    "d",
    "tojson",
)
UNBOUNDED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")  # of no use in prompts


class BoundedGenerator(CodeGenerator):
    """Generate code that asks the environment wherever a template makes values or repeats itself."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Begin the body of each loop with a look at the clock."""
        if frame.loop_frame:
            self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._wrap("nested", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._wrap("nested", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._wrap("nested", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._wrap("made", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _wrap(self, function: str, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write(f"environment.{function}(")
        visit(node, frame)
        self.write(")")


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, within the limits of the meter that is set while a template is compiled and rendered."""

    code_generator_class = BoundedGenerator
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(join)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationBlock],
            optimized=False,  # constants would be computed without asking
        )
        del self.globals["lipsum"]
        filters = {**self.filters, "tojson": _to_json, **{name: _refused(name) for name in UNBOUNDED_FILTERS}}
        self.filters = {name: _bounded(name, function) for name, function in filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["namespace"] = Variables

    def tick(self) -> None:
        METER.get().tick()

    def made(self, value: Any) -> Any:
        return METER.get().made(value)

    def nested(self, value: Any) -> Any:
        return METER.get().nested(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator != "+" or not isinstance(left, str):
            check_operator(operator, left, right)
        return METER.get().made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method within the limits."""
        meter = METER.get()
        meter.tick()
        owner = None
        if isinstance(__obj, BuiltinMethodType):
            owner = __obj.__self__
            if __obj.__name__ == "join" and args and not isinstance(args[0], Sized):
                args = (list(args[0]), *args[1:])
            check_call(__obj.__name__, owner, (*args, *kwargs.values()))
        elif args or kwargs:
            meter.require(meter.weigh(*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        return meter.nested(result) if isinstance(owner, str) else meter.made(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Wrap `str.format` and `str.format_map`, where they are accessed."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            values = [*args, *kwargs.values()]
            check_format(value.__self__, values)
            return str(METER.get().made(wrapped(*args, **kwargs)))

        return bounded


class Variables(Namespace):
    """A namespace, which a template can change; its text shows nothing of what it holds."""

    def __repr__(self) -> str:
        return "<namespace>"


def run_template(source: str, values: Mapping[str, Any], max_length: int = MAX_BYTES) -> str:
    """Render a template to at most `max_length` characters.

    Raises FormatError if the template is invalid, rejects the values, fails, or reaches a limit.
    """
    meter = Meter()
    token = METER.set(meter)
    try:
        template = _compile(source)
        pieces, size = [], 0
        for piece in template.generate(values):
            size += len(piece)
            if size > max_length:
                raise LimitError(f"writes more than {max_length} characters")
            pieces.append(piece)
        return "".join(pieces)
    except (FormatError, Interrupted):
        raise
    except LimitError as error:
        raise FormatError(f"the chat template {error}", "choose another --format") from error
    except jinja2.TemplateError as error:
        raise FormatError(
            f"the chat template rejects this conversation: {_line(error)}",
            "change the conversation, or choose another --format",
        ) from error
    except Exception as error:  # a template is code: it can fail in any way code can
        raise FormatError(
            f"the chat template fails: {type(error).__name__}: {_line(error)}", "choose another --format"
        ) from error
    finally:
        METER.reset(token)


@cache
def _compile(source: str) -> jinja2.Template:
    try:
        if len(source) > MAX_SOURCE:
            raise ValueError(f"it has more than {MAX_SOURCE} characters")
        with catch_warnings():
            simplefilter("ignore", SyntaxWarning)  # Python's, of the code that Jinja makes
            return Environment().from_string(source)
    except LimitError:
        raise
    except Exception as error:  # not only TemplateError: deep nesting and long numbers raise others
        raise FormatError(
            f"the chat template cannot be parsed: {_line(error)}", "choose a --format, or use --raw"
        ) from error


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that it keeps the limits."""
    own = int(hasattr(function, "jinja_pass_arg"))  # arguments that Jinja adds
    is_checked = name in CHECKED

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.tick()
        value: Any = args[own] if len(args) > own else None
        if isinstance(value, str) and name not in WHOLE_TEXT_FILTERS:
            meter.require_left(ITEM_BYTES * len(value))  # its characters as items
        elif isinstance(value, Iterator) or (name == "join" and not isinstance(value, Sized)):
            value = list(value)
            args = (*args[:own], value, *args[own + 1 :])
        if is_checked:
            named = (kwargs[key] for key in sorted(kwargs, reverse=True))  # `old` before `new`
            check_call(name, value, (*args[own + 1 :], *named))
        return meter.made(function(*args, **kwargs))

    return bounded


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refused(name: str) -> Callable[..., Any]:
    """A filter that fails where it is used: a template may never get there."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise LimitError(f"uses the filter {name}")

    return refuse


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
