"""GBNF grammars as Lark grammars.

Each character is a terminal of its own. Longer terminals match greedily, which GBNF never does.
"""

from __future__ import annotations

import re

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.text import Match

CHARACTER = r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\[^xuU]|."
PART = r"""(?xs)
    \s+ | \#[^\n]*
    | " (?P<literal> (?: [^"\\] | \\. )* ) "
    | \[ (?P<negation> \^? ) (?P<characters> (?: [^\]\\] | \\. )+ ) \]
    | (?P<rule> [\w-]+ ) \s* ::=
    | (?P<name> [\w-]+ )
    | (?P<any> \. )
    | (?P<mark> [()|*+?] | \{ \s* \d+ \s* (?: , \s* \d* \s* )? \} )
    | (?P<unknown> . )
"""
ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}
HINT = "it must be GBNF with a rule named root"


def gbnf_to_lark(grammar: str) -> str:
    """Translate to Lark; rules keep their lines, so that errors name the right one. Raises GrammarError."""
    names = {"root": "start"}
    defined = set[str]()
    lark = []
    line = last = 1  # the lines of the current part, and of the last rule
    for part in re.finditer(PART, grammar):
        if part.lastgroup == "unknown":
            raise GrammarError(f"cannot parse the grammar: line {line}: unexpected {part[0]!r}", HINT)
        if rule := part["rule"]:
            lark.append("\n" * max(line - last, bool(defined)))
            lark.append(names.setdefault(rule, f"r{len(names)}") + ":")
            last = line
            defined.add(rule)
        elif name := part["name"]:
            lark.append(names.setdefault(name, f"r{len(names)}"))
        else:
            lark.append(_item(part))
        line += part[0].count("\n")
    if missing := names.keys() - defined:
        raise GrammarError(f"cannot parse the grammar: it has no rule {min(missing)}", HINT)
    return " ".join(lark)


def _item(part: Match) -> str:
    """Translate a part that names no rule to Lark; blanks and comments become empty."""
    match part.lastgroup:
        case "literal":
            codes = map(_code, re.findall(CHARACTER, part["literal"], re.DOTALL))
            return f"({' '.join(f'/{code}/' for code in codes)})"
        case "characters":
            return f"/[{part['negation']}{_ranges(part['characters'])}]/"
        case "any":
            return "/(?s:.)/"
    return part["mark"] or ""


def _ranges(characters: str) -> str:
    """The characters between brackets as a regular expression has them; a hyphen between two makes a range."""
    pairs = re.findall(rf"(?s)({CHARACTER})(?:-({CHARACTER}))?", characters)
    return "".join(f"{_code(first)}-{_code(last or first)}" for first, last in pairs)


def _code(character: str) -> str:
    """A character, which may be escaped, as a regular expression has it."""
    if character == "\\":
        raise GrammarError("cannot parse the grammar: invalid escape", HINT)
    if len(character) > 2:
        return rf"\x{{{character[2:]}}}"
    return rf"\x{{{ord(ESCAPES.get(character, character[-1])):x}}}"
