"""Forms of calls, made from the texts that they are written with: what reads them, and how they begin. Pure."""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

from cerebrum_cli.core.text import Pattern, Texts
from cerebrum_cli.formats.call_readers import (
    NAME,
    Finder,
    bare_key_arguments,
    first_calls,
    json_arguments,
    json_calls,
    named_calls,
    no_calls,
    pair_arguments,
    python_calls,
)

KEY = r"(?P<key>[^<>\s\"]+?)"  # of an argument
ARGUMENTS = '{"city": "Oslo"}'  # of the examples
NO_ARGUMENTS = r"(?=\s*(?:\{|<|\Z))"  # before arguments as JSON, which may be missing


class Syntax(NamedTuple):
    """How calls are written.

    - `find`: finds them in a text
    - `openings`: the texts that they begin with; none if they are JSON alone
    - `markers`: texts that may be special tokens
    - `in_headers`: they are in the headers of blocks, so they are read from the whole reply with all special tokens
    - `example`: a call of `weather(city="Oslo")`
    """

    find: Finder = no_calls
    openings: Texts = ()
    markers: Texts = ()
    in_headers: bool = False
    example: str = ""


def any_form(*forms: Syntax) -> Syntax:
    """Calls in any of several forms; the first is the usual one."""
    openings = dict.fromkeys(text for form in forms for text in form.openings)
    markers = dict.fromkeys(text for form in forms for text in form.markers)
    find = partial(first_calls, tuple(form.find for form in forms))
    return Syntax(find, (*openings,), (*markers,), any(form.in_headers for form in forms), forms[0].example)


def json_form(
    opening: str, closing: str = "", call: str = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
) -> Syntax:
    """JSON objects, or a list of them, after a text; `call` is an example."""
    header = re.compile(rf"{_spaced(opening)}\s*(?=[\[{{])")
    markers = tuple(text for text in (opening, closing) if text)
    return Syntax(partial(json_calls, header), (opening,), markers, example=f"{opening}{call}{closing}")


def json_object_form(first: str, second: str) -> Syntax:
    """JSON objects that begin with a key, anywhere."""
    header = re.compile(rf'(?=\{{\s*"{first}"\s*:)')
    example = f'{{"{first}": "weather", "{second}": {ARGUMENTS}}}'
    return Syntax(partial(json_calls, header), (f'{{"{first}"',), example=example)


def python_form(opening: str, closing: str, call: str = '[weather(city="Oslo")]') -> Syntax:
    """Python after a text: a list of calls, or one call after the other."""
    find = partial(python_calls, re.compile(_spaced(opening)))
    return Syntax(find, (opening,), (opening, closing), example=f"{opening}{call}{closing}")


def named_form(header: str, example: str, *openings: str, markers: Texts = (), in_headers: bool = False) -> Syntax:
    """A name in a header, and the arguments as JSON; the regular expression of the header has a group `name`."""
    find = partial(named_calls, re.compile(f"(?s){header}"), json_arguments)
    return Syntax(find, () if in_headers else openings, (*openings, *markers), in_headers, example)


def bare_key_form(opening: str, closing: str, quote: str) -> Syntax:
    """`call:`, a name, and arguments whose keys have no quotes and whose strings have their own."""
    header = re.compile(rf"{re.escape(opening)}\s*call:(?P<name>[\w.:/-]+)\s*(?=\{{)")
    find = partial(named_calls, header, partial(bare_key_arguments, quote))
    example = f"{opening}call:weather{{city:{quote}Oslo{quote}}}{closing}"
    return Syntax(find, (opening,), (opening, closing, quote), example=example)


def attribute_form(call: str, argument: str, *wrapper: str, attribute: str = "") -> Syntax:
    """Elements of XML whose attribute `name` is that of the function, and of each argument.

    `wrapper` has the markup around calls: first what opens it, last what closes it.
    """
    header = rf"(?:function<｜tool_sep｜>[\w.-]+\s*)?<{call}\s+name=\"{NAME}\"[^>]*>"  # Step 3 may name it twice
    key = rf"<{argument}\s+name=\"(?P<key>[^\"]+)\"(?:\s+string=\"(?P<type>\w+)\")?[^>]*>"
    pair = _pair(key, f"</{argument}>", rf"<{argument}\b|</{call}>")
    begin, end = (wrapper[0], wrapper[-1]) if wrapper else ("", "")
    example = f'{begin}<{call} name="weather"><{argument} name="city"{attribute}>Oslo</{argument}></{call}>{end}'
    openings = (*wrapper[:1], f"<{call} name=")
    return _pair_form(header, (pair,), openings, (f"</{call}>", f"</{argument}>", *wrapper), example)


def tag_form(begin: str, end: str, has_lines: bool) -> Syntax:
    """`<function=NAME>` and `<parameter=KEY>`, each value on lines of its own or not; end tags may be missing."""
    header = rf"<function={NAME}>(?=\s*(?:<|\Z))"
    key, following = rf"<parameter={KEY}>", r"<parameter=|</function>|</tool_call>|<tool_call>"
    pairs: tuple[Pattern, ...] = (_pair(key, "</parameter>", following),)
    line = "\n" if has_lines else ""
    if has_lines:
        in_value = r"(?:(?!\n<(?:parameter|function)=).)*?"
        closed = rf"\n?(?P<value>{in_value})\n?</parameter>(?=\s*(?:{following}|\Z))"
        unclosed = rf"\n?(?P<value>.*?)\n?(?=\s*(?:{following}|\Z))"
        pairs = tuple(re.compile(rf"(?s)\s*{key}{rest}") for rest in (closed, unclosed))
    example = f"{begin}\n<function=weather>\n<parameter=city>{line}Oslo{line}</parameter>\n</function>\n{end}"
    return _pair_form(header, pairs, (begin, "<function="), ("</function>", "</parameter>", begin, end), example)


def key_value_form(opening: str, closing: str, prefix: str = "") -> Syntax:
    """A name, and each argument as an element with its key and one with its value."""
    begin, ending = rf"<{prefix}arg_key>", re.escape(closing)
    key = rf"{begin}{KEY}</{prefix}arg_key>\s*<{prefix}arg_value>"
    pair = _pair(key, f"</{prefix}arg_value>", f"{begin}|{ending}")
    header = rf"{re.escape(opening)}\s*{NAME}(?=\s*(?:{begin}|{ending}))"
    written = f"{begin}city</{prefix}arg_key><{prefix}arg_value>Oslo</{prefix}arg_value>"
    markers = (opening, closing, begin, f"</{prefix}arg_value>")
    return _pair_form(header, (pair,), (opening,), markers, f"{opening}weather{written}{closing}")


def _pair_form(header: str, pairs: tuple[Pattern, ...], openings: Texts, markers: Texts, example: str) -> Syntax:
    find = partial(named_calls, re.compile(header), partial(pair_arguments, pairs))
    return Syntax(find, openings, markers, example=example)


def _pair(key: str, value_end: str, following: str) -> Pattern:
    """A key and a value, which ends where something else can follow: the value may contain its own end."""
    return re.compile(rf"(?s)\s*{key}(?P<value>.*?){re.escape(value_end)}(?=\s*(?:{following}|\Z))")


def _spaced(literal: str) -> str:
    """A regular expression of a literal in which white space may differ."""
    return r"\s*".join(map(re.escape, literal.split()))
