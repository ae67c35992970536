"""Regular expressions of JSON Schema, which are ECMAScript's, as llguidance takes them: in the syntax of Rust.

They are read as with the flag `u`, but `]` and braces without a partner are literal, as they are without it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from cerebrum_cli.core.text import Match

UNICODE = r"u\{[0-9A-Fa-f]+\}|u[dD][89aAbB]..\\u[dD][c-fC-F]..|u[0-9A-Fa-f]{4}"
ESCAPE = rf"\\(?:{UNICODE}|x[0-9A-Fa-f]{{2}}|c[A-Za-z]|[pP]\{{[^}}]*\}}|.)"
PART = rf"""(?xs)
    (?P<unsupported> \(\?<?[=!] | \\[bB] | \\[1-9k] )
    | \[ (?P<negation> \^? ) (?P<members> (?: [^\]\\] | \\. )* ) \]
    | (?P<escape> {ESCAPE} )
    | (?P<quantifier> [*+?] | \{{ \d+ (?: ,\d* )? \}} ) \??
    | (?P<group> \( (?: \?(?:: | P?<\w+> | i[:)]) )? )
    | (?P<unknown> \(\? )
    | (?P<unclosed> \[ )
    | (?P<mark> [)|^$] )
    | (?P<any> \. )
    | (?P<literal> . )
"""
MEMBER = rf"(?xs) (?P<first> {ESCAPE} | . ) (?: - (?P<last> {ESCAPE} | . ) )?"
DIGITS, WORDS = "0-9", "A-Za-z0-9_"
SPACES = r"\t\n\x{b}\x{c}\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
CLASSES = {"d": DIGITS, "w": WORDS, "s": SPACES}
CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
LINE_ENDS = r"\n\r\x{2028}\x{2029}"
NAMES = {"(": "look-around", "\\b": r"\b", "\\B": r"\B"}


class UnmatchableError(ValueError):
    """A pattern that is valid, but cannot be matched in linear time."""


@lru_cache(256)
def to_rust(pattern: str) -> str:
    """Translate a pattern. Raises ValueError for what is invalid in ECMAScript, and UnmatchableError."""
    translated = []
    repeatable = False
    for part in re.finditer(PART, pattern):
        kind = part.lastgroup
        if kind == "quantifier" and not repeatable:
            raise ValueError(f"nothing to repeat before {part[0]!r}")
        repeatable = kind in ("members", "escape", "any", "literal") or part[0] == ")"
        translated.append(_part(part))
    return "".join(translated)


def _part(part: Match) -> str:
    match part.lastgroup:
        case "unsupported":
            name = NAMES.get(part[0], NAMES.get(part[0][0], "backreferences"))
            raise UnmatchableError(f"{name} cannot be matched")
        case "unknown":
            raise ValueError(f"invalid group at character {part.start() + 1}")
        case "unclosed":
            raise ValueError(f"character class without an end at character {part.start() + 1}")
        case "members":
            return _class(part["negation"], part["members"])
        case "escape":
            return _escape(part["escape"])
        case "quantifier":
            return part["quantifier"]
        case "group":
            return "(?i" + part[0][3] if part[0].startswith("(?i") else "(?:"
        case "any":
            return f"[^{LINE_ENDS}]"
        case "literal":
            return _code(part[0])
    return part[0]


def _class(negation: str, members: str) -> str:
    if not members:
        if not negation:
            raise ValueError("an empty character class [] matches nothing")
        return r"[\x{0}-\x{10ffff}]"
    found = []
    for member in re.finditer(MEMBER, members):
        first, last = member["first"], member["last"]
        if last is None:
            found.append(_member(first))
        elif _is_class(first) or _is_class(last):
            found += [_member(first), _code("-"), _member(last)]
        else:
            found.append(f"{_member(first)}-{_member(last)}")
    return f"[{negation}{''.join(found)}]"


def _is_class(member: str) -> bool:
    return member[0] == "\\" and member[1] in "dDwWsSpP"


def _member(member: str) -> str:
    """A character or an escape within a class."""
    if member == r"\b":
        return _code("\b")
    return _escape(member) if member[0] == "\\" else _code(member)


def _escape(escape: str) -> str:
    name, rest = escape[1:2], escape[2:]
    if name in ("p", "P") and rest:
        return escape
    if name.lower() in CLASSES:
        return f"[{'^' if name.isupper() else ''}{CLASSES[name.lower()]}]"
    if name == "u" and len(rest) > 6 and rest[0] != "{":  # a surrogate pair
        high, low = int(rest[:4], 16), int(rest[6:], 16)
        return f"\\x{{{0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00:x}}}"
    if name in ("u", "x") and rest:
        return f"\\x{{{rest.strip('{}')}}}"
    if name == "c" and rest:
        return _code(chr(ord(rest) % 32))
    if name in CONTROLS:
        return _code(CONTROLS[name])
    if not name or (name.isascii() and name.isalnum()):
        raise ValueError(f"{escape} is not an ECMAScript escape")
    return _code(name)


def _code(character: str) -> str:
    return rf"\x{{{ord(character):x}}}"
