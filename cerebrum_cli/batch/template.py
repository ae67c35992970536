"""Prompt templates: `{name}` inserts a field of the row; `{{` and `}}` are literal braces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cerebrum_cli.batch.rows import InvalidRow
from cerebrum_cli.core.errors import UsageError

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<field>[^{}]*)\}|(?P<stray>[{}])|(?P<text>[^{}]+)")


class _Piece(NamedTuple):
    text: str
    is_field: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal text and field names, in order."""

    pieces: tuple[_Piece, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields, each once."""
        return tuple(dict.fromkeys(piece.text for piece in self.pieces if piece.is_field))

    def render(self, fields: Mapping[str, Any]) -> str:
        """Render the prompt of a row; values that are not text are written as JSON.

        Field values are never parsed as templates. Raises InvalidRow if a field is missing.
        """
        for name in self.fields:
            if name not in fields:
                raise InvalidRow("unknown_field", f"no field `{name}`; the fields are: {', '.join(fields) or 'none'}")
        return "".join(_to_text(fields[piece.text]) if piece.is_field else piece.text for piece in self.pieces)


def parse_template(text: str) -> Template:
    """Parse a template. Raises UsageError for an unmatched brace, and without any field."""
    pieces = []
    for match in _PIECE.finditer(text):
        if match["stray"]:
            message = f"unmatched {match['stray']} in the template, at character {match.start() + 1}"
            raise UsageError(message, "{name} is a field; write {{ and }} for literal braces")
        if match["field"] is None:
            pieces.append(_Piece(match["text"] or match["brace"][0], False))
        elif name := match["field"].strip():
            pieces.append(_Piece(name, True))
        else:
            raise UsageError(f"field without a name in the template, at character {match.start() + 1}", "name it")
    template = Template(tuple(pieces))
    if not template.fields:
        raise UsageError("the template has no field, so all prompts would be the same", "add one, like {text}")
    return template


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
